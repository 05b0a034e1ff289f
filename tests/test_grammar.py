"""Texts under a grammar: what is written, and that forks, rollbacks, drafts and joins know it."""

import re

import pytest

from parallel_decode.engine import (
    Engine,
    Extend,
    Fork,
    Grammar,
    History,
    Prefill,
    Recall,
    SamplingParams,
)
from parallel_decode.reasoning import SelfConsistency
from tests.guesses import Guesser, Listener
from tests.tiny_model import tiny_engine

pytest.importorskip("llguidance", reason="the extra `grammar` is not installed")
PATTERN = "(ab|cd){3,6}=[0-9]{2}"
UNDER = SamplingParams(grammar=Grammar.regex(PATTERN), max_tokens=40)


@pytest.fixture
def engine() -> Engine:
    return tiny_engine()


def texts(engine: Engine, params: SamplingParams = UNDER, n: int = 8) -> list[str]:
    root = engine.prefill("abc")
    kids = engine.extend(engine.fork(root, n), params)
    found = [kid.text for kid in kids]
    assert all(kid.finish_reason == "eos" for kid in kids)
    engine.prune([root, *kids])
    return found


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar.regex(PATTERN), PATTERN),
        (Grammar.lark('start: "x" list "z"\nlist: "a" | "a" "+" list'), r"xa(\+a)*z"),
        (Grammar.json_schema({"enum": [12, 345]}), "12|345"),
    ],
    ids=["regex", "lark", "json_schema"],
)
def test_texts_belong_to_the_language(engine, grammar, pattern):
    for text in texts(engine, SamplingParams(grammar=grammar, max_tokens=200)):
        assert re.fullmatch(pattern, text)
    assert engine.blocks_in_use == 0


def test_pieces_forks_and_rollbacks_give_what_one_go_gives(engine):
    [plain] = engine.extend(engine.fork(engine.prefill("abc"), 1), UNDER)
    other = tiny_engine()
    [branch] = other.fork(other.prefill("abc"), 1)
    five = SamplingParams(grammar=Grammar.regex(PATTERN), max_tokens=5)
    other.extend(branch, five)
    kids = other.fork(branch, 3)
    other.extend(kids, UNDER)
    assert all(re.fullmatch(PATTERN, kid.text) for kid in kids)
    length = branch.num_tokens
    other.extend(branch, UNDER)
    other.rollback(branch, length)
    other.extend(branch, UNDER)
    assert branch.tokens == plain.tokens
    other.rollback(branch, branch.prompt_length + 3)
    [kid] = other.extend(other.fork(branch, 1, at=branch.prompt_length + 2), UNDER)
    assert re.fullmatch(PATTERN, kid.text)


def test_a_text_begins_behind_what_was_said_before(engine):
    branch = engine.prefill("abc")
    engine.extend(branch, SamplingParams(max_tokens=4, ignore_eos=True))
    engine.extend(branch, UNDER, tokens="\n")
    said = branch.text
    assert re.fullmatch(PATTERN, said[said.index("\n", 4) + 1 :])
    engine.extend(branch, UNDER, tokens=".")  # the first one is complete: another begins
    assert re.fullmatch(PATTERN, branch.text[len(said) + 1 :])


def test_given_tokens_belong_to_a_text_and_a_misfit_ends_the_branch_alone(engine):
    root = engine.prefill("abc")
    good, bad = engine.fork(root, 2)
    first = SamplingParams(grammar=Grammar.regex("[ab]{3}x[0-9]{2}"), max_tokens=3)
    rest = SamplingParams(grammar=first.grammar, max_tokens=9)
    engine.extend([good, bad], first)
    engine.extend(good, tokens="x")
    engine.extend(bad, tokens="y")
    engine.extend([good, bad], rest)
    assert re.fullmatch("[ab]{3}x[0-9]{2}", good.text)
    assert (bad.status, bad.finish_reason) == ("failed", "error")
    assert "grammar" in bad.error
    engine.prune([root, good, bad])
    assert engine.blocks_in_use == 0


