"""Each sampling parameter against a direct computation from the logits of a plain prefill."""

import dataclasses
import math
import random

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from parallel_decode import _C
from parallel_decode.engine import Branch, Engine, SamplingParams
from parallel_decode.engine.stop import StopMatcher
from parallel_decode.model.tokenizer import Tokenizer
from tests.tiny_model import TEXT, next_logits, plain_logits, tiny_checkpoint, tiny_engine

EOS = len(TEXT) + 1
VOCAB = len(TEXT) + 2


def token_ids(n: int, seed: int = 0) -> list[int]:
    return random.Random(f"{n}/{seed}").choices(range(len(TEXT)), k=n)


@pytest.fixture
def engine() -> Engine:
    return tiny_engine()


# ---- tokens ----


def edited(logits: np.ndarray, p: SamplingParams, prompt: list[int], output: list[int], drawn: int):
    """Logits after penalties, bias, allowed tokens and the minimum length, token by token."""
    x = logits.astype(np.float64)
    for token in range(len(x)):
        if token in prompt or token in output:
            r = p.repetition_penalty
            x[token] = x[token] / r if x[token] > 0 else x[token] * r
        count = output.count(token)
        x[token] -= p.frequency_penalty * count + p.presence_penalty * (count > 0)
        x[token] += p.logit_bias.get(token, 0)
        if p.allowed_tokens is not None and token not in p.allowed_tokens:
            x[token] = -math.inf
        ends = token in p.stop_tokens or (token == EOS and not p.ignore_eos)
        if drawn < p.min_tokens and ends:
            x[token] = -math.inf
    return x


def chosen(x: np.ndarray, p: SamplingParams, uniform: float) -> int:
    """Temperature, top-k, top-p over what is left, min-p; then the inverse CDF by token id."""
    if p.temperature == 0:
        return int(x.argmax())
    probability = np.exp((x - x.max()) / p.temperature)
    probability /= probability.sum()
    order = sorted(range(len(x)), key=lambda t: -probability[t])
    kept = set(order[: p.top_k] if p.top_k else order)
    reached, mass, nucleus = 0.0, sum(probability[t] for t in kept), set()
    for token in order:
        if token in kept and reached < p.top_p * mass - 1e-12:
            nucleus.add(token)
            reached += probability[token]
    kept = {t for t in nucleus if probability[t] >= p.min_p * probability.max()}
    target, reached = uniform * sum(probability[t] for t in kept), 0.0
    for token in sorted(kept):
        reached += probability[token]
        if reached > target:
            return token
    return max(kept)


def replay(branch: Branch, p: SamplingParams, given: int = 0, seed: int = 0) -> list[int]:
    """What a branch should have drawn, from plain prefills of its own path."""
    key = _C.child_key(branch.path_key, (seed if p.seed is None else p.seed) & (2**64 - 1))
    prompt = branch.tokens[: branch.prompt_length]
    drawn = []
    for number in range(branch.num_sampled):
        output = branch.output_tokens[: given + number]
        path = [*prompt, *output]
        uniform = float(_C.uniforms(np.array([key], np.uint64), np.array([len(path)]), 0)[0])
        x = edited(plain_logits(path).numpy(), p, prompt, output, number)
        drawn.append(chosen(x, p, uniform))
    return drawn


