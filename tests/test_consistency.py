"""The self-consistency family: each method against a replay on the samples of plain voting."""

import dataclasses
import json
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from parallel_decode import Budget, Engine, SamplingParams, SelfConsistency
from parallel_decode.engine import Extend, Fork, Prefill
from parallel_decode.reasoning import (
    CISC,
    AdaptiveConsistency,
    DeepConf,
    DeepConfOnline,
    DeepPrune,
    Dynasor,
    EarlyStopping,
    PTrue,
    ReadingPrompt,
    SoftSelfConsistency,
    UniversalSelfConsistency,
    likelihood,
    metrics,
)
from parallel_decode.reasoning.consistency import confidence, duplicates, stopping
from parallel_decode.reasoning.consistency.soft_self_consistency import TokenProbability
from parallel_decode.reasoning.extract import whole
from parallel_decode.reasoning.stages import Pieces
from parallel_decode.reasoning.vote import tally
from parallel_decode.reasoning.weighting import by_score, softmax, top_fraction
from tests.test_reasoning import first_letter, poison_logits
from tests.tiny_model import TEXT, plain_logits, tiny_checkpoint

PARAMS = SamplingParams(max_tokens=24)
LONG = SamplingParams(max_tokens=48, ignore_eos=True)
QUESTIONS = ["one", "two", "three", "four", "five"]
SHORT_PROBE = SamplingParams(max_tokens=2, ignore_eos=True)


@pytest.fixture
def engine() -> Engine:
    return Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14)


def half(text: str) -> str | None:
    """One of two answers, by the first letter."""
    return None if not text else "early" if text[0] < "n" else "late"


def family(extract=first_letter, params=PARAMS) -> dict:
    """One of each method, small."""
    common = {"params": params, "extract": extract}
    probe = PTrue(" q", "y", "n")
    return {
        "cisc": CISC(6, probe, 0.2, **common),
        "universal": UniversalSelfConsistency(4, **common),
        "soft": SoftSelfConsistency(6, **common),
        "adaptive": AdaptiveConsistency(12, 4, **common),
        "early stopping": EarlyStopping(9, 3, **common),
        "deepconf": DeepConf(6, 0.5, **common),
        "deepconf online": DeepConfOnline(12, 4, every=4, keep=0.5, **common),
        "dynasor": Dynasor(4, 8, 2, " a ", SHORT_PROBE, **common),
        "deepprune": DeepPrune(6, 8, threshold=0.5, **common),
    }


METHODS = family()
NAMES = list(METHODS)


# ---- all of them ----


@pytest.mark.parametrize("name", NAMES)
def test_many_questions_in_one_batch_equal_each_alone(engine, name):
    together = engine.solve_many(QUESTIONS[:3], METHODS[name])
    assert engine.blocks_in_use == 0
    for question, solution in zip(QUESTIONS, together, strict=False):
        small = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 12)
        alone = small.solve(question, METHODS[name])
        assert [p.tokens for p in alone.paths] == [p.tokens for p in solution.paths]
        assert (alone.votes, alone.answer) == (solution.votes, solution.answer)
        # Every sampled token is counted, those of probes and of pruned traces as well.
        assert alone.usage.generated_tokens == solution.usage.generated_tokens
        json.dumps(solution.as_dict(), allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_guesses_change_no_result(engine, name):
    method = dataclasses.replace(METHODS[name], speculation="suffix")
    plain = engine.solve_many(QUESTIONS[:2], METHODS[name])
    guessing = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14)
    for one, other in zip(plain, guessing.solve_many(QUESTIONS[:2], method), strict=True):
        assert [p.tokens for p in one.paths] == [p.tokens for p in other.paths]
        assert one.votes == other.votes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [0, 1, 50])
def test_a_budget_ends_every_method(engine, name, tokens):
    solution = engine.solve("hello", METHODS[name], budget=Budget(tokens=tokens))
    assert solution.usage.generated_tokens <= tokens
    assert solution.paths and engine.blocks_in_use == 0


