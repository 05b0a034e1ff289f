"""Drafters that use the model itself or heads on top of it, most of them in the engine's cache."""

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_decode import _C
from parallel_decode.engine import Branch, Drafter, DraftRequest, Engine, SamplingParams
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.kernels import BLOCK_SIZE
from parallel_decode.kernels.kv_format import cache_views
from parallel_decode.model.transformer import Transformer
from parallel_decode.speculation import (
    EagleDrafter,
    LookaheadDrafter,
    MedusaDrafter,
    SkipLayersDrafter,
    Speculation,
    StepCosts,
    TrainedHeads,
)
from tests.head_tensors import head_tensors, save_heads
from tests.test_draft_programs import WINDOWED, TalkingProgram
from tests.test_preemption import assert_clean
from tests.test_scheduler import decoding
from tests.test_speculation import STORAGE, state, token_ids
from tests.tiny_model import tiny_checkpoint, tiny_engine

ROOT = Path(__file__).resolve().parent.parent
SAMPLINGS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True),
    "sampled": SamplingParams(temperature=1.0, max_tokens=24, ignore_eos=True),
    "filtered": SamplingParams(
        temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, max_tokens=24, ignore_eos=True
    ),
    "penalties": SamplingParams(repetition_penalty=1.4, max_tokens=24, ignore_eos=True),
}


def heads_of(engine: Engine) -> TrainedHeads:
    parts: dict = {"eagle": {}, "medusa": {}}
    for name, tensor in head_tensors(engine.config).items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = tensor
    return TrainedHeads(Path("random"), **parts)


DRAFTERS: dict[str, Callable[[Engine], Drafter]] = {
    "one layer": lambda engine: SkipLayersDrafter(engine, [1], min_prob=0.0, max_depth=5),
    "all layers": lambda engine: SkipLayersDrafter(engine, [0, 1], max_depth=5, num_siblings=2),
    "eagle": lambda engine: EagleDrafter(engine, heads_of(engine), min_prob=0.0, max_depth=5),
    "medusa": lambda engine: MedusaDrafter(engine, heads_of(engine), min_prob=0.0),
    "lookahead": lambda engine: LookaheadDrafter(window=4, n=3),
    "jacobi": lambda engine: LookaheadDrafter(window=6, n=2, max_guesses=0),
}
OF_THE_ENGINE = [kind for kind in DRAFTERS if kind not in ("lookahead", "jacobi")]


def drafting(engine: Engine, kind: str) -> Speculation:
    """As if rows were free: everything that is drafted is verified."""
    engine.speculator = Speculation(DRAFTERS[kind](engine), StepCosts([1, 64], [1.0, 1.0]))
    return engine.speculator


def said(engine: Engine, params: SamplingParams, num_branches: int = 3) -> list:
    kids = engine.fork(engine.prefill(token_ids(40)), num_branches)
    engine.extend(kids, params)
    states = list(map(state, kids))
    engine.prune([kids[0].parent, *kids])
    return states


# ---- no token changes ----


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("kind", DRAFTERS)
def test_branches_are_what_they_are_without(kind, sampling, storage):
    engine, params = tiny_engine(**STORAGE[storage]), SAMPLINGS[sampling]
    expected = said(engine, params)
    speculation = drafting(engine, kind)
    assert said(engine, params) == expected
    assert speculation.stats.drafted > 0
    engine.clear_prefixes()
    assert engine.cache.num_used == 0


@settings(max_examples=10)
@given(
    st.integers(0, 10**6), st.booleans(), st.sampled_from(list(DRAFTERS)), st.sampled_from([0, 20])
)
def test_random_programs_are_what_they_are_without(seed, joins, kind, window):
    checkpoint = WINDOWED if window else tiny_checkpoint()

    def run(drafts: bool, **options) -> list:
        engine = tiny_engine(checkpoint, **options)
        if drafts:
            drafting(engine, kind)
        talking = [TalkingProgram(seed + i, joins) for i in range(6)]
        for program in talking:
            program.engine = engine
        running = [engine.submit(program.steps()) for program in talking]
        engine.wait(running)
        for program in running:
            if program.error is not None:
                raise program.error
        assert_clean(engine)
        return [program.result for program in running]

    plain = run(False)
    assert run(True, kv_tokens=16000) == plain
    assert run(True, kv_tokens=16000, max_batch_tokens=12) == plain
    if not joins:  # joined keys can't be given up
        assert run(True, kv_tokens=40 * BLOCK_SIZE) == plain


