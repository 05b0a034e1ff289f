"""A smaller model drafts: right wherever it agrees, at any temperature."""

import pytest

from parallel_decode.engine import Engine, SamplingParams
from parallel_decode.speculation import DraftModelDrafter, Speculation, StepCosts, speculate
from tests.test_scheduler import decoding
from tests.test_speculation import STORAGE, state, token_ids
from tests.tiny_model import tiny_checkpoint, tiny_engine

FREE_ROWS = ([1, 64], [1.0, 1.0])
SAMPLINGS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True),
    "sampled": SamplingParams(temperature=1.0, max_tokens=24, ignore_eos=True),
    "filtered": SamplingParams(
        temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, max_tokens=24, ignore_eos=True
    ),
}


def drafting(draft: Engine, engine: Engine) -> DraftModelDrafter:
    """As if rows were free: everything that it says is verified."""
    drafter = DraftModelDrafter(draft, max_depth=6, min_prob=0.0)
    engine.speculator = Speculation(drafter, StepCosts(*FREE_ROWS))
    return drafter


def said(engine: Engine, params: SamplingParams, num_branches: int = 3) -> list:
    kids = engine.fork(engine.prefill(token_ids(40)), num_branches)
    engine.extend(kids, params)
    return list(map(state, kids))


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_model_itself_is_always_right(sampling, storage):
    engine, params = tiny_engine(**STORAGE[storage]), SAMPLINGS[sampling]
    expected = said(engine, params)
    drafting(tiny_engine(**STORAGE[storage]), engine)
    assert said(engine, params) == expected
    stats = engine.speculator.stats
    # What lies behind a branch's last token is drafted and not asked for.
    assert stats.drafted > 0 and stats.accepted == stats.drafted


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_another_model_changes_nothing(sampling):
    engine, params = tiny_engine(), SAMPLINGS[sampling]
    expected = said(engine, params)
    drafting(tiny_engine(tiny_checkpoint(seed=5)), engine)
    assert said(engine, params) == expected
    assert engine.speculator.stats.drafted > engine.speculator.stats.accepted


def test_what_was_drafted_wrongly_is_dropped():
    engine = tiny_engine()
    drafter = drafting(tiny_engine(tiny_checkpoint(seed=5)), engine)
    kids = engine.fork(engine.prefill(token_ids(20)), 3)
    for _ in range(10):
        engine.extend(kids, decoding(3))
        for kid in kids:
            drafter.observe(kid)
            mirror = drafter._mirrors[kid]
            assert mirror.tokens == kid.tokens[: mirror.table.num_tokens]


def test_branches_share_their_prompt_in_the_draft_model_too():
    used = []
    for num_branches in (1, 9):
        engine, draft = tiny_engine(), tiny_engine()
        drafter = drafting(draft, engine)
        said(engine, SAMPLINGS["sampled"], num_branches)
        used.append(draft.cache.num_used)
        drafter.clear()
        assert draft.cache.num_used == 0
    # 40 tokens of prompt are two whole blocks and a part; 24 more take up to three a branch.
    assert used[0] <= 3 + 3 and used[1] <= 3 + 9 * 3


def test_a_full_pool_forgets_others_and_goes_on():
    engine, draft = tiny_engine(), tiny_engine(kv_tokens=160)
    expected = [said(tiny_engine(), SAMPLINGS["greedy"]) for _ in range(4)]
    drafting(draft, engine)
    assert [said(engine, SAMPLINGS["greedy"]) for _ in range(4)] == expected


def test_the_prompt_is_computed_once_for_all_branches(monkeypatch):
    engine, draft = tiny_engine(), tiny_engine()
    drafting(draft, engine)
    counts, forward = [], draft.model.fused.draft_combs

    def counted(storage, branches, min_prob):
        counts.append(len(branches))
        return forward(storage, branches, min_prob)

    monkeypatch.setattr(draft.model.fused, "draft_combs", counted)
    said(engine, SAMPLINGS["sampled"], 9)
    assert counts[:2] == [1, 9] and 1 not in counts[1:-6]