@pytest.mark.parametrize("name", NAMES)
def test_an_extractor_that_raises_fails_its_question_only(engine, name):
    asked = []

    def fails_once(text):
        asked.append(text)
        if len(asked) == 1:
            raise RuntimeError("no")
        return first_letter(text)

    results = engine.solve_many(QUESTIONS[:3], family(fails_once)[name])
    assert sum(isinstance(result, RuntimeError) for result in results) == 1
    assert sum(hasattr(result, "paths") for result in results) == 2
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)], ids=["one branch", "all"])
def test_failed_branches_do_not_vote_and_leak_nothing(engine, name, rows):
    poison_logits(engine, 3, rows)
    method = family(params=SamplingParams(max_tokens=24, ignore_eos=True))[name]
    solution = engine.solve("hello", method)
    assert any("failed" in warning and "NaN" in warning for warning in solution.warnings)
    assert all(path.weight == 0 for path in solution.paths if path.error)
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_context_that_is_too_small_is_no_error(name):
    small = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 12, max_seq_len=20)
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    solution = small.solve("hello", family(params=params)[name])
    assert solution.answer is not None and small.blocks_in_use == 0
    assert max(len(path.tokens) for path in solution.paths) <= 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CISC(0), "n must be at least 1"),
        (lambda: CISC(softness=0), "temperature must be positive"),
        (lambda: PTrue(yes=""), "yes must not be empty"),
        (lambda: SoftSelfConsistency(aggregate="max"), "aggregate must be one of mean, min"),
        (lambda: AdaptiveConsistency(batch=41), "between 1 and n=40 samples, got 41"),
        (lambda: AdaptiveConsistency(threshold=1.5), "threshold must be in"),
        (lambda: EarlyStopping(window=0), "window must be at least 1"),
        (lambda: DeepConf(keep=0), "share must be in"),
        (lambda: DeepConf(summary="best"), "summary must be one of mean, tail"),
        (lambda: DeepConf(window=0), "window must be at least 1"),
        (lambda: DeepConf(top_k=0), "top_k must be at least 1"),
        (lambda: DeepConfOnline(n=16), "below n=16, got 16"),
        (lambda: DeepConfOnline(keep=1.1), "keep must be in"),
        (lambda: DeepConfOnline(consensus=0), "consensus must be in"),
        (lambda: DeepConfOnline(every=0), "between two looks must be at least 1"),
        (lambda: DeepConfOnline(window=0), "window must be at least 1"),
        (lambda: Dynasor(agree=0), "agree must be at least 1"),
        (lambda: Dynasor(chunk=0), "between two looks must be at least 1"),
        (lambda: Dynasor(probe=""), "text of a probe must not be empty"),
        (lambda: DeepPrune(threshold=math.nan), "threshold must be positive"),
        (lambda: DeepPrune(every=0), "between two looks must be at least 1"),
        (lambda: ReadingPrompt(candidate="{text}"), "candidate must hold {number}"),
        (lambda: ReadingPrompt(tail=""), "tail must not be empty"),
    ],
)
def test_bad_parameters_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- samples in pieces and in batches ----


@pytest.mark.parametrize("size", [1, 5, 100])
def test_samples_in_pieces_are_samples_in_one_go(engine, size):
    params = SamplingParams(
        max_tokens=30, min_tokens=9, stop=("ab", "z"), frequency_penalty=0.4, presence_penalty=0.2
    )

    def in_pieces(question):
        root = yield Prefill(question)
        kids = yield Fork(root, 12)
        pieces, live = Pieces(params, size), kids
        while live:
            live = yield from pieces.advance(live)
        return [(kid.tokens, kid.finish_reason) for kid in kids]

    def at_once(question):
        root = yield Prefill(question)
        kids = yield Fork(root, 12)
        yield Extend(kids, params)
        return [(kid.tokens, kid.finish_reason) for kid in kids]

    pieces, whole_samples = (engine.run_program(run("hello")) for run in (in_pieces, at_once))
    assert pieces == whole_samples
    assert {reason for _, reason in pieces} >= {"stop", "length"}