@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_context_may_end_within_a_draft(kind):
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    engine = tiny_engine(max_seq_len=50)
    expected = said(engine, params)
    drafting(engine, kind)
    assert said(engine, params) == expected
    assert all(one[3][1] == "length" for one in expected)


@pytest.mark.parametrize("kind", ["all layers", "eagle"])
def test_a_full_pool_is_drafted_in_no_block(kind):
    engine = tiny_engine(kv_tokens=4 * BLOCK_SIZE)
    branch = engine.prefill(token_ids(4 * BLOCK_SIZE - 1))
    drafter = drafting(engine, kind).drafter
    engine.extend(branch, decoding(1))
    assert (branch.num_pending, engine.cache.pool.num_free) == (1, 0)
    # The last block is the branch's own, and its fork would need one more.
    request = DraftRequest(branch, SamplingParams(), 7)
    assert [len(tree) for tree in drafter.propose([request], [8])] == [0]
    assert engine.cache.pool.num_free == 0


@pytest.mark.parametrize("kind", DRAFTERS)
def test_drafts_take_no_block_for_good(kind):
    engine = tiny_engine()
    drafter = drafting(engine, kind).drafter
    kids = engine.fork(engine.prefill(token_ids(40)), 5)
    engine.extend(kids, decoding(3))
    before = engine.cache.num_used
    requests = [DraftRequest(kid, SamplingParams(), number) for number, kid in enumerate(kids)]
    for _ in range(3):
        trees = drafter.propose(requests, [20, 1, 0, 63, 7])
        assert engine.cache.num_used == before
    for tree, most in zip(trees, [20, 1, 0, 63, 7], strict=True):
        DraftTree.of(tree.tokens, tree.parents, tree.probabilities)
        assert len(tree) <= most and (most == 0 or len(tree) > 0)


# ---- skipping layers ----


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("sampling", ["greedy", "sampled", "filtered"])
def test_the_whole_model_is_always_right(sampling, storage):
    engine = tiny_engine(**STORAGE[storage])
    drafter = SkipLayersDrafter(engine, [0, 1], max_depth=6, min_prob=0.0, num_siblings=0)
    engine.speculator = Speculation(drafter, StepCosts([1, 64], [1.0, 1.0]))
    said(engine, SAMPLINGS[sampling])
    stats = engine.speculator.stats
    assert stats.drafted > 0 and stats.accepted == stats.drafted


def test_joined_branches_are_drafted_for_where_they_are():
    engine = tiny_engine()
    drafter = SkipLayersDrafter(engine, [0, 1], max_depth=6, min_prob=0.0, num_siblings=0)
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 2)
    engine.extend(kids, decoding(7))
    joined = engine.join(root, kids, "kv_union")
    engine.extend(joined, tokens=token_ids(3))
    assert joined.position + joined.num_pending != joined.num_tokens
    engine.speculator = Speculation(drafter, StepCosts([1, 64], [1.0, 1.0]))
    engine.extend(joined, decoding(20))
    stats = engine.speculator.stats
    assert stats.drafted > 0 and stats.accepted == stats.drafted


@pytest.mark.parametrize("kept", [[0], [2], [0, 2], [1, 2], [0, 1, 2, 3]])
def test_kept_layers_are_a_model_of_their_own(kept):
    """The same as of a checkpoint with these layers alone, which computes the prompt with them."""
    whole = tiny_checkpoint(num_hidden_layers=4)
    tensors = {name: tensor for name, tensor in whole.tensors.items() if ".layers." not in name}
    for number, layer in enumerate(kept):
        for name, tensor in whole.tensors.items():
            if name.startswith(f"model.layers.{layer}."):
                tensors[name.replace(f".{layer}.", f".{number}.", 1)] = tensor
    cut = tiny_checkpoint(num_hidden_layers=len(kept))
    cut.tensors.clear()
    cut.tensors.update(tensors)
    engine, expected = tiny_engine(whole), tiny_engine(cut)
    engine._scheduler._runner._model = engine.model.keep_layers(kept)
    for one, other in zip(
        said(engine, SAMPLINGS["sampled"]), said(expected, SAMPLINGS["sampled"]), strict=True
    ):
        assert one == other


def test_kept_layers_share_their_weights():
    engine = tiny_engine(tiny_checkpoint(num_hidden_layers=4))
    view = engine.model.keep_layers([1, 3])
    assert view.layers[0].qkv is engine.model.layers[1].qkv
    assert view.embedding is engine.model.embedding
    assert len(engine.model.layers) == 4


