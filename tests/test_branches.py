"""Sharing never changes the answer: every invariant of the primitives, bit for bit."""

import functools
import random

import pytest
import torch

from parallel_decode import _C
from parallel_decode.engine import Engine, Fork, Prefill, SamplingParams, Score
from parallel_decode.kernels import BLOCK_SIZE
from tests.tiny_model import (
    TEXT,
    next_logits,
    plain_logits,
    tiny_checkpoint,
    tiny_engine,
    tiny_tokenizer,
)

AWKWARD_LENGTHS = [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE, 63, 100]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=12, ignore_eos=True)
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 20}


def token_ids(n: int, seed: int = 0) -> list[int]:
    return random.Random(f"{n}/{seed}").choices(range(len(TEXT)), k=n)


@pytest.fixture
def engine() -> Engine:
    return tiny_engine(threads=2)


def assert_clean(engine: Engine) -> None:
    """Nobody holds a block once every branch is dropped."""
    assert engine.blocks_in_use == 0
    engine.clear_prefixes()
    assert engine.cache.num_used == 0


# ---- prefill ----


@functools.cache
def whole_prefill(length: int, family: str) -> torch.Tensor:
    engine = tiny_engine(checkpoint_of(family))
    return next_logits(engine, engine.prefill(token_ids(length)))