@pytest.mark.parametrize(
    ("method", "rule", "batch"),
    [
        (AdaptiveConsistency(24, 4, 0.9, PARAMS, half), stopping.beta_criterion(0.9), 4),
        (AdaptiveConsistency(24, 1, 0.9, PARAMS, half), stopping.beta_criterion(0.9), 1),
        (EarlyStopping(24, 3, PARAMS, half), stopping.unanimous_window(3), 3),
    ],
    ids=["adaptive by 4", "adaptive by 1", "early stopping"],
)
def test_early_stopping_is_a_replay_on_the_pool(engine, method, rule, batch):
    pools = engine.solve_many(QUESTIONS, SelfConsistency(24, PARAMS, half))
    drawn = []
    for pool, solution in zip(pools, engine.solve_many(QUESTIONS, method), strict=True):
        answers = [path.answer for path in pool.paths]
        needed = stopping.samples_needed(rule, answers, batch)
        assert [p.tokens for p in solution.paths] == [p.tokens for p in pool.paths[:needed]]
        assert solution.votes == tally(answers[:needed], [1.0] * needed)
        drawn.append(needed)
    assert min(drawn) < 24


# ---- confidence of a whole branch ----


def test_p_true_is_the_model_s_probability_of_yes(engine):
    asked = PTrue(" q ", "y", "n")

    def program(question):
        root = yield Prefill(question)
        kids = yield Fork(root, 8)
        yield Extend(kids, PARAMS)
        before = [(kid.tokens, kid.status) for kid in kids]
        held = engine.blocks_in_use
        scores = yield from asked(kids)
        assert engine.blocks_in_use == held
        assert before == [(kid.tokens, kid.status) for kid in kids]
        return kids, scores

    kids, scores = engine.run_program(program("hello"))
    assert any(kid.finish_reason == "eos" for kid in kids)
    for kid, score in zip(kids, scores, strict=True):
        text = kid.tokens[:-1] if kid.finish_reason == "eos" else kid.tokens
        logits = plain_logits([*text, *engine.tokenizer.encode(" q ", add_bos=False)])
        yes, no = logits[TEXT.index("y")], logits[TEXT.index("n")]
        assert score == pytest.approx(float(torch.sigmoid(yes - no)), abs=1e-6)
    assert engine.blocks_in_use == 0


def test_p_true_of_words_of_several_tokens(engine):
    def program(question):
        root = yield Prefill(question)
        return (yield from PTrue(" q", "yes", "no")([root]))

    [score] = engine.run_program(program("hello"))
    prompt = engine.tokenizer.encode("hello q")
    total = {}
    for word in ("yes", "no"):
        total[word] = sum(
            float(torch.log_softmax(plain_logits([*prompt, *ids[:i]]), -1)[ids[i]])
            for ids in [[TEXT.index(letter) for letter in word]]
            for i in range(len(ids))
        )
    assert score == pytest.approx(1 / (1 + math.exp(total["no"] - total["yes"])), abs=1e-5)


def test_cisc_weighs_by_the_softmax_of_the_confidence(engine):
    solution = engine.solve("hello", CISC(8, PTrue(" q ", "y", "n"), 0.1, PARAMS, first_letter))
    voting = [path for path in solution.paths if path.answer is not None]
    assert [path.weight for path in voting] == softmax(0.1)([path.score for path in voting])
    assert sum(path.weight for path in voting) == pytest.approx(1)
    by_response = engine.solve("hello", CISC(8, likelihood, 1, PARAMS, first_letter))
    assert [p.score for p in by_response.paths] == [
        math.exp(p.mean_logprob) for p in by_response.paths
    ]
    assert solution.usage.probes == 16 and by_response.usage.probes == 0