@pytest.mark.parametrize("kept", [[], [2], [-1, 0], [1, 0], [0, 0]])
def test_bad_layers(kept):
    with pytest.raises(ValueError, match=r"layers must rise from 0 to 1 at the most, got [\[(]"):
        SkipLayersDrafter(tiny_engine(), kept)


# ---- an EAGLE head ----


def stored(engine: Engine, storage: torch.Tensor, branch: Branch) -> torch.Tensor:
    """[num_stored, 2, num_kv_heads, head_dim]: keys and values of a head, token by token."""
    shape = engine.cache.num_kv_heads, engine.cache.head_dim
    k_cache, v_cache = cache_views(*storage[0], *shape, engine.ops.head_dim_innermost)
    rows = []
    for block, start, stop, *_ in branch.table.entries().tolist():
        for offset in range(start, stop):
            rows.append(torch.stack([k_cache[block, :, :, offset], v_cache[block, :, offset]]))
    return torch.stack(rows)


def differing(engine: Engine, drafter: EagleDrafter, branch: Branch) -> list[int]:
    """Numbers of the tokens whose keys are not those of a plain prefill."""
    fresh = tiny_engine(kv_tokens=512)
    other = EagleDrafter(fresh, heads_of(fresh))
    fresh.speculator = Speculation(other, StepCosts([1, 64], [1.0, 1.0]))
    [copy] = fresh.fork(fresh.prefill(branch.tokens[: branch.num_stored]))
    expected = stored(fresh, other.row_observer.storage, copy)
    found = stored(engine, drafter.row_observer.storage, branch)[: len(expected)]
    return (found != expected).flatten(1).any(1).nonzero().flatten().tolist()


def test_a_heads_keys_follow_their_branches():
    """Through trees that are accepted in part, copies of shared blocks and pre-emption's like."""
    engine = tiny_engine()
    drafter = drafting(engine, "eagle").drafter
    root = engine.prefill(token_ids(21))
    kids = engine.fork(root, 3)
    engine.extend(kids, decoding(17))
    grandkids = engine.fork(kids[1], 2)
    engine.extend([*grandkids, kids[0]], decoding(11))
    for branch in (*kids, *grandkids):
        assert differing(engine, drafter, branch) == []


def test_a_heads_keys_follow_nodes_that_are_moved():
    """Drafts of which only later siblings are right lie apart until they are accepted."""
    engine = tiny_engine()
    whole = engine.fork(engine.prefill(token_ids(21)), 1)[0]
    engine.extend(whole, decoding(20))
    drafter = EagleDrafter(engine, heads_of(engine))
    said_before = whole.output_tokens
    engine.prune([whole.parent, whole])
    engine.clear_prefixes()

    def propose(requests, max_nodes):
        [request] = requests
        done = request.branch.num_sampled
        right = said_before[done : done + 3]
        # 0 and 2 are wrong, 1 and 3 are right
        tokens = [x for token in right for x in ((token + 1) % 40, token)]
        return [DraftTree.of(tokens, [-1, -1, 1, 1, 3, 3][: len(tokens)])]

    drafter.propose = propose
    engine.speculator = Speculation(drafter, StepCosts([1, 64], [1.0, 1.0]))
    branch = engine.fork(engine.prefill(token_ids(21)), 1)[0]
    engine.extend(branch, decoding(20))
    assert branch.output_tokens == said_before and engine.speculator.stats.accepted > 5
    assert differing(engine, drafter, branch) == []


def test_behind_a_rollback_one_state_is_not_known():
    engine = tiny_engine()
    drafter = drafting(engine, "eagle").drafter
    [branch] = engine.fork(engine.prefill(token_ids(21)))
    engine.extend(branch, decoding(17))
    engine.rollback(branch, 30)
    engine.extend(branch, decoding(17))
    assert differing(engine, drafter, branch) == [29]