def checkpoint_of(family: str):
    return tiny_checkpoint(**MISTRAL) if family == "mistral" else tiny_checkpoint()


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("max_batch_tokens", [1, 7, 64])
@pytest.mark.parametrize("length", AWKWARD_LENGTHS)
def test_chunked_prefill_equals_whole(length, max_batch_tokens, family):
    engine = tiny_engine(checkpoint_of(family), max_batch_tokens=max_batch_tokens)
    root = engine.prefill(token_ids(length))
    assert torch.equal(next_logits(engine, root), whole_prefill(length, family))
    assert engine.usage.forward_steps == -(-length // max_batch_tokens)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_keep_the_invariants(dtype):
    engine = tiny_engine(dtype=dtype, max_batch_tokens=7)
    whole = tiny_engine(dtype=dtype)
    root = engine.prefill(token_ids(50))
    [kid] = engine.fork(root, at=33)
    engine.extend(kid, tokens=token_ids(20, seed=1))
    expected = whole.prefill([*token_ids(50)[:33], *token_ids(20, seed=1)])
    assert torch.equal(next_logits(engine, kid), next_logits(whole, expected))
    assert torch.equal(next_logits(engine, root), next_logits(whole, whole.prefill(token_ids(50))))


def test_the_reference_backend_draws_the_same_tokens():
    engine = tiny_engine(backend="reference")
    kids = engine.fork(engine.prefill(token_ids(40)), 5)
    engine.extend(kids, SAMPLED)
    assert [kid.output_tokens for kid in kids] == five_children()


@pytest.mark.parametrize("options", [{"isa": isa} for isa in _C.available_isas()], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_tokens_on_any_threads_and_instruction_set(options, threads):
    engine = tiny_engine(threads=threads, **options)
    kids = engine.fork(engine.prefill(token_ids(40)), 5)
    engine.extend(kids, SAMPLED)
    assert [kid.output_tokens for kid in kids] == five_children()


@functools.cache
def five_children() -> list[list[int]]:
    engine = tiny_engine(threads=2, isa="scalar")
    kids = engine.fork(engine.prefill(token_ids(40)), 5)
    engine.extend(kids, SAMPLED)
    return [kid.output_tokens for kid in kids]


@pytest.mark.parametrize("cuts", [(1,), (15, 16, 17), (32,), (33, 34, 50)], ids=str)
def test_a_text_appended_in_pieces_equals_its_prefill(engine, cuts):
    tokens = token_ids(70)
    branch = engine.prefill(tokens[: cuts[0]])
    for begin, end in zip(cuts, (*cuts[1:], len(tokens)), strict=True):
        engine.extend(branch, tokens=tokens[begin:end])
    assert branch.tokens == tokens
    assert torch.equal(next_logits(engine, branch), plain_logits(tokens))


# ---- fork ----


@pytest.mark.parametrize("at", [1, 14, 15, 16, 17, 31, 32, 33, 47, 48])
@pytest.mark.parametrize("suffix", [1, 2, 16, 17, 40])
def test_fork_then_extend_equals_a_prefill_of_the_same_text(engine, at, suffix):
    prompt, more = token_ids(48), token_ids(suffix, seed=1)
    root = engine.prefill(prompt)
    before = next_logits(engine, root)
    [child] = engine.fork(root, at=at)
    assert torch.equal(child.logits, plain_logits(prompt[:at]))
    engine.extend(child, tokens=more)
    assert child.tokens == prompt[:at] + more
    assert torch.equal(next_logits(engine, child), plain_logits(prompt[:at] + more))
    assert torch.equal(next_logits(engine, root), before)
    assert torch.equal(before, plain_logits(prompt))
    engine.prune([child, root])
    assert_clean(engine)


@pytest.mark.parametrize("length", AWKWARD_LENGTHS)
def test_many_children_of_many_lengths(engine, length):
    prompt = token_ids(length)
    root = engine.prefill(prompt)
    kids = engine.fork(root, 6)
    suffixes = [token_ids(n, seed=n) for n in (1, 15, 16, 17, 31, 33)]
    for kid, suffix in zip(kids, suffixes, strict=True):
        engine.extend(kid, tokens=suffix)
    for kid, suffix in zip(kids, suffixes, strict=True):
        assert torch.equal(next_logits(engine, kid), plain_logits(prompt + suffix))
    assert torch.equal(next_logits(engine, root), plain_logits(prompt))


@pytest.mark.parametrize("at", [3, 16, 20, 30, 37, 45])
def test_fork_of_a_finished_branch_at_any_position(engine, at):
    """The prompt has 20 tokens, the output goes on to 45; the parent keeps its tokens."""
    root = engine.prefill(token_ids(20))
    engine.extend(root, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
    engine.extend(root, tokens=[engine.tokenizer.eos_ids[0]])
    root.status = "finished"
    tokens = root.tokens
    kids = engine.fork(root, 2, at=at)
    assert [kid.tokens for kid in kids] == [tokens[:at]] * 2
    assert kids[0].prompt_length == min(20, at)
    assert kids[0].output_tokens == tokens[20:at]
    assert len(kids[0].records) == max(0, at - 20)
    engine.extend(kids, GREEDY)
    assert kids[0].tokens == kids[1].tokens
    assert torch.equal(next_logits(engine, kids[0]), plain_logits(kids[0].tokens))
    assert root.tokens == tokens


@pytest.mark.parametrize("at", [None, 5, 16, 19, 20, 21])
def test_fork_of_a_branch_with_pending_tokens(engine, at):
    root = engine.prefill(token_ids(18))
    engine.broadcast(root, token_ids(3, seed=9))
    assert root.num_pending == 3
    kids = engine.fork(root, 3, at=at)
    for kid in kids:
        expected = root.tokens[:at]
        assert kid.tokens == expected
        assert kid.num_pending == 0
        assert torch.equal(kid.logits, plain_logits(expected))
    engine.extend(root, tokens=[1])
    assert torch.equal(next_logits(engine, root), plain_logits(root.tokens))
    engine.prune([root, *kids])
    assert_clean(engine)


def test_a_tree_of_forks_equals_prefills(engine):
    live = [engine.prefill(token_ids(19))]
    for level in range(4):
        kids = [kid for branch in live for kid in engine.fork(branch, 2)]
        for i, kid in enumerate(kids):
            engine.extend(kid, tokens=token_ids(3 + 5 * level + i % 3, seed=i))
        live = kids
    assert len(live) == 16
    engine.extend(live, GREEDY)
    for branch in live:
        assert torch.equal(next_logits(engine, branch), plain_logits(branch.tokens))


def test_the_parent_does_not_notice_its_children(engine):
    for length in (16, 21):
        alone = tiny_engine()
        expected = alone.prefill(token_ids(length))
        alone.extend(expected, SAMPLED)
        root = engine.prefill(token_ids(length))
        kids = engine.fork(root, 4)
        engine.extend(kids, SAMPLED)
        engine.prune(kids[:2])
        engine.extend(root, SAMPLED)
        assert root.tokens == expected.tokens
        assert torch.equal(next_logits(engine, root), next_logits(alone, expected))


def test_a_fork_adds_no_block(engine):
    for length in (16, 17, 100):
        root = engine.prefill(token_ids(length))
        before = engine.blocks_in_use
        kids = engine.fork(root, 64)
        assert engine.blocks_in_use == before == -(-length // BLOCK_SIZE)
        assert engine.usage.computed_tokens == length
        engine.prune([root, *kids])
        engine.clear_prefixes()
        engine = tiny_engine()


def test_a_fork_in_the_middle_adds_one_block_at_the_most(engine):
    root = engine.prefill(token_ids(100))
    before = engine.blocks_in_use
    kids = [kid for at in (16, 37, 64) for kid in engine.fork(root, 64, at=at)]
    assert engine.blocks_in_use <= before + 3
    engine.prune(kids)
    assert engine.blocks_in_use == before


def test_stored_is_the_prefix_once_and_each_suffix_once(engine):
    root = engine.prefill(token_ids(100))
    kids = engine.fork(root, 8)
    seen = []
    stop = engine.observe(seen.append)
    engine.extend(kids, SamplingParams(max_tokens=40, ignore_eos=True))
    stop()
    full = 100 // BLOCK_SIZE
    suffix = -(-(100 + 39) // BLOCK_SIZE) - full
    assert engine.blocks_in_use == full + 1 + 8 * suffix  # 1: the parent's own partial block
    assert seen[-1].kv_tokens_logical == 8 * (100 + 39)
    assert seen[-1].kv_tokens_read == full * BLOCK_SIZE + 8 * (100 + 39 - full * BLOCK_SIZE)


# ---- batches ----


def test_a_branch_alone_equals_it_in_any_batch(engine):
    prompts = [token_ids(n, seed=n) for n in (1, 16, 17, 40, 65)]
    together = [engine.prefill(prompt) for prompt in prompts]
    crowd = [*together, *engine.fork(together[3], 9)]
    engine.extend(crowd, SamplingParams(max_tokens=30, ignore_eos=True))
    for prompt, branch in zip(prompts, together, strict=True):
        alone = tiny_engine()
        root = alone.prefill(prompt)
        alone.extend(root, SamplingParams(max_tokens=30, ignore_eos=True))
        assert root.output_tokens == branch.output_tokens
        assert root.records == branch.records
        assert torch.equal(next_logits(alone, root), next_logits(engine, branch))


def test_branches_that_join_and_leave_do_not_change_the_others(engine):
    alone = tiny_engine()
    expected = alone.fork(alone.prefill(token_ids(30)), 1)[0]
    alone.extend(expected, SamplingParams(max_tokens=40, ignore_eos=True))
    kids = engine.fork(engine.prefill(token_ids(30)), 6)
    lengths = [40, 3, 17, 1, 25, 9]
    engine.extend(kids, [SamplingParams(max_tokens=n, ignore_eos=True) for n in lengths])
    assert [kid.num_sampled for kid in kids] == lengths
    assert kids[0].output_tokens == expected.output_tokens
    assert kids[0].records == expected.records


@pytest.mark.parametrize("max_batch_tokens", [1, 3, 8])
def test_more_branches_than_a_step_holds(max_batch_tokens):
    wide, narrow = tiny_engine(), tiny_engine(max_batch_tokens=max_batch_tokens)
    outputs = []
    for engine in (wide, narrow):
        kids = engine.fork(engine.prefill(token_ids(20)), 9)
        engine.extend(kids, SAMPLED)
        outputs.append([kid.output_tokens for kid in kids])
    assert outputs[0] == outputs[1]


# ---- draws ----


def test_children_of_one_parent_draw_different_tokens(engine):
    kids = engine.fork(engine.prefill(token_ids(20)), 16)
    engine.extend(kids, SAMPLED)
    assert len({tuple(kid.output_tokens) for kid in kids}) == 16
    again = engine.fork(kids[0].parent, 4)
    grandchildren = engine.fork(kids[0], 4)
    engine.extend([*again, *grandchildren], SAMPLED)
    assert len({tuple(b.output_tokens[-12:]) for b in (*kids, *again, *grandchildren)}) == 24


def test_equal_seeds_in_params_still_differ_by_path(engine):
    kids = engine.fork(engine.prefill(token_ids(20)), 8)
    engine.extend(kids, SamplingParams(max_tokens=12, seed=5, ignore_eos=True))
    assert len({tuple(kid.output_tokens) for kid in kids}) == 8


def test_a_draw_depends_on_seed_and_path_alone():
    def outputs(seed: int, params_seed: int | None, crowd: int, **options) -> list[list[int]]:
        engine = tiny_engine(seed=seed, **options)
        for i in range(crowd):
            engine.extend(engine.prefill(token_ids(33, seed=i)), SAMPLED)
        others = [engine.prefill(token_ids(9, seed=i)) for i in range(crowd)]
        kids = engine.fork(engine.prefill(token_ids(20)), 3)
        params = SamplingParams(max_tokens=12, seed=params_seed, ignore_eos=True)
        engine.extend([*others, *kids], params)
        return [kid.output_tokens for kid in kids]

    first = outputs(7, None, 0)
    assert outputs(7, None, 5) == first
    assert outputs(7, None, 2, max_batch_tokens=5) == first
    assert outputs(8, 7, 1) == first
    assert outputs(8, None, 0) != first
    assert outputs(7, 8, 0) == outputs(8, None, 3)
    assert outputs(0, -1, 0) == outputs(0, 2**64 - 1, 1)


def test_tokens_drawn_in_two_extensions_equal_those_of_one(engine):
    kids = engine.fork(engine.prefill(token_ids(20)), 2)
    engine.extend(kids, SAMPLED)
    other = tiny_engine()
    same = other.fork(other.prefill(token_ids(20)), 2)
    for n in (1, 4, 7):
        other.extend(same, SamplingParams(max_tokens=n, ignore_eos=True))
    assert [kid.output_tokens for kid in same] == [kid.output_tokens for kid in kids]


# ---- rollback ----


@pytest.mark.parametrize("to", [1, 15, 16, 17, 20, 21, 32, 33, 44])
def test_rollback_is_as_if_never_extended(engine, to):
    root = engine.prefill(token_ids(20))
    engine.extend(root, SamplingParams(max_tokens=25, ignore_eos=True))
    tokens = root.tokens
    engine.rollback(root, to)
    assert root.tokens == tokens[:to]
    assert len(root.records) == len(root.output_tokens) == max(0, to - 20)
    assert torch.equal(next_logits(engine, root), plain_logits(tokens[:to]))
    engine.extend(root, tokens=[3, 1, 4])
    assert torch.equal(next_logits(engine, root), plain_logits([*tokens[:to], 3, 1, 4]))
    engine.prune(root)
    assert_clean(engine)


def test_rollback_then_sampling_draws_the_same_tokens_again(engine):
    root = engine.prefill(token_ids(20))
    [kid] = engine.fork(root)
    engine.extend(kid, SAMPLED)
    tokens, records = kid.tokens, kid.records
    for to in (31, 25, 20):
        engine.rollback(kid, to)
        engine.extend(kid, SamplingParams(max_tokens=32 - to, ignore_eos=True))
        assert kid.tokens == tokens
        assert kid.records == records


@pytest.mark.parametrize("to", [5, 16, 18, 20, 24])
def test_rollback_into_shared_blocks_leaves_other_children_alone(engine, to):
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 3)
    engine.extend(kids, SamplingParams(max_tokens=6, ignore_eos=True))
    tokens = [kid.tokens for kid in kids]
    engine.rollback(kids[0], to)
    engine.extend(kids[0], tokens=token_ids(30, seed=4))
    engine.rollback(kids[0], to + 3)
    engine.extend(kids[0], tokens=token_ids(2, seed=5))
    assert torch.equal(next_logits(engine, kids[0]), plain_logits(kids[0].tokens))
    for kid, expected in zip(kids[1:], tokens[1:], strict=True):
        assert kid.tokens == expected
        assert torch.equal(next_logits(engine, kid), plain_logits(expected))
    assert torch.equal(next_logits(engine, root), plain_logits(token_ids(20)))
    engine.prune([root, *kids])
    assert_clean(engine)


def test_rollback_below_the_fork_and_back_to_it_again(engine):
    """Positions go on from where the tokens end, not from where the branch was once forked."""
    root = engine.prefill(token_ids(40))
    [kid] = engine.fork(root)
    engine.rollback(kid, 10)
    engine.extend(kid, tokens=token_ids(5, seed=1))
    engine.rollback(kid, 10)
    engine.extend(kid, tokens=token_ids(4, seed=2))
    expected = token_ids(40)[:10] + token_ids(4, seed=2)
    assert kid.position == 14
    assert torch.equal(next_logits(engine, kid), plain_logits(expected))
    [grandchild] = engine.fork(kid)
    engine.extend(grandchild, tokens=[1, 2])
    assert torch.equal(next_logits(engine, grandchild), plain_logits([*expected, 1, 2]))


def test_rollback_of_pending_tokens(engine):
    root = engine.prefill(token_ids(18))
    engine.broadcast(root, [1, 2, 3])
    engine.rollback(root, 19)
    assert (root.num_tokens, root.num_pending) == (19, 1)
    assert torch.equal(next_logits(engine, root), plain_logits([*token_ids(18), 1]))


def test_rollback_revives_a_finished_branch(engine):
    root = engine.prefill(token_ids(10))
    eos = engine.tokenizer.eos_ids[0]
    engine.extend(root, SamplingParams(allowed_tokens=frozenset({eos})))
    assert (root.status, root.finish_reason) == ("finished", "eos")
    engine.rollback(root, 10)
    assert (root.status, root.finish_reason) == ("live", None)
    engine.extend(root, GREEDY)
    assert root.num_sampled == 8


# ---- score ----


def kv_contents(engine: Engine, branch) -> list[torch.Tensor]:
    """Keys and values of a branch's tokens, layer by layer."""
    contents = []
    for layer in range(engine.cache.num_layers):
        k_cache, v_cache = engine.cache.layer(layer)
        for block, start, stop, _, _ in branch.table.entries().tolist():
            contents.append(k_cache[block, :, :, start:stop].clone())
            contents.append(v_cache[block, :, start:stop].clone())
    return contents


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("continuation", [(), (5,), tuple(range(20))], ids=len)
def test_score_changes_nothing(engine, length, continuation):
    root = engine.prefill(token_ids(length))
    kids = engine.fork(root, 3)
    engine.extend(kids, SamplingParams(max_tokens=2, ignore_eos=True))
    branches = [root, *kids]
    before = [kv_contents(engine, branch) for branch in branches]
    states = [(b.tokens, b.records, b.num_stored, b.position, b.status) for b in branches]
    entries = [branch.table.entries().tolist() for branch in branches]
    blocks = engine.blocks_in_use
    engine.score(branches, continuation)
    engine.score(branches, continuation, head=lambda hidden: hidden.sum(-1))
    assert engine.blocks_in_use == blocks
    assert [branch.table.entries().tolist() for branch in branches] == entries
    for branch, contents, state in zip(branches, before, states, strict=True):
        assert (
            branch.tokens,
            branch.records,
            branch.num_stored,
            branch.position,
            branch.status,
        ) == state
        for old, new in zip(contents, kv_contents(engine, branch), strict=True):
            assert torch.equal(old, new)
    engine.extend(kids, GREEDY)
    for kid in kids:
        assert torch.equal(next_logits(engine, kid), plain_logits(kid.tokens))


@pytest.mark.parametrize("length", [1, 2, 19])
@pytest.mark.parametrize("max_batch_tokens", [4, 512])
def test_score_of_a_continuation_equals_the_logprobs_of_its_prefill(length, max_batch_tokens):
    engine = tiny_engine(max_batch_tokens=max_batch_tokens)
    continuation = token_ids(length, seed=3)
    root = engine.prefill(token_ids(21))
    kids = engine.fork(root, 2)
    engine.extend(kids, SAMPLED)
    engine.broadcast(kids[1], [1, 2])
    before = engine.usage.computed_tokens
    rows = engine.score([root, *kids], continuation)
    # What is pending (the logits behind the root are known), and all but the last token.
    assert engine.usage.computed_tokens == before + 0 + 1 + 3 + 3 * (length - 1)
    for branch, scores in zip([root, *kids], rows, strict=True):
        assert len(scores) == length
        text = branch.tokens
        for number, logprob in enumerate(scores):
            stats = tiny_engine().ops.logit_stats(plain_logits(text).unsqueeze(0))
            expected = plain_logits(text)[continuation[number]].item() - stats[0][0]
            assert logprob == pytest.approx(expected, abs=1e-6)
            text = [*text, continuation[number]]
    assert root.tokens == token_ids(21)


def test_heads_see_the_last_hidden_state(engine):
    root = engine.prefill(token_ids(21))
    kids = engine.fork(root, 3)
    engine.extend(kids, GREEDY)  # the last token is pending
    rows = engine.score([root, *kids], head=lambda hidden: hidden)
    for branch, row in zip([root, *kids], rows, strict=True):
        assert torch.equal(engine.model.logits(row.unsqueeze(0))[0], plain_logits(branch.tokens))
    [row] = engine.score(kids[0], [1, 2, 3], head=lambda hidden: hidden)
    tokens = [*kids[0].tokens, 1, 2, 3]
    assert torch.equal(engine.model.logits(row.unsqueeze(0))[0], plain_logits(tokens))
    assert engine.score(kids, head=lambda hidden: [1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]


def test_a_distribution_is_that_of_the_next_token(engine):
    root = engine.prefill("hello")
    kids = engine.fork(root, 2)
    engine.extend(kids, GREEDY)
    rows = engine.score([root, *kids], distribution=True)
    for branch, row in zip([root, *kids], rows, strict=True):
        assert row.exp().sum() == pytest.approx(1, abs=1e-5)
        [[logprob]] = engine.score([branch], [7])
        assert logprob == pytest.approx(float(row[7]), abs=1e-5)
        assert torch.equal(row, torch.log_softmax(engine.prefill(branch.tokens).logits, 0))
    # What a fork has computed is not computed again.
    before = engine.usage.computed_tokens
    [kid] = engine.fork(kids[0], 1)
    engine.score([kid], distribution=True)
    assert engine.usage.computed_tokens == before + 1
    with pytest.raises(ValueError, match="no continuation and no head"):
        engine.run(Score([kid], "a", distribution=True))


def test_score_without_arguments_is_the_last_record(engine):
    root = engine.prefill(token_ids(5))
    engine.extend(root, SAMPLED)
    assert engine.score(root) == [root.records[-1]]


def test_score_of_a_child_in_a_range_of_its_own_continues_in_that_range(engine):
    """The last shared token lies at the parent's position, the next one in the child's range."""
    prompt, suffix = token_ids(20), [1, 2, 3]

    def child():
        root = engine.prefill(prompt)
        return engine.fork(root, 2, positions="disjoint_ranges", lengths=[50])[1]

    fresh, reference = child(), child()
    scores = engine.score(fresh, suffix)[0]
    for number, token in enumerate(suffix):
        [probe] = engine.fork(reference)
        assert reference.position == 70 + number
        logits = probe.logits
        expected = torch.log_softmax(logits.double(), -1)[token].item()
        # Token 0 follows the prompt itself; the later ones follow tokens in the range.
        assert scores[number] == pytest.approx(expected, abs=1e-5)
        engine.extend(reference, tokens=[token])
    engine.extend(fresh, tokens=suffix, logprobs=True)
    assert fresh.logprobs == scores
    assert torch.equal(next_logits(engine, fresh), next_logits(engine, reference))
    engine.rollback(fresh, 20)
    assert fresh.position == 70
    assert engine.score(fresh, suffix)[0] == scores


# ---- prune ----


def test_prune_frees_at_once(engine):
    root = engine.prefill(token_ids(35))
    kids = engine.fork(root, 4)
    engine.extend(kids, SamplingParams(max_tokens=33, ignore_eos=True))
    held = engine.blocks_in_use
    own = -(-(35 + 32) // BLOCK_SIZE) - 35 // BLOCK_SIZE
    for number, kid in enumerate(kids, 1):
        engine.prune(kid)
        assert engine.blocks_in_use == held - number * own
        assert (kid.status, kid.num_stored) == ("pruned", 0)
    engine.prune([root, kids[0]])  # again: nothing to free
    assert_clean(engine)


def test_prune_of_others_in_mid_stream(engine):
    """From `on_token`: blocks return in the same call; those that stay draw what they would."""
    alone = tiny_engine()
    expected = alone.fork(alone.prefill(token_ids(16)), 6)
    alone.extend(expected, SamplingParams(max_tokens=40, ignore_eos=True))

    kids = engine.fork(engine.prefill(token_ids(16)), 6)
    drawn = {id(kid): 0 for kid in kids}
    freed = []

    def on_token(branch, token):
        drawn[id(branch)] += 1
        if branch is kids[2] and drawn[id(branch)] == 20:
            before = engine.blocks_in_use
            engine.prune([kids[0], kids[5]])
            freed.append(before - engine.blocks_in_use)

    engine.extend(kids, SamplingParams(max_tokens=40, ignore_eos=True), on_token=on_token)
    assert freed == [4]
    # Child 0 had drawn its 20th token in that step, child 5 had not yet.
    assert [drawn[id(kid)] for kid in kids] == [20, 40, 40, 40, 40, 19]
    assert [kid.num_sampled for kid in kids] == [20, 40, 40, 40, 40, 19]
    assert engine.usage.generated_tokens == 199
    assert [kid.status for kid in kids] == ["pruned", "live", "live", "live", "live", "pruned"]
    for kid, full in zip(kids, expected, strict=True):
        assert kid.output_tokens == full.output_tokens[: kid.num_sampled]
    engine.prune([kids[0].parent, *kids])
    assert_clean(engine)


def test_a_branch_may_prune_itself_in_mid_stream(engine):
    kids = engine.fork(engine.prefill(token_ids(16)), 3)

    def on_token(branch, token):
        if branch is kids[1] and branch.num_sampled == 3:
            engine.prune(branch)

    result = engine.extend(kids, SamplingParams(max_tokens=3, ignore_eos=True), on_token=on_token)
    assert result == kids
    assert [kid.status for kid in kids] == ["live", "pruned", "live"]
    assert kids[1].num_stored == 0


def test_abort_in_mid_stream_ends_one_branch(engine):
    alone = tiny_engine()
    expected = alone.fork(alone.prefill(token_ids(16)), 3)
    alone.extend(expected, SAMPLED)
    kids = engine.fork(engine.prefill(token_ids(16)), 3)

    def on_token(branch, token):
        if branch is kids[0] and branch.num_sampled == 4:
            engine.abort(kids[1])

    engine.extend(kids, SAMPLED, on_token=on_token)
    assert [kid.finish_reason for kid in kids] == ["length", "aborted", "length"]
    assert [kid.num_sampled for kid in kids] == [12, 3, 12]
    assert kids[2].output_tokens == expected[2].output_tokens
    # An aborted branch can go on, and then it draws what it would have drawn.
    engine.extend(kids[1], SamplingParams(max_tokens=9, ignore_eos=True))
    assert kids[1].output_tokens == expected[1].output_tokens


def test_pruned_branches_stay_readable_and_refuse_to_go_on(engine):
    root = engine.prefill("abc")
    [kid] = engine.fork(root)
    engine.extend(kid, SAMPLED)
    text = kid.text
    engine.prune(kid)
    assert kid.text == text
    for use in (
        lambda: engine.extend(kid, SAMPLED),
        lambda: engine.fork(kid),
        lambda: engine.rollback(kid, 1),
        lambda: engine.score(kid, "a"),
        lambda: engine.broadcast(kid, "a"),
        lambda: engine.join(root, [kid], "text"),
    ):
        with pytest.raises(ValueError, match="pruned"):
            use()


# ---- what can't be done changes nothing ----


def test_impossible_operations_name_what_is_wrong(engine):
    root = engine.prefill("abcdef")
    blocks, tokens = engine.blocks_in_use, root.tokens
    cases = {
        "can't fork 0 children": lambda: engine.fork(root, 0),
        "at token 0": lambda: engine.fork(root, at=0),
        "at token 99": lambda: engine.fork(root, at=99),
        "roll back to 0": lambda: engine.rollback(root, 0),
        "roll back to 8": lambda: engine.rollback(root, 8),
        "unknown fork positions 'x'": lambda: engine.fork(root, positions="x"),
        "needs 2 positive lengths": lambda: engine.fork(root, 2, positions="promised", lengths=[3]),
        "lengths go with": lambda: engine.fork(root, 2, lengths=[3]),
        "got \\[0, 3\\]": lambda: engine.fork(root, 2, positions="promised", lengths=[0, 3]),
        "named twice": lambda: engine.extend([root, root], GREEDY),
        "needs tokens, sampling params or both": lambda: engine.extend(root),
        "1 sampling params for 2": lambda: engine.extend(engine.fork(root, 2), [GREEDY]),
        "token id 77": lambda: engine.extend(root, tokens=[77]),
        "token id -1": lambda: engine.prefill([-1]),
        "the prompt is empty": lambda: engine.prefill([]),
    }
    for message, attempt in cases.items():
        with pytest.raises(ValueError, match=message):
            attempt()
    assert (engine.blocks_in_use, root.tokens, root.num_pending) == (blocks, tokens, 0)
    assert torch.equal(next_logits(engine, root), plain_logits(tokens))


def test_a_broadcast_reaches_all_of_its_branches_or_none(engine):
    kids = engine.fork(engine.prefill("abc"), 2)
    engine.prune(kids[1])
    with pytest.raises(ValueError, match="pruned"):
        engine.broadcast(kids, "x")
    assert kids[0].num_pending == 0


@pytest.mark.parametrize("prompt", [60, 63, 64])
def test_nothing_goes_over_the_context(prompt):
    engine = tiny_engine(max_seq_len=64)
    root = engine.prefill(token_ids(prompt))
    kids = engine.fork(root, 3)
    engine.extend(kids, SamplingParams(max_tokens=50, ignore_eos=True))
    for kid in kids:
        assert kid.finish_reason == "length"
        assert kid.num_tokens == 64
        next_logits(engine, kid)
    with pytest.raises(ValueError, match="over the context of 64"):
        engine.extend(kids[0], tokens=[1])
    with pytest.raises(ValueError, match="over the context of 64"):
        engine.score(kids[0], [1])
    with pytest.raises(ValueError, match="over the context of 64"):
        engine.broadcast(kids[0], [1])
    with pytest.raises(ValueError, match="65 tokens, over the context of 64"):
        engine.prefill(token_ids(65))


def test_a_message_that_does_not_fit_ends_the_branch():
    engine = tiny_engine(max_seq_len=64)
    [kid] = engine.fork(engine.prefill(token_ids(50)))

    def on_token(branch, token):
        if branch.num_sampled == 3:
            engine.broadcast(branch, token_ids(20))

    engine.extend(kid, SamplingParams(max_tokens=50, ignore_eos=True), on_token=on_token)
    assert (kid.num_tokens, kid.finish_reason) == (53, "length")


def test_ranges_of_positions_must_lie_in_the_context(engine):
    root = engine.prefill(token_ids(20))
    with pytest.raises(ValueError, match="context of 512"):
        engine.fork(root, 2, positions="disjoint_ranges", lengths=[300])
    kids = engine.fork(root, 2, positions="disjoint_ranges", lengths=[240])
    engine.extend(kids[1], SamplingParams(max_tokens=400, ignore_eos=True))
    assert kids[1].finish_reason == "length"
    assert kids[1].num_sampled == 512 - 260
    with pytest.raises(ValueError, match="context of 512"):
        engine.extend(kids[1], tokens=[1])


def test_a_released_branch_is_computed_again_unless_text_can_not_give_it(engine):
    """What a program made is released when it ends; plain branches come back, others say so."""

    def program():
        root = yield Prefill(token_ids(20))
        plain = yield Fork(root, 2)
        ranged = yield Fork(root, 2, positions="promised", lengths=[5, 5])
        return root, plain, ranged

    root, plain, ranged = engine.run_program(program())
    assert_clean(engine)
    engine.extend(plain, GREEDY)
    assert torch.equal(next_logits(engine, plain[0]), plain_logits(plain[0].tokens))
    assert torch.equal(next_logits(engine, root), plain_logits(root.tokens))
    with pytest.raises(ValueError, match="released"):
        engine.extend(ranged, GREEDY)


def test_tokens_and_text_of_a_branch(engine):
    tokenizer = tiny_tokenizer()
    root = engine.prefill("abc")
    assert root.tokens == tokenizer.encode("abc")
    engine.extend(root, tokens="def")
    [kid] = engine.fork(root)
    engine.extend(kid, tokens="gh")
    assert (root.text, kid.text, kid.own_text) == ("def", "defgh", "gh")
    assert kid.output_tokens == tokenizer.encode("defgh", add_bos=False)
    assert kid.num_sampled == 0
    assert len(kid.records) == 5
    [early] = engine.fork(kid, at=2)
    assert (early.text, early.prompt_length) == ("", 2)
    engine.extend(early, tokens="z")
    assert early.text == "z"
