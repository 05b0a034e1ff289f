"""`Verify`: a caller's drafts, by every rule, as they would be without."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from parallel_decode.engine import Extend, Fork, Prefill, SamplingParams, Verify
from parallel_decode.engine.draft_tree import NO_DRAFT, DraftTree
from parallel_decode.engine.verification import RULES
from tests.test_speculation_law import (
    ALLOWED,
    NORMAL_QUANTILE,
    PARAMS,
    PROMPT,
    excess,
    law_of_next,
)
from tests.tiny_model import tiny_engine, tiny_tokenizer

VOCAB = tiny_tokenizer().vocab_size
NUM_BRANCHES = 1500
LOSSLESS = ["match", "rejection", "traversal"]
SAMPLED = SamplingParams(temperature=1.0, max_tokens=30, ignore_eos=True)


def tree_around(tokens: list[int]) -> DraftTree:
    """These tokens one behind the other, and wrong ones beside them."""
    rows = [(token, 2 * i - 2 if i else -1) for i, token in enumerate(tokens)]
    wrong = [((token + 1) % VOCAB, above) for token, above in rows]
    pairs = [pair for right_and_wrong in zip(rows, wrong, strict=True) for pair in right_and_wrong]
    return DraftTree.of([token for token, _ in pairs], [above for _, above in pairs])


def grow(engine, branch, said, params, rule="match") -> int:
    """By drafts around what was said, until the branch ends -> steps."""
    steps = 0
    while branch.finish_reason is None:
        n = len(branch.own_tokens)
        draft = tree_around(said[n : n + 5])
        engine.verify(branch, [draft], params, rule, num_generated=n)
        steps += 1
    return steps


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.0},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.02},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
        {"logit_bias": {3: 2.0}, "allowed_tokens": frozenset(range(20)), "logprobs": 3},
        {"stop": ("ab", "e")},
        {"stop_tokens": (4,), "min_tokens": 9},
        {"seed": 5, "max_tokens": 13},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_what_matches_is_plain_sampling(changes):
    """Tokens, log-probabilities, how it ends and what it holds, in fewer steps."""
    params = dataclasses.replace(SAMPLED, **changes)
    plain, engine = tiny_engine(), tiny_engine()
    [expected] = plain.fork(plain.prefill(PROMPT), 1)
    plain.extend(expected, params)
    [branch] = engine.fork(engine.prefill(PROMPT), 1)
    steps = grow(engine, branch, expected.own_tokens, params)
    assert branch.tokens == expected.tokens and branch.records == expected.records
    assert branch.finish_reason == expected.finish_reason
    assert branch.stop_string == expected.stop_string
    assert steps <= -(-len(branch.own_tokens) // 6)
    more = [engine.extend(branch, tokens=[7]), engine.extend(branch, SAMPLED)][1][0]
    same = [plain.extend(expected, tokens=[7]), plain.extend(expected, SAMPLED)][1][0]
    assert more.records == same.records


def test_greedy_by_every_rule_is_greedy():
    params = dataclasses.replace(SAMPLED, temperature=0.0)
    engine = tiny_engine()
    expected, *kids = engine.fork(engine.prefill(PROMPT), 1 + len(LOSSLESS))
    engine.extend(expected, params)
    for kid, rule in zip(kids, LOSSLESS, strict=True):
        assert grow(engine, kid, expected.own_tokens, params, rule) <= 5 + 1
        assert kid.output_tokens == expected.output_tokens


def bushy(rng: np.random.Generator, drawn: bool, replacement: bool):
    """A tree of 3 children and 2 each behind the first two, and what its tokens were drawn from."""
    parents = [-1, -1, -1, 0, 0, 1, 1]
    law = np.zeros(VOCAB, np.float32)
    law[ALLOWED] = [0.5, 0.25, 0.125, 0.125]
    tokens: list[int] = []
    for node, parent in enumerate(parents):
        weights = law.astype(np.float64)
        siblings = [tokens[n] for n in range(node) if parents[n] == parent]
        if siblings and not (drawn and replacement):
            weights[siblings] = 0
        tokens.append(int(rng.choice(VOCAB, p=weights / weights.sum())))
    q = torch.from_numpy(np.tile(law, (len(tokens), 1))) if drawn else None
    return DraftTree.of(tokens, parents), q


def verified(rule: str, drawn: bool, replacement: bool) -> list[tuple[int, ...]]:
    """The first four tokens of many branches, some of them in the same step."""
    engine = tiny_engine(kv_tokens=16 * 2 * NUM_BRANCHES, max_batch_tokens=8 * NUM_BRANCHES)
    rng = np.random.default_rng(0)
    kids = engine.fork(engine.prefill(PROMPT), NUM_BRANCHES)

    def program(kids):
        while kids:
            drafts, laws = zip(*[bushy(rng, drawn, replacement) for _ in kids], strict=True)
            counts = [len(kid.own_tokens) for kid in kids]
            yield Verify(kids, drafts, PARAMS, rule, laws, replacement, counts)
            kids = [kid for kid in kids if kid.finish_reason is None]

    parts = [kids[first : first + 500] for first in range(0, len(kids), 500)]
    engine.wait([engine.submit(program(part), keep=True) for part in parts])
    assert engine.usage.accepted_tokens > NUM_BRANCHES / 4
    return [tuple(kid.output_tokens) for kid in kids]


@pytest.mark.parametrize(
    ("rule", "drawn", "replacement"),
    [
        ("match", False, False),
        ("rejection", False, False),
        ("rejection", True, False),
        ("rejection", True, True),
        ("traversal", False, False),
        ("traversal", True, False),
        ("traversal", True, True),
    ],
)
def test_the_first_tokens_follow_the_law(rule, drawn, replacement):
    assert excess(verified(rule, drawn, replacement)) < NORMAL_QUANTILE


def test_a_draft_said_to_be_drawn_otherwise_is_found_out(monkeypatch):
    """As if siblings had been drawn with replacement where they were not."""
    check = Verify.__init__

    def lying(self, branches, drafts, params, rule, laws, replacement, n):
        check(self, branches, drafts, params, rule, laws, not replacement, n)

    monkeypatch.setattr(Verify, "__init__", lying)
    assert excess(verified("rejection", True, False)) > 2 * NORMAL_QUANTILE


def test_typical_acceptance_takes_what_is_likely():
    engine = tiny_engine()
    law = law_of_next([])
    best = max(law, key=law.__getitem__)
    [kid] = engine.fork(engine.prefill(PROMPT), 1)
    assert engine.verify(kid, [DraftTree.chain([best])], PARAMS, "typical") == [[0]]
    assert kid.output_tokens[0] == best and len(kid.output_tokens) == 2


def test_branches_of_one_step_may_have_rules_and_drafts_of_their_own():
    engine = tiny_engine()
    expected = engine.fork(engine.prefill(PROMPT), 3)
    engine.extend(expected, SAMPLED)

    def program(rule, seed):
        root = yield Prefill(PROMPT)
        kids = yield Fork(root, 3)
        said = [kid.own_tokens for kid in expected]
        drafts = [tree_around(said[0][:9]), NO_DRAFT, DraftTree.chain(said[2][:20])]
        accepted = yield Verify(kids, drafts, SAMPLED, rule)
        return accepted, [list(kid.own_tokens) for kid in kids]

    programs = [engine.submit(program(rule, 0)) for rule in RULES]
    before = engine.usage.forward_steps
    engine.wait(programs)
    assert engine.usage.forward_steps - before <= 3  # the prompt, the drafts, what has none
    for rule, done in zip(RULES, programs, strict=True):
        accepted, tokens = done.result
        assert [len(own) for own in tokens] == [len(nodes) + 1 for nodes in accepted]
        assert accepted[1] == []
        if rule == "match":
            assert accepted == [list(range(0, 18, 2)), [], list(range(20))]
            assert tokens == [kid.own_tokens[: len(own)] for kid, own in zip(expected, tokens)]


def test_with_room_for_one_at_a_time_they_take_turns():
    engine = tiny_engine(max_batch_tokens=24)
    roots = [engine.prefill(PROMPT)]
    expected, *kids = engine.fork(roots[0], 6)
    engine.extend(expected, SAMPLED)
    said = expected.own_tokens

    def verifying(kid):
        return (yield Verify([kid], [DraftTree.chain(said[:22])], SAMPLED, "rejection"))

    def plain():
        root = yield Prefill(PROMPT)
        branches = yield Fork(root, 3)
        yield Extend(branches, SAMPLED)
        return [branch.output_tokens for branch in branches]

    most = []
    unobserve = engine.observe(lambda stats: most.append(stats.num_tokens))
    programs = [engine.submit(verifying(kid), keep=True) for kid in kids] + [engine.submit(plain())]
    engine.wait(programs)
    unobserve()
    assert max(most) <= 24
    assert all(program.error is None for program in programs)
    assert all(len(kid.own_tokens) >= 1 for kid in kids)


def test_a_preempted_one_is_verified_again_with_the_same_result():
    def program(said) -> Iterator:
        root = yield Prefill(list(range(1, 40)))
        kids = yield Fork(root, 3)
        yield Extend(kids, SAMPLED)
        taken = []
        for _ in range(4):
            yield Verify(kids, [DraftTree.chain([3, 4, 5])] * 3, SAMPLED, "traversal")
            yield Extend(kids, dataclasses.replace(SAMPLED, max_tokens=20))
            taken.append([list(kid.output_tokens) for kid in kids])
        return taken

    results = []
    for blocks in (400, 36):
        engine = tiny_engine(kv_tokens=16 * blocks)
        programs = [engine.submit(program(None), seed=seed) for seed in range(4)]
        engine.wait(programs)
        results.append([done.result for done in programs])
        assert (engine.usage.preemptions > 0) == (blocks == 36)
        assert engine.blocks_in_use == 0
    assert results[0] == results[1]


def test_nan_fails_its_branch_alone():
    engine = tiny_engine()
    kids = engine.fork(engine.prefill(PROMPT), 2)
    plain = engine.model.logits

    def poisoned(hidden):
        logits = plain(hidden)
        logits[0] = torch.nan
        return logits

    engine.model.logits = poisoned
    accepted = engine.verify(kids, [DraftTree.chain([1, 2])] * 2, SAMPLED, "rejection")
    assert accepted[0] == [] and [kid.status for kid in kids] == ["failed", "live"]
    assert "NaN" in kids[0].error and len(kids[1].output_tokens) == len(accepted[1]) + 1


def test_a_message_to_a_branch_comes_behind_what_is_verified():
    engine = tiny_engine()
    expected, kid = engine.fork(engine.prefill(PROMPT), 2)
    said = []

    def on_token(branch, token):
        said.append(token)
        if len(said) == 1:
            engine.broadcast(branch, [9, 9])

    engine.extend(expected, dataclasses.replace(SAMPLED, temperature=0.0))
    params = dataclasses.replace(SAMPLED, temperature=0.0)
    engine.verify(kid, [DraftTree.chain(expected.own_tokens[:4])], params, on_token=on_token)
    assert kid.own_tokens == [*expected.own_tokens[:5], 9, 9]


def test_a_branch_without_tokens_left_gets_none():
    engine = tiny_engine()
    [kid] = engine.fork(engine.prefill(PROMPT), 1)
    draft = DraftTree.chain([1, 2])
    assert engine.verify(kid, [draft], SAMPLED, num_generated=30) == [[]]
    assert kid.own_tokens == [] and kid.finish_reason == "length"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "guess"}, "rule must be one of .*'guess'"),
        ({"drafts": []}, "0 drafts, 1 draft_probs and 1 numbers of .* 1 branches"),
        ({"drafts": [DraftTree.chain([99])]}, "token 99, outside the vocabulary of 45"),
        ({"draft_probs": [torch.ones(1, 45)]}, "'match' has no use for draft_probs"),
        (
            {"rule": "rejection", "draft_probs": [torch.ones(2, 45)]},
            r"must be \[1, 45\] float32, got \[2, 45\]",
        ),
        (
            {"rule": "rejection", "draft_probs": [torch.ones(1, 45, dtype=torch.float64)]},
            "got .* torch.float64",
        ),
        ({"drafts": [DraftTree.chain([1] * 20)]}, "20 nodes .* max_batch_tokens=16"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(arguments, message):
    engine = tiny_engine(max_batch_tokens=16)
    [kid] = engine.fork(engine.prefill(PROMPT), 1)
    before = kid.num_stored, kid.tokens, engine.blocks_in_use
    given = {"drafts": [DraftTree.chain([1])], "params": SAMPLED, **arguments}
    with pytest.raises(ValueError, match=message):
        engine.verify(kid, **given)
    assert (kid.num_stored, kid.tokens, engine.blocks_in_use) == before
    engine.extend(kid, SAMPLED)


@pytest.mark.parametrize("rule", RULES)
def test_on_the_triton_backend_rules_decide_alike(rule):
    params = dataclasses.replace(SAMPLED, max_tokens=4)
    outputs = []
    for backend in ("cpu", "triton"):
        engine = tiny_engine(backend=backend, kv_tokens=16 * 16)
        kids = engine.fork(engine.prefill(PROMPT), 2)
        drafts = [tree_around([3, 4]), DraftTree.chain([1])]
        accepted = engine.verify(kids, drafts, params, rule)
        outputs.append((accepted, [kid.own_tokens for kid in kids]))
    assert outputs[0] == outputs[1]