def test_a_branch_and_its_children_are_drafted_for_together():
    """What is computed of the branch for its children ends where its own draft begins."""
    engine = tiny_engine()
    drafting(tiny_engine(), engine)
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 2)
    engine.extend(root, decoding(3))
    engine.rollback(root, 20)
    engine.extend([root, *kids], SAMPLINGS["sampled"])
    assert engine.speculator.stats.acceptance == 1


def test_a_long_line_of_forks():
    engine = tiny_engine()
    drafting(tiny_engine(), engine)
    branch = engine.prefill(token_ids(20))
    for _ in range(1500):
        [branch] = engine.fork(branch)
    engine.extend(branch, SAMPLINGS["greedy"])
    assert engine.usage.accepted_tokens > 0


@pytest.mark.parametrize("max_seq_len", [32, 41, 50])
def test_a_draft_model_of_a_shorter_context_drafts_as_far_as_it_goes(max_seq_len):
    engine, params = tiny_engine(), SAMPLINGS["sampled"]
    expected = said(engine, params)
    drafting(tiny_engine(max_seq_len=max_seq_len), engine)
    assert said(engine, params) == expected
    assert (engine.speculator.stats.drafted > 0) == (max_seq_len > 41)


def test_joined_branches_have_no_draft():
    """Their tokens do not stand at the positions that the draft model would give them."""
    runs = []
    for drafts in (False, True):
        engine = tiny_engine()
        root = engine.prefill(token_ids(20))
        kids = engine.fork(root, 2)
        engine.extend(kids, SAMPLINGS["sampled"])
        if drafts:
            drafting(tiny_engine(), engine)
        joined = engine.join(root, kids, "kv_union")
        engine.extend(joined, SAMPLINGS["sampled"], tokens=[1, 2])
        assert engine.usage.drafted_tokens == 0
        if drafts:  # what was asked in vain may have used up what may be lost
            drafting(tiny_engine(), engine)
        plain_text = engine.join(root, kids, "text")
        engine.extend(plain_text, SAMPLINGS["sampled"])
        assert (engine.usage.drafted_tokens > 0) == drafts
        runs.append([state(joined), state(plain_text)])
    assert runs[0] == runs[1]


def test_rolled_back_branches_are_followed():
    """And so are their children, which have kept what they had: the model itself stays right."""
    runs = []
    for drafts in (False, True):
        engine = tiny_engine()
        if drafts:
            drafting(tiny_engine(), engine)
        kids = engine.fork(engine.prefill(token_ids(20)), 2)
        for length in (30, 25):
            engine.extend(kids, SAMPLINGS["sampled"])
            kids += engine.fork(kids[0])
            engine.rollback(kids[0], length)
            engine.extend(kids[0], tokens=[3, 4])
        engine.extend(kids, SAMPLINGS["sampled"])
        runs.append(list(map(state, kids)))
    stats = engine.speculator.stats
    assert stats.drafted > 0 and stats.accepted == stats.drafted
    assert runs[0] == runs[1]


def test_what_can_not_draft_is_refused():
    engine = tiny_engine()
    with pytest.raises(ValueError, match="runs on backend 'cpu', this is on 'reference'"):
        DraftModelDrafter(tiny_engine(backend="reference"))
    with pytest.raises(ValueError, match=r"got 0, 0\.5"):
        DraftModelDrafter(engine, max_depth=0, min_prob=0.5)
    with pytest.raises(ValueError, match=r"drafter must be one of suffix, n-gram, .*, got 'magic'"):
        speculate(engine, "magic")
    with pytest.raises(ValueError, match="has a vocabulary of 392 tokens"):
        speculate(engine, Engine.from_pretrained("reasoner-draft", kv_tokens=64))
    assert engine.speculator is None