def test_a_constant_confidence_is_the_plain_majority(engine):
    constant = CISC(12, lambda branches: [0.3] * len(branches), 0.5, PARAMS, half)
    plain = engine.solve("hello", SelfConsistency(12, PARAMS, half))
    solution = engine.solve("hello", constant)
    assert [a for a, _ in solution.votes] == [a for a, _ in plain.votes]
    assert [w * 12 for _, w in solution.votes] == pytest.approx([w for _, w in plain.votes])


def test_a_confidence_gains_by_its_discrimination_and_not_by_its_values():
    """2,000 questions of 9 samples, right with probability 0.45 against one wrong answer. Three
    standard errors of an accuracy are 0.034, those of the discrimination below 0.01."""
    rng = random.Random(0)
    accuracy = Counter()
    scores, verdicts = [], []
    for _ in range(2000):
        right = [rng.random() < 0.45 for _ in range(9)]
        told = [rng.gauss(float(r), 1) for r in right]
        shuffled = rng.sample(told, 9)
        scores.append(told)
        verdicts.append(right)
        answers = ["right" if r else "wrong" for r in right]
        for name, values in (("told", told), ("shuffled", shuffled), ("none", [0.0] * 9)):
            votes = tally(answers, softmax(0.5)(values))
            accuracy[name] += votes[0][0] == "right"
    # Two normal laws one standard deviation apart: Φ(1 / sqrt 2).
    expected = 0.5 * (1 + math.erf(0.5))
    found = metrics.within_question_discrimination(scores, verdicts)
    assert found == pytest.approx(expected, abs=0.01)
    majority = sum(math.comb(9, k) * 0.45**k * 0.55 ** (9 - k) for k in range(5, 10))
    assert accuracy["none"] / 2000 == pytest.approx(majority, abs=0.034)
    # Weights by chance make a vote of 9 one of fewer: between the majority and a single sample.
    assert majority - 0.034 < accuracy["shuffled"] / 2000 < 0.45 + 0.034
    assert accuracy["told"] / 2000 > 0.45 + 0.1


def test_soft_scores_are_the_aggregates_of_token_probabilities(engine):
    for aggregate, direct in (("mean", np.mean), ("min", np.min), ("product", np.prod)):
        method = SoftSelfConsistency(8, aggregate, params=PARAMS, extract=whole)
        solution = engine.solve("hello", method)
        expected = [math.log(direct(np.exp(path.logprobs))) for path in solution.paths]
        assert [path.score for path in solution.paths] == pytest.approx(expected)
        best = max(solution.paths, key=lambda path: path.score)
        assert solution.answer == best.text.strip()
        assert sum(weight for _, weight in solution.votes) == 1


def test_soft_scores_are_of_sampled_tokens(engine):
    root = engine.prefill("hello")
    [kid] = engine.fork(root)
    engine.extend(kid, SamplingParams(max_tokens=3, ignore_eos=True))
    engine.extend(kid, tokens="said")
    [score] = TokenProbability("product")([kid])
    assert score == pytest.approx(kid.cumulative_logprob)
    assert TokenProbability("min")([root]) == [0.0]


# ---- universal self-consistency ----


def named_by(number: str, **changes) -> UniversalSelfConsistency:
    """The model's reply is this digit, whatever it would say."""
    only = SamplingParams(allowed_tokens=frozenset({TEXT.index(number)}), max_tokens=1)
    prompt = ReadingPrompt("\nhead\n", "{number}: {text} ={number}\n", "best is ")
    settings = {"n": 4, "prompt": prompt, "reply": only, "params": PARAMS, **changes}
    return UniversalSelfConsistency(**settings)