CASES = {
    "greedy": {"temperature": 0},
    "plain": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 2.5},
    "top-k": {"top_k": 3},
    "top-k 1": {"top_k": 1},
    "top-k above the vocabulary": {"top_k": 1000},
    "top-p": {"top_p": 0.6},
    "small top-p": {"top_p": 1e-6},
    "min-p": {"min_p": 0.3},
    "min-p 1": {"min_p": 1.0},
    "all filters": {"temperature": 1.5, "top_k": 12, "top_p": 0.8, "min_p": 0.05},
    "repetition": {"repetition_penalty": 1.8},
    "repetition below 1": {"repetition_penalty": 0.7, "temperature": 0},
    "presence": {"presence_penalty": 2.0, "temperature": 0},
    "frequency": {"frequency_penalty": 0.7, "temperature": 0},
    "negative penalties": {"presence_penalty": -1.0, "frequency_penalty": -0.5},
    "all penalties": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
    },
    "bias": {"logit_bias": {3: 4.0, 7: -50.0}},
    "allowed": {"allowed_tokens": frozenset({1, 5, 9, 30})},
    "allowed and bias": {"allowed_tokens": frozenset({1, 5, 9}), "logit_bias": {5: 3.0, 2: 99.0}},
    "min tokens": {"min_tokens": 10, "ignore_eos": False, "logit_bias": {EOS: 6.0}},
    "min tokens and stop tokens": {"min_tokens": 10, "stop_tokens": (1, 2, 3, 4, 5)},
    "min tokens without eos": {"min_tokens": 10, "logit_bias": {EOS: 3.0}},
    "seed": {"seed": 12345},
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_what_the_logits_say(engine, case):
    params = SamplingParams(**{"ignore_eos": True, "max_tokens": 14, **CASES[case]})
    root = engine.prefill(token_ids(18))
    kids = engine.fork(root, 4)
    engine.extend(kids, params)
    for kid in kids:
        assert kid.num_sampled >= params.min_tokens
        assert kid.output_tokens == replay(kid, params)


def test_every_branch_has_parameters_of_its_own(engine):
    kids = engine.fork(engine.prefill(token_ids(18)), len(CASES))
    params = [
        SamplingParams(**{"ignore_eos": True, "max_tokens": 5 + i % 4, "min_tokens": 0, **case})
        for i, case in enumerate({**c, "min_tokens": 0} for c in CASES.values())
    ]
    engine.extend(kids, params)
    for kid, p in zip(kids, params, strict=True):
        assert kid.output_tokens == replay(kid, p)


def test_penalties_count_given_tokens_and_earlier_extensions_and_messages(engine):
    """Whatever stands after the prompt is output, however it came there."""
    params = SamplingParams(
        temperature=0, frequency_penalty=1.0, repetition_penalty=1.5, max_tokens=6, ignore_eos=True
    )
    [kid] = engine.fork(engine.prefill(token_ids(18)))
    engine.extend(kid, tokens=[3, 3, 3, 8])
    engine.extend(kid, params)
    engine.extend(kid, params)
    assert kid.output_tokens[4:] == replay(kid, params, given=4)

    [kid] = engine.fork(engine.prefill(token_ids(18)))
    told = []

    def on_token(branch, token):
        if branch.num_sampled == 2:
            engine.broadcast(branch, [3] * 4 + [branch.output_tokens[0]])
            told.append(branch.num_tokens)

    engine.extend(kid, dataclasses.replace(params, max_tokens=8), on_token=on_token)
    for number, (token, record) in enumerate(zip(kid.output_tokens, kid.records, strict=True)):
        if record.sampled:
            path = kid.tokens[: kid.prompt_length + number]
            x = edited(plain_logits(path).numpy(), params, path[:18], path[18:], params.max_tokens)
            assert token == x.argmax()
    assert kid.num_sampled == 8
    assert len(kid.output_tokens) == 13


def test_draws_follow_the_distribution(engine):
    """Ten thousand children of one prompt, against the probabilities of its logits."""
    root = engine.prefill(token_ids(18))
    counts = np.zeros(VOCAB)
    kids = engine.fork(root, 10_000)
    engine.extend(kids, SamplingParams(max_tokens=1))
    for kid in kids:
        counts[kid.tokens[-1]] += 1
    p = torch.softmax(plain_logits(token_ids(18)).double(), -1).numpy()
    chi_square = ((counts - 10_000 * p) ** 2 / (10_000 * p)).sum()
    # Mean VOCAB - 1, standard deviation sqrt(2 (VOCAB - 1)): five of them.
    assert chi_square < VOCAB - 1 + 5 * math.sqrt(2 * (VOCAB - 1))