def test_eagle_drafts_what_its_definition_says(monkeypatch):
    """As the training computes it, place after place."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module_of = importlib.import_module("heads_model").Eagle
    engine = tiny_engine()
    drafter = EagleDrafter(engine, heads_of(engine), min_prob=0.0, max_depth=4, num_siblings=0)
    engine.speculator = Speculation(drafter, StepCosts([1, 64], [1.0, 1.0]))
    branch = engine.prefill(token_ids(30))
    engine.extend(branch, SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True))
    request = DraftRequest(branch, SamplingParams(temperature=0.0), 0)
    [tree] = drafter.propose([request], [4])

    tensors = heads_of(engine).eagle
    module = module_of(engine.config, tensors["mlp.gate_proj.weight"].shape[0])
    module.load_state_dict(tensors)
    hidden: list[torch.Tensor] = []
    recording = tiny_engine()
    embedding = tiny_checkpoint().tensors["model.embed_tokens.weight"]
    forward = Transformer.forward
    monkeypatch.setattr(
        Transformer, "forward", lambda *args: hidden.append(forward(*args)) or hidden[-1]
    )
    recording.fork(recording.prefill(branch.tokens))
    tokens, features = list(branch.tokens), torch.cat(hidden)[: branch.num_tokens - 1]
    expected = []
    for depth in range(4):
        # Rows behind the model's own states are not looked at by the place that begins there.
        padded = torch.zeros(len(tokens), features.shape[1])
        padded[: len(features)] = features
        rope = engine.model.cos[: len(tokens)], engine.model.sin[: len(tokens)]
        embedded = embedding[torch.tensor(tokens)]
        with torch.no_grad():
            said_there = module(padded[None], embedded[None], rope, depth + 1)[depth][0, -1]
        expected.append(int((embedding @ said_there).argmax()))
        tokens.append(expected[-1])
    assert tree.tokens.tolist() == expected
    p = torch.softmax(embedding @ said_there, 0)
    assert tree.probabilities[-1] == pytest.approx(float(p.max()), rel=1e-4)


def test_nothing_is_watched_without_need():
    engine = tiny_engine()
    runner, cache = engine._scheduler._runner, engine.cache
    drafting(engine, "eagle")
    assert runner.observer is not None and len(cache.attached) == 1
    for kind in ("all layers", "medusa"):
        drafting(engine, kind)
        assert runner.observer is None and cache.attached == ()
    drafting(engine, "eagle")
    engine.speculator = None
    assert runner.observer is None and cache.attached == ()


# ---- Medusa heads ----


def test_medusa_drafts_what_its_definition_says():
    engine = tiny_engine()
    heads = heads_of(engine)
    drafter = MedusaDrafter(engine, heads, num_guesses=2, min_prob=0.0)
    branch = engine.prefill(token_ids(30))
    engine.extend(branch, SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True))
    request = DraftRequest(branch, SamplingParams(temperature=0.0), 0)
    [tree] = drafter.propose([request], [63])
    embedding = tiny_checkpoint().tensors["model.embed_tokens.weight"]
    paths = {(): 1.0}
    for number in range(3):
        weight, bias = (heads.medusa[f"{number}.linear.{name}"] for name in ("weight", "bias"))
        state = branch.hidden + torch.nn.functional.silu(weight @ branch.hidden + bias)
        p = torch.softmax(embedding @ state, 0)
        values, tokens = p.topk(2)
        level = {path: q for path, q in paths.items() if len(path) == number}
        for path, q in level.items():
            for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
                paths[(*path, token)] = q * value
    del paths[()]
    found = {
        tuple(tree.path_to(node)): probability
        for node, probability in enumerate(tree.path_probabilities.tolist())
    }
    assert found == pytest.approx(paths, rel=1e-4)
    [cut] = drafter.propose([request], [5])
    best = sorted(paths, key=lambda path: -paths[path])[:5]
    assert {tuple(cut.path_to(node)) for node in range(5)} == set(best)


# ---- guesses ----


def guesses(p: np.ndarray, position: int, num_guesses: int, key: int = 5) -> DraftTree:
    keys = np.array([key], np.uint64)
    [columns] = _C.draft_products(
        p[None].astype(np.float32), 1, keys, [position], [False], [63], 0.0, num_guesses
    )
    return DraftTree(columns)


def test_lucky_guesses_lie_around_the_random_number():
    rng = np.random.default_rng(0)
    for position in range(50):
        p = rng.dirichlet(np.full(12, 0.5)).astype(np.float32)
        [u] = _C.uniforms(np.array([5], np.uint64), np.array([position]), 0)
        ends = np.cumsum(p, dtype=np.float64)
        drawn = int(np.searchsorted(ends, u, side="right"))
        tree = guesses(p, position, 4)
        found = dict(zip(tree.tokens.tolist(), tree.probabilities.tolist(), strict=True))
        inside = min(u - (ends[drawn] - p[drawn]), ends[drawn] - u)
        assert found.pop(drawn) == pytest.approx(1 - np.exp(-inside / 0.05), abs=1e-5)
        others = {}
        for token in range(12):
            near = ends[token] - p[token] - u if token > drawn else u - ends[token]
            if token != drawn:
                others[token] = (np.exp(-near / 0.05) - np.exp(-(near + p[token]) / 0.05)) / 2
        best = sorted(others, key=lambda token: -others[token])[:3]
        # Those that are too far away to matter need not be named.
        expected = {token: others[token] for token in best if others[token] > 1e-3}
        likely = {token: q for token, q in found.items() if q > 1e-3}
        assert likely == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_guesses_of_no_distribution_are_none(bad):
    p = np.full(6, 1 / 6)
    p[0] = bad
    assert len(guesses(p, 0, 3)) == 0
    assert len(guesses(np.zeros(6), 0, 3)) == 0


def test_bad_products():
    keys = np.zeros(2, np.uint64)
    with pytest.raises(ValueError, match="a row for each branch and level"):
        _C.draft_products(np.ones((3, 4), np.float32), 2, keys, [0, 0], [False] * 2, [1, 1], 0, 1)
    with pytest.raises(ValueError, match="a position, greedy and max_nodes a branch"):
        _C.draft_products(np.ones((4, 4), np.float32), 2, keys, [0], [False] * 2, [1, 1], 0, 1)


# ---- what can't be used ----


@pytest.mark.parametrize("kind", OF_THE_ENGINE)
def test_other_backends_are_refused(kind):
    with pytest.raises(ValueError, match="runs on backend 'cpu', the engine is on 'reference'"):
        DRAFTERS[kind](tiny_engine(backend="reference"))


@pytest.mark.parametrize(
    "arguments", [{"max_depth": 0}, {"min_prob": 1.5}, {"num_siblings": -1}], ids=str
)
def test_bad_limits(arguments):
    [value] = arguments.values()
    for make in (
        lambda engine: SkipLayersDrafter(engine, [0], **arguments),
        lambda engine: EagleDrafter(engine, heads_of(engine), **arguments),
    ):
        with pytest.raises(ValueError, match=f"got .*{value}"):
            make(tiny_engine())
    with pytest.raises(ValueError, match=r"num_guesses must be at least 1 .* got 0"):
        MedusaDrafter(tiny_engine(), heads_of(tiny_engine()), num_guesses=0)


BREAKAGES = {
    "missing": (lambda t: t.pop("eagle.norm.weight"), "tensor 'eagle.norm.weight' is missing"),
    "no gate": (lambda t: t.pop("eagle.mlp.gate_proj.weight"), "gate_proj.weight' has shape"),
    "of another model": (
        lambda t: t.update({"eagle.fusion.weight": torch.zeros(32, 65)}),
        r"'eagle.fusion.weight' has shape \(32, 65\), the model needs \(32, 64\)",
    ),
    "not finite": (
        lambda t: t["medusa.1.linear.bias"].fill_(torch.nan),
        "'medusa.1.linear.bias' is not finite",
    ),
    "a gap": (
        lambda t: [t.pop(f"medusa.1.linear.{name}") for name in ("weight", "bias")],
        "'medusa.1.linear.weight' is missing",
    ),
    "too many": (
        lambda t: t.update({"medusa.999999999.linear.bias": torch.zeros(32)}),
        "at most 16 Medusa heads, got 1000000000",
    ),
    "unknown": (lambda t: t.update({"hydra.x": torch.zeros(2)}), "'hydra.x' belongs to no head"),
    "nothing": (lambda t: t.clear(), "no tensor of a head"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_bad_files(breakage, tmp_path):
    change, message = BREAKAGES[breakage]
    config = tiny_checkpoint().config
    tensors = head_tensors(config)
    change(tensors)
    with pytest.raises(ValueError, match=message):
        TrainedHeads.load(save_heads(tmp_path, tensors), config)


def test_files_with_one_kind_of_head(tmp_path):
    engine = tiny_engine()
    tensors = head_tensors(engine.config)
    for kind, other, message in (
        ("eagle", MedusaDrafter, "no Medusa head is there"),
        ("medusa", EagleDrafter, "no EAGLE head is there"),
    ):
        chosen = {name: t for name, t in tensors.items() if name.startswith(kind)}
        folder = save_heads(tmp_path / kind, chosen)
        heads = TrainedHeads.load(folder, engine.config)
        assert (bool(heads.eagle), heads.num_medusa_heads) == (
            (True, 0) if kind == "eagle" else (False, 3)
        )
        with pytest.raises(ValueError, match=message):
            other(engine, folder)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="there are no trained heads at 'tiny'"):
        EagleDrafter(tiny_engine())
    path = tmp_path / "heads.safetensors"
    path.write_bytes(b"\x00" * 4)
    with pytest.raises(ValueError, match=r"heads\.safetensors"):
        TrainedHeads.load(tmp_path, tiny_checkpoint().config)