def test_the_named_candidate_wins_and_the_reader_reads_all(engine):
    solution = engine.solve("hello", named_by("3"))
    texts = [path.text.strip() for path in solution.paths]
    assert solution.answer == texts[2]
    assert [path.weight for path in solution.paths] == [0, 0, 1, 0]
    reader = solution.tree.children[4]
    shown = "".join(f"{i}: {text} ={i}\n" for i, text in enumerate(texts, 1))
    assert reader.text == f"\nhead\n{shown}best is " and reader.children[0].text == "3"
    assert len(texts) == 4 and not any("majority decides" in w for w in solution.warnings)


def test_what_has_no_answer_is_no_candidate(engine):
    pool = [path.text for path in engine.solve("hello", named_by("1")).paths]
    method = named_by("2", extract=lambda text: None if text == pool[1] else text)
    assert engine.solve("hello", method).answer == pool[2]
    nobody = engine.solve("hello", named_by("1", extract=lambda text: None))
    assert nobody.answer is None
    assert any("the majority decides: there is none" in text for text in nobody.warnings)


def test_a_candidate_may_hold_braces():
    assert ReadingPrompt().shown(2, "{number} {text} {").count("{number} {text} {") == 1


@pytest.mark.parametrize("reply", ["9", "0", "x"])
def test_a_reply_that_names_nobody_leaves_it_to_the_majority(engine, reply):
    solution = engine.solve("hello", named_by(reply, extract=half))
    assert any(
        f"the majority decides: the model replied '{reply}'" in text for text in solution.warnings
    )
    plain = engine.solve("hello", SelfConsistency(4, PARAMS, half))
    assert solution.votes == plain.votes


def test_candidates_that_do_not_fit_are_left_to_the_majority():
    small = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 12, max_seq_len=60)
    solution = small.solve("hello", named_by("1", extract=half))
    assert any("over the context of 60" in text for text in solution.warnings)
    assert solution.answer in ("early", "late") and small.blocks_in_use == 0


# ---- confidence by windows ----


def test_windows_by_direct_sums():
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    groups = [sum(values[i : i + 3]) / 3 for i in range(6)]
    assert confidence.group_confidences(values, 3) == pytest.approx(groups)
    assert confidence.group_confidences(values, 99) == pytest.approx([sum(values) / 8])
    assert len(confidence.group_confidences([], 3)) == 0
    score = confidence.trace_confidence
    assert score(values, "mean", 3) == pytest.approx(sum(values) / 8)
    assert score(values, "tail", 3) == pytest.approx((9 + 2 + 6) / 3)
    assert score(values, "lowest", 3) == pytest.approx(min(groups))
    long = [float(i) for i in range(30)]
    assert score(long, "bottom", 11) == pytest.approx((5 + 6) / 2)  # 2 of 20 windows
    assert score(long, "bottom", 99) == pytest.approx(14.5)
    assert [confidence.relative_window(n) for n in (0, 64, 800)] == [8, 8, 100]
    assert confidence.keep_threshold([1, 2, 3, 4, 5], 0.25) == 4


@pytest.mark.parametrize("top_k", [3, 20, 9999])
def test_token_confidence_is_that_of_the_distribution(engine, top_k):
    root = engine.prefill("hello")
    [kid] = engine.fork(root)
    params = SamplingParams(max_tokens=6, ignore_eos=True, logprobs=top_k, temperature=2.0)
    engine.extend(kid, params)
    found = confidence.token_confidences(kid, top_k)
    for i, value in enumerate(found):
        logprobs = torch.log_softmax(plain_logits(kid.tokens[: root.num_tokens + i]), -1)
        k = min(top_k, len(logprobs))
        assert value == pytest.approx(-float(logprobs.topk(k).values.mean()), abs=1e-5)
    [bare] = engine.fork(root)
    engine.extend(bare, SamplingParams(max_tokens=2, ignore_eos=True))
    with pytest.raises(ValueError, match=r"needs SamplingParams\(logprobs=3\)"):
        confidence.token_confidences(bare, 3)