def test_a_join_begins_anew(engine):
    root = engine.prefill("abc")
    kids = engine.extend(engine.fork(root, 2), SamplingParams(grammar=UNDER.grammar, max_tokens=3))
    for mode in ("text", "kv_union"):
        joined = engine.join(root, kids, mode)
        before = joined.num_tokens + 1
        engine.extend(joined, UNDER, tokens="\n")
        said = engine.tokenizer.decode(joined.tokens[before:])
        assert re.fullmatch(PATTERN, said)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_change_nothing(temperature):
    params = SamplingParams(grammar=UNDER.grammar, max_tokens=40, temperature=temperature)
    engine = tiny_engine()
    engine.speculator = listener = Listener()
    plain = texts(engine, params)
    drafting = tiny_engine()
    drafting.speculator = guesser = Guesser(listener.said)
    assert texts(drafting, params) == plain
    assert guesser.num_drafted > 0
    assert drafting.usage.forward_steps < engine.usage.forward_steps


def test_a_pool_too_small_gives_the_same():
    def solved(kv_tokens: int) -> list[str]:
        engine = tiny_engine(kv_tokens=kv_tokens)

        def program(question: str):
            root = yield Prefill(question)
            kids = yield Fork(root, 3)
            yield Extend(kids, UNDER)
            return [kid.text for kid in kids]

        programs = [engine.submit(program(q * 20)) for q in ("ab", "cd", "ef", "gh")]
        engine.wait(programs)
        preempted.append(engine.usage.preemptions)
        return [program.result for program in programs]

    preempted: list[int] = []
    assert solved(1 << 12) == solved(16 * 12)
    assert preempted[0] == 0 < preempted[1]


def test_a_recalled_branch_is_where_it_was(engine):
    piece = SamplingParams(grammar=UNDER.grammar, max_tokens=4)
    first, again = engine.prefill("abc"), tiny_engine()
    engine.extend(first, piece, tokens="\n")
    second = again.prefill("abc")
    past = History(first.output_tokens, first.records, first.status, first.finish_reason)
    again.run(Recall([second], [past], extend=Extend([second], piece, "\n")))
    engine.extend(first, UNDER)
    again.extend(second, UNDER)
    assert second.tokens == first.tokens
    assert re.fullmatch(PATTERN, second.text[1:])


def test_bad_grammars_change_nothing(engine):
    branch = engine.prefill("abc")
    for grammar in (Grammar.regex("a("), Grammar.lark("x: y"), Grammar.json_schema("{")):
        with pytest.raises(ValueError):
            engine.extend(branch, SamplingParams(grammar=grammar))
    assert branch.text == "" and branch.grammar_text is None
    with pytest.raises(ValueError, match="ignore_eos"):
        SamplingParams(grammar=UNDER.grammar, ignore_eos=True)
    with pytest.raises(ValueError, match="kind"):
        Grammar("bnf", "x")


@pytest.mark.parametrize(
    ("params", "why"),
    [
        # The vocabulary has no such letter.
        (SamplingParams(grammar=Grammar.regex("a{2}\u00e9"), max_tokens=9), "grammar"),
        # The text is over before it may end.
        (SamplingParams(grammar=Grammar.regex("a{2}"), max_tokens=9, min_tokens=5), "grammar"),
        (SamplingParams(grammar=Grammar.regex("a("), max_tokens=9), None),
    ],
    ids=["no token", "too short", "unreadable"],
)
def test_a_grammar_that_can_not_be_met_ends_its_question_only(engine, params, why):
    def method(params: SamplingParams) -> SelfConsistency:
        return SelfConsistency(3, params, lambda text: text or None)

    good, bad, last = engine.solve_many(["abc"] * 3, [method(p) for p in (UNDER, params, UNDER)])
    if why is None:
        assert isinstance(bad, ValueError) and "regex grammar can't be used" in str(bad)
    else:
        assert bad.answer is None and all(path.finish_reason == "error" for path in bad.paths)
        assert any("3 of 3 branches failed" in w and why in w for w in bad.warnings)
    assert [p.tokens for p in good.paths] == [p.tokens for p in last.paths]
    assert all(re.fullmatch(PATTERN, path.text) for path in good.paths)
    assert engine.blocks_in_use == 0


def test_without_the_library_the_extra_is_named(engine, monkeypatch):
    def missing(name: str):
        raise ImportError(name)

    monkeypatch.setattr("parallel_decode.engine.grammars.import_module", missing)
    with pytest.raises(ValueError, match=r"parallel_decode\[grammar\]"):
        engine.extend(engine.prefill("abc"), UNDER)