@pytest.mark.parametrize("temperature", [1e-3, 1e-8, 1e-30, 1e-40, 5e-324])
def test_a_very_low_temperature_is_greedy(engine, temperature):
    kids = engine.fork(engine.prefill(token_ids(18)), 3)
    engine.extend(kids, SamplingParams(temperature=temperature, max_tokens=6, ignore_eos=True))
    greedy = engine.fork(engine.prefill(token_ids(18)))[0]
    engine.extend(greedy, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    assert [kid.output_tokens for kid in kids] == [greedy.output_tokens] * 3


def test_a_very_high_temperature_is_uniform(engine):
    kids = engine.fork(engine.prefill(token_ids(18)), 500)
    engine.extend(kids, SamplingParams(temperature=1e30, max_tokens=1))
    assert len({kid.tokens[-1] for kid in kids}) == VOCAB


# ---- records ----


def test_records_of_sampled_tokens(engine):
    params = SamplingParams(max_tokens=10, ignore_eos=True, logprobs=4, top_k=5, temperature=0.7)
    kids = engine.fork(engine.prefill(token_ids(18)), 2)
    engine.extend(kids, params)
    for kid in kids:
        for number, record in enumerate(kid.records):
            path = kid.tokens[: 18 + number]
            # Of the model's own distribution, before temperature and filters.
            logprobs = torch.log_softmax(plain_logits(path).double(), -1)
            entropy = float(-(logprobs.exp() * logprobs).sum())
            assert record.logprob == pytest.approx(
                float(logprobs[kid.tokens[18 + number]]), abs=2e-6
            )
            assert record.entropy == pytest.approx(entropy, abs=1e-5)
            certainty = float(-logprobs.mean() - math.log(VOCAB))
            assert record.self_certainty == pytest.approx(certainty, abs=1e-5)
            assert record.sampled
            best = logprobs.topk(4)
            assert list(record.top.tokens) == best.indices.tolist()
            assert record.top.logprobs == pytest.approx(best.values.tolist(), abs=2e-6)
        assert kid.cumulative_logprob == pytest.approx(sum(kid.logprobs))
        assert kid.mean_logprob == pytest.approx(sum(kid.logprobs) / 10)


def test_top_is_kept_only_where_asked_and_never_more_than_the_vocabulary(engine):
    kids = engine.fork(engine.prefill(token_ids(18)), 2)
    engine.extend(kids, [SamplingParams(max_tokens=1), SamplingParams(max_tokens=1, logprobs=999)])
    assert kids[0].records[0].top is None
    assert len(kids[1].records[0].top.tokens) == VOCAB


@pytest.mark.parametrize("max_batch_tokens", [1, 5, 1024])
@pytest.mark.parametrize("pending", [0, 2])
def test_logprobs_of_given_tokens(max_batch_tokens, pending):
    engine = tiny_engine(max_batch_tokens=max_batch_tokens)
    kids = engine.fork(engine.prefill(token_ids(18)), 2)
    if pending:
        engine.broadcast(kids, token_ids(pending, seed=3))
    added = token_ids(20, seed=1)
    engine.extend(kids, tokens=added, logprobs=True)
    for kid in kids:
        assert all(math.isnan(lp) for lp in kid.logprobs[:pending])
        for number, token in enumerate(added):
            path = kid.tokens[: 18 + pending + number]
            logprobs = torch.log_softmax(plain_logits(path).double(), -1)
            record = kid.records[pending + number]
            assert record.logprob == pytest.approx(float(logprobs[token]), abs=2e-6)
            assert not record.sampled
        assert torch.equal(next_logits(engine, kid), plain_logits(kid.tokens))


def test_given_tokens_without_logprobs_have_none(engine):
    [kid] = engine.fork(engine.prefill(token_ids(18)))
    engine.extend(kid, SamplingParams(max_tokens=2, ignore_eos=True), tokens=[1, 2])
    assert [r.sampled for r in kid.records] == [False, False, True, True]
    assert [math.isnan(lp) for lp in kid.logprobs] == [True, True, False, False]
    assert kid.num_sampled == 2
    assert kid.cumulative_logprob == pytest.approx(sum(kid.logprobs[2:]))


# ---- ends ----


def test_eos_finishes_a_branch(engine):
    [kid] = engine.fork(engine.prefill(token_ids(5)))
    params = SamplingParams(allowed_tokens=frozenset({EOS, 1}), logit_bias={EOS: 50.0})
    engine.extend(kid, params)
    assert (kid.status, kid.finish_reason, kid.output_tokens) == ("finished", "eos", [EOS])
    assert kid.text == ""
    engine.extend(kid, params)  # finished branches stay as they are
    assert kid.num_sampled == 1
    engine.extend(kid, tokens=[1])  # unless there is something to say
    assert (kid.status, kid.output_tokens) == ("live", [EOS, 1])


def test_eos_can_be_ignored(engine):
    [kid] = engine.fork(engine.prefill(token_ids(5)))
    params = SamplingParams(allowed_tokens=frozenset({EOS}), ignore_eos=True, max_tokens=4)
    engine.extend(kid, params)
    assert (kid.status, kid.finish_reason, kid.num_sampled) == ("live", "length", 4)


def test_stop_tokens_end_an_extension_and_the_branch_can_go_on(engine):
    [kid] = engine.fork(engine.prefill(token_ids(5)))
    params = SamplingParams(allowed_tokens=frozenset({7, 8}), stop_tokens=(7,), max_tokens=500)
    engine.extend(kid, params)
    assert kid.output_tokens[-1] == 7
    assert 7 not in kid.output_tokens[:-1]
    assert (kid.status, kid.finish_reason) == ("live", "stop")
    before = kid.num_sampled
    engine.extend(kid, params)
    assert kid.num_sampled > before


def test_min_tokens_hold_off_every_end(engine):
    params = SamplingParams(
        min_tokens=5, max_tokens=50, stop_tokens=(3,), logit_bias={EOS: 30.0, 3: 30.0}
    )
    kids = engine.fork(engine.prefill(token_ids(5)), 4)
    engine.extend(kids, params)
    assert {kid.num_sampled for kid in kids} == {6}
    impossible = SamplingParams(min_tokens=2, allowed_tokens=frozenset({EOS}))
    engine.extend(engine.fork(kids[0].parent), impossible)


def test_nothing_to_choose_from_fails_the_branch_alone(engine):
    kids = engine.fork(engine.prefill(token_ids(5)), 2)
    params = [
        SamplingParams(min_tokens=2, allowed_tokens=frozenset({EOS})),
        SamplingParams(max_tokens=3, ignore_eos=True),
    ]
    engine.extend(kids, params)
    assert (kids[0].status, kids[0].finish_reason) == ("failed", "error")
    assert "nothing to choose from" in kids[0].error
    assert kids[0].num_stored == 0
    assert (kids[1].status, kids[1].num_sampled) == ("live", 3)


# ---- stop strings ----


def byte_tokenizer() -> Tokenizer:
    """A token a byte, and a few tokens of several characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    for token in ("xaby", "bab", "Ã©t", "ab"):
        vocab[token] = len(vocab)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    return Tokenizer(backend, len(vocab), (len(vocab) + 1,), add_bos=True)


BYTES = byte_tokenizer()


def as_tokens(text: str) -> list[int]:
    """One token a byte, or the named token where the text holds `[name]`."""
    names = {"[xaby]": "xaby", "[bab]": "bab", "[ét]": "Ã©t", "[bos]": "<bos>"}
    tokens: list[int] = []
    while text:
        name = next((n for n in names if text.startswith(n)), None)
        if name is not None:
            tokens.append(BYTES.token_id(names[name]))
            text = text[len(name) :]
            continue
        for byte in text[0].encode():
            tokens.append(next(i for i in range(256) if BYTES.token_bytes(i) == bytes([byte])))
        text = text[1:]
    return tokens


def scripted_logits(script: list[int]):
    rest = iter(script)

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        assert len(hidden) == 1
        row = torch.zeros(1, BYTES.vocab_size)
        row[0, next(rest)] = 10.0
        return row

    return logits


@pytest.fixture
def scripted():
    """An engine whose model says what it is told, token by token."""
    checkpoint = dataclasses.replace(tiny_checkpoint(vocab_size=BYTES.vocab_size), tokenizer=BYTES)

    def make(script: list[int]) -> tuple[Engine, Branch]:
        engine = tiny_engine(checkpoint)
        root = engine.prefill("a")
        engine.model.logits = scripted_logits(script)
        engine.rollback(root, 1)
        engine.extend(root, tokens=engine.tokenizer.encode("a", add_bos=False))
        return engine, root

    return make


STOP_STRINGS = [
    ("hello world", "lo w", "hello w"),
    ("aab", "ab", "aab"),
    ("babab", ("zz", "bab"), "bab"),
    ("ab", "b", "ab"),
    ("[xaby]c", "ab", "xaby"),
    ("a[bab]c", "ab", "abab"),
    ("x[xaby]", ("xx", "by"), "xxaby"),
    ("été", "é", "é"),
    ("ceci[ét]é", "été", "ceciété"),
    ("日本語です", "本語", "日本語"),
    ("a日🙂b", "🙂", "a日🙂"),
    ("🙂🙂🙂x", "🙂x", "🙂🙂🙂x"),
    ("éé\n\nx", "\n\n", "éé\n\n"),
    ("a[bos]b", "ab", "ab"),
    ("nothing of it", "zz", None),
    ("b then b", "ab", None),  # the a before the first b is the prompt's
    ("日", "\u65e6", None),
]


@pytest.mark.parametrize("size", [None, 1, 2, 3], ids=["in one go", "by 1", "by 2", "by 3"])
@pytest.mark.parametrize(("script", "stop", "text"), STOP_STRINGS, ids=str)
def test_stop_strings(scripted, script, stop, text, size):
    tokens = as_tokens(script)
    engine, branch = scripted(tokens)
    params = SamplingParams(temperature=0, stop=stop, max_tokens=len(tokens), ignore_eos=True)
    given = branch.num_tokens
    while branch.finish_reason != "stop" and branch.num_tokens < given + len(tokens):
        left = given + len(tokens) - branch.num_tokens
        engine.extend(branch, dataclasses.replace(params, max_tokens=min(size or left, left)))
    new_text = BYTES.decode(branch.tokens[given:])
    if text is None:
        assert branch.finish_reason == "length"
        assert branch.stop_string is None
    else:
        assert (new_text, branch.finish_reason) == (text, "stop")
        assert branch.stop_string in ([stop] if isinstance(stop, str) else stop)
        assert branch.stop_string in new_text
        assert branch.status == "live"


def test_a_stop_string_does_not_begin_before_what_was_said_in_between(scripted):
    """Only where an extension goes on from one that ended at its length."""
    for between in ("tokens", "rollback", "stop"):
        engine, branch = scripted(as_tokens("xabx" if between == "stop" else "xab"))
        params = SamplingParams(temperature=0, stop="xab", max_tokens=2, ignore_eos=True)
        if between == "stop":
            engine.extend(branch, dataclasses.replace(params, stop=("xa", "xab")))
            assert branch.stop_string == "xa"
        else:
            engine.extend(branch, params)
        if between == "tokens":
            engine.extend(branch, tokens=as_tokens("a"))
        if between == "rollback":
            engine.rollback(branch, branch.num_tokens)
        engine.extend(branch, dataclasses.replace(params, max_tokens=1))
        assert branch.finish_reason == "length", between


def test_a_stop_string_before_min_tokens_does_not_end(scripted):
    engine, branch = scripted(as_tokens("ab ab ab"))
    params = SamplingParams(temperature=0, stop="ab", min_tokens=3, max_tokens=8)
    engine.extend(branch, params)
    assert branch.num_sampled == 5


def test_a_safe_point_of_several_bytes(scripted):
    """Every byte may be a token of its own."""
    engine, branch = scripted(as_tokens("ab日本語cdefghij"))
    given = branch.num_tokens

    def on_token(branch, token):
        if branch.num_sampled == 1:
            engine.broadcast(branch, "--", after="日本語")

    params = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    engine.extend(branch, params, on_token=on_token)
    assert BYTES.decode(branch.tokens[given:]).startswith("ab日本語--")


def test_a_stream_goes_on_with_the_character_that_had_begun(scripted):
    tokens = as_tokens("é日b🙂x")
    engine, branch = scripted([0])
    engine.broadcast(branch, tokens[:1])
    engine.model.logits = scripted_logits(tokens[1:])
    params = SamplingParams(temperature=0, max_tokens=len(tokens) - 1, ignore_eos=True)
    texts = [text for _, _, text in engine.stream(branch, params)]
    assert "".join(texts) == "é日b🙂x"
    assert texts == ["é", "", "", "日", "b", "", "", "", "🙂", "x"]


PIECES = st.sampled_from(
    [*(as_tokens(c) for c in "ab é日🙂"), *([t] for t in as_tokens("é🙂[xaby][bab][ét][bos]"))]
)


@settings(max_examples=300)
@given(
    pieces=st.lists(PIECES, max_size=25),
    stop=st.lists(st.text("ab é日🙂xyt", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_matcher_finds_the_first_token_that_completes_a_string(pieces, stop):
    """Also among broken UTF-8: what counts is the text decoded as a whole."""
    tokens = [token for piece in pieces for token in piece]
    matcher = StopMatcher(stop, BYTES.decode)
    for end in range(1, len(tokens) + 1):
        text = BYTES.decode(tokens[:end])
        expected = any(s in text for s in stop)
        found = None
        if matcher.may_end(tokens[end - 1]):
            found = matcher.match(tokens[max(0, end - matcher.window) : end])
        assert (found is not None) == expected
        if expected:
            assert found in text
            return


# ---- bad parameters ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be finite and at least 0, got -0.1"),
        ({"temperature": math.nan}, "temperature .* got nan"),
        ({"temperature": math.inf}, "temperature .* got inf"),
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"top_p": 0.0}, "top_p must be in \\(0, 1\\], got 0.0"),
        ({"top_p": 1.5}, "top_p .* got 1.5"),
        ({"top_p": math.nan}, "top_p .* got nan"),
        ({"min_p": -0.5}, "min_p .* got -0.5"),
        ({"min_p": 2.0}, "min_p .* got 2.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be positive, got 0.0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty .* got inf"),
        ({"presence_penalty": math.nan}, "presence_penalty must be finite, got nan"),
        ({"frequency_penalty": math.inf}, "frequency_penalty must be finite, got inf"),
        ({"logit_bias": {3: math.nan}}, "logit_bias .* nan"),
        ({"logit_bias": {3: math.inf}}, "logit_bias .* inf"),
        ({"stop": ("a", "")}, "stop must be non-empty strings, got \\('a', ''\\)"),
        ({"stop": (1,)}, "stop must be non-empty strings, got \\(1,\\)"),
        ({"allowed_tokens": frozenset()}, "allowed_tokens must be not empty"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"min_tokens": -1}, "min_tokens .* got -1"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens must be in \\[0, max_tokens\\], got 9"),
        ({"logprobs": -1}, "logprobs must be at least 0, got -1"),
    ],
    ids=str,
)
def test_bad_parameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {VOCAB: 1.0}},
        {"allowed_tokens": frozenset({1, VOCAB})},
        {"stop_tokens": (VOCAB,)},
    ],
    ids=str,
)
def test_tokens_outside_the_vocabulary_are_named(engine, options):
    root = engine.prefill("abc")
    with pytest.raises(ValueError, match=f"token id {VOCAB} is outside the vocabulary of {VOCAB}"):
        engine.extend(root, SamplingParams(**options))
    assert root.num_tokens == 4