def test_deepconf_lets_the_most_confident_share_vote(engine):
    method = DeepConf(10, 0.3, "lowest", 4, params=LONG, extract=first_letter)
    solution = engine.solve("hello", method)
    scores = [path.score for path in solution.paths]
    assert [path.weight for path in solution.paths] == top_fraction(0.3, by_score)(scores)
    assert sum(path.weight > 0 for path in solution.paths) == 3
    assert len(set(scores)) == 10
    everyone = engine.solve("hello", dataclasses.replace(method, keep=1.0))
    assert [path.weight for path in everyone.paths] == scores


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize(("keep", "window"), [(0.9, 5), (0.3, 5), (0.5, 16), (0.25, 40)])
def test_deepconf_online_is_a_replay_on_the_pool(engine, every, keep, window):
    """What it prunes and keeps is computed from samples to their end; draws are the same."""
    n, warm_up = 20, 8
    pool = engine.solve("hello", DeepConf(n, 1.0, "lowest", window, params=LONG)).paths
    method = DeepConfOnline(n, warm_up, keep, None, every, window, 20, LONG, first_letter)
    solution = engine.solve("hello", method)
    lowest = [path.score for path in pool]
    threshold = np.percentile(lowest[:warm_up], 100 * (1 - keep))
    survivors = [i for i in range(n) if lowest[i] >= threshold]
    assert [path.tokens for path in solution.paths] == [pool[i].tokens for i in survivors]
    assert [path.score for path in solution.paths] == pytest.approx([lowest[i] for i in survivors])
    assert 0 < len(survivors) < n
    nodes = solution.tree.children
    assert len(nodes) == n
    for i, node in enumerate(nodes):
        full = pool[i]
        assert full.text.startswith(node.text)
        if i < warm_up or i in survivors:
            assert node.num_tokens == len(full.tokens)
    killed = [i for i in range(warm_up, n) if i not in survivors]
    assert killed and all(nodes[i].status == "pruned" for i in killed)
    saved = sum(len(pool[i].tokens) - nodes[i].num_tokens for i in killed)
    total = sum(len(path.tokens) for path in pool)
    assert saved > 0 and solution.usage.generated_tokens == total - saved
    assert all(nodes[i].num_tokens % every == 0 or nodes[i].num_tokens == 48 for i in killed)


def test_deepconf_online_frees_what_it_prunes_in_mid_stream(engine):
    held = []
    method = DeepConfOnline(20, 8, 0.3, None, 4, 5, 20, LONG, first_letter)
    stop = engine.observe(lambda _: held.append(engine.blocks_in_use))
    solution = engine.solve("hello", method)
    stop()
    survivors = len(solution.paths)
    # 48 tokens take three blocks and a prompt's share of one; the rest was given back before.
    assert max(held) > held[-1]
    assert held[-1] <= 4 * survivors + 1


def test_a_consensus_stops_the_other_traces(engine):
    method = DeepConfOnline(40, 4, 0.9, 0.5, 4, 5, 20, LONG, lambda text: "same")
    solution = engine.solve("hello", method)
    assert len(solution.tree.children) == 4  # the warm-up agrees: nothing else is drawn
    never = dataclasses.replace(method, extract=whole, consensus=1.0)
    assert len(engine.solve("hello", never).tree.children) == 40


def test_a_consensus_may_come_when_traces_end(engine):
    method = DeepConfOnline(40, 4, 1.0, 0.9, 4, 5, 20, dataclasses.replace(LONG, stop="a"))
    asked = []

    def agrees_late(text):
        asked.append(text)
        return "same" if len(asked) > 4 else str(len(asked))

    solution = engine.solve("hello", dataclasses.replace(method, extract=agrees_late))
    patient = engine.solve(
        "hello", dataclasses.replace(method, consensus=None, extract=lambda text: "same")
    )
    # The warm-up does not agree; those who end first do, and the others are dropped.
    assert len(solution.tree.children) == 40 and 4 < len(solution.paths) < len(patient.paths)
    assert solution.usage.generated_tokens < patient.usage.generated_tokens
    ended = max(len(path.tokens) for path in solution.paths[4:])
    cut = [node.num_tokens for node in solution.tree.children[4:] if node.status == "pruned"]
    assert cut and max(cut) <= ended + 4


# ---- Dynasor ----


def said_in_probe(answer):
    """An extractor that answers probes, which begin with " a ", and nothing else."""
    return lambda text: answer(text) if text.startswith(" a ") else None


def test_a_settled_trace_ends_in_its_probe(engine):
    method = Dynasor(4, 8, 3, " a ", SHORT_PROBE, params=LONG, extract=said_in_probe(lambda _: "k"))
    solution = engine.solve("hello", method)
    pool = engine.solve("hello", SelfConsistency(4, LONG, first_letter)).paths
    probe_tokens = len(engine.tokenizer.encode(" a ", add_bos=False))
    for path, full, node in zip(solution.paths, pool, solution.tree.children, strict=True):
        assert path.tokens[:24] == full.tokens[:24]
        assert len(path.tokens) == 24 + probe_tokens + 2
        assert node.children[-1].text.startswith(" a ") and path.answer is None
        assert node.num_tokens == 24 and node.status == "expanded"
        assert [kid.status for kid in node.children] == ["pruned", "pruned", "live"]
    assert solution.usage.generated_tokens == 4 * (24 + 3 * 2)
    assert engine.blocks_in_use == 0


def test_probes_that_disagree_change_nothing_of_a_trace(engine):
    numbers = iter(range(10_000))
    method = Dynasor(
        6, 5, 2, " a ", SHORT_PROBE, params=PARAMS, extract=said_in_probe(lambda _: next(numbers))
    )
    solution = engine.solve("hello", method)
    pool = engine.solve("hello", SelfConsistency(6, PARAMS, first_letter)).paths
    ended = 0
    for path, full, node in zip(solution.paths, pool, solution.tree.children, strict=True):
        assert path.tokens[: len(full.tokens)] == full.tokens
        if full.finish_reason == "eos":
            ended += 1
            assert path.tokens == full.tokens and path.answer is None
            assert node.status == "finished"
        else:  # it reached max_tokens: the last probe speaks for it
            assert path.text[len(full.text) :].startswith(" a ")
    assert 0 < ended < 6


def test_a_hedge_makes_a_probe_uncertain(engine):
    only = {"n": TEXT.index("n"), "o": TEXT.index("o")}
    probe = SamplingParams(temperature=0, max_tokens=1, allowed_tokens=frozenset(only.values()))
    extract = said_in_probe(lambda _: "k")
    settings = {"params": LONG, "extract": extract}
    sure = engine.solve("hello", Dynasor(2, 8, 1, " a ", probe, frozenset({"z"}), **settings))
    assert {len(path.tokens) for path in sure.paths} == {8 + 3 + 1}
    hedged = engine.solve(
        "hello", Dynasor(2, 8, 1, " a ", probe, frozenset({"n", "o", "a"}), **settings)
    )
    assert {len(path.tokens) for path in hedged.paths} == {48}
    # A word of the probe itself is no hedge of the reply.
    own = engine.solve("hello", Dynasor(2, 8, 1, " a ", probe, frozenset({"a"}), **settings))
    assert {len(path.tokens) for path in own.paths} == {8 + 3 + 1}


# ---- DeepPrune ----


def constant(value):
    return lambda pairs: [value] * len(pairs)


def test_what_is_alike_goes_on_once_and_votes_for_all(engine):
    method = DeepPrune(6, 8, constant(1.0), params=LONG, extract=first_letter)
    solution = engine.solve("hello", method)
    [path] = solution.paths
    assert path.weight == path.score == 6 and solution.votes == [(path.answer, 6)]
    pool = engine.solve("hello", SelfConsistency(6, LONG, first_letter)).paths
    assert path.tokens == pool[0].tokens
    assert solution.usage.generated_tokens == 48 + 5 * 8
    pruned = solution.tree.children[1:]
    assert [(node.status, node.num_tokens) for node in pruned] == [("pruned", 8)] * 5


def test_without_likeness_it_is_self_consistency(engine):
    plain = engine.solve("hello", SelfConsistency(6, PARAMS, first_letter))
    method = DeepPrune(6, 8, constant(0.0), params=PARAMS, extract=first_letter)
    solution = engine.solve("hello", method)
    assert solution.votes == plain.votes
    assert [p.tokens for p in solution.paths] == [p.tokens for p in plain.paths]


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_pruned_traces_keep_their_votes(engine, threshold):
    method = DeepPrune(12, 8, threshold=threshold, params=LONG, extract=whole)
    solution = engine.solve("hello", method)
    assert sum(path.weight for path in solution.paths) == 12
    pool = engine.solve("hello", SelfConsistency(12, LONG, whole)).paths
    # The first trace of a cluster stands for it, so that the very first one always goes on.
    assert solution.paths[0].tokens == pool[0].tokens


def test_multiplicity_decides_where_plain_counts_would_not(engine):
    """Of 9 traces 5 go one way by their first letter: one of them votes for 5."""
    pool = engine.solve("hello", SelfConsistency(9, LONG, first_letter))

    def by_first_letter(pairs):
        return [float(a.text[0] == b.text[0]) for a, b in pairs]

    method = DeepPrune(9, 4, by_first_letter, 1.0, LONG, first_letter)
    assert engine.solve("hello", method).votes == pool.votes
    asked = DeepPrune(9, 4, duplicates.same_answer(first_letter), 1.0, LONG, first_letter)
    assert engine.solve("hello", asked).votes == pool.votes


def test_token_overlap_is_that_of_multisets(engine):
    root = engine.prefill("q")
    kids = engine.fork(root, 3)
    for kid, text in zip(kids, ["aab", "aba", "abcd"], strict=True):
        engine.extend(kid, tokens=text)
    first, second, third = kids
    assert duplicates.token_overlap([(first, second), (first, third)]) == [1.0, 4 / 7]
    assert duplicates.greedy_clusters(4, lambda i, j: (j - i) % 2 == 0) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda pairs: [0.5], "gave 1 values for 15 pairs"),
        (constant(math.nan), "gave nan, which is not in"),
        (constant(1.5), "gave 1.5, which is not in"),
    ],
)
def test_a_bad_judge_fails_its_question_only(engine, judge, message):
    [failed] = engine.solve_many(["hello"], DeepPrune(6, 8, judge, params=LONG))
    assert isinstance(failed, ValueError)
    with pytest.raises(ValueError, match=message):
        raise failed
    assert engine.blocks_in_use == 0


def test_a_judge_may_ask_the_model(engine):
    def judge(pairs):
        scores = yield from PTrue(" q", "y", "n")([first for first, _ in pairs[:1]])
        return scores * len(pairs)

    solution = engine.solve("hello", DeepPrune(3, 16, judge, params=LONG, extract=whole))
    assert solution.usage.probes > 0 and solution.answer


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (lambda b: [math.nan] * len(b), "gave nan"),
        (lambda b: [1.0], "gave 1 scores for 6"),
        (lambda b: 1 / 0, "division"),
    ],
)
def test_a_bad_confidence_fails_its_question_only(engine, scorer, message):
    results = engine.solve_many(["a", "b"], CISC(6, scorer, params=PARAMS, extract=first_letter))
    for failed in results:
        with pytest.raises((ValueError, ZeroDivisionError), match=message):
            raise failed
    assert engine.blocks_in_use == 0
