"""Extractors of every kind: plain, batched, asynchronous, of JSON and code, of expressions."""

import asyncio
import importlib
import time

import pytest

from parallel_decode import Engine, SamplingParams, SelfConsistency
from parallel_decode.reasoning import extract, symbolic
from parallel_decode.reasoning.extraction import Batched, answers_of, normalised
from tests.tiny_model import tiny_checkpoint

PARAMS = SamplingParams(max_tokens=12)


async def slow_first_letter(text: str) -> str | None:
    await asyncio.sleep(0.05)
    return text[:1] or None


async def all_first_letters(texts: list[str]) -> list[str | None]:
    await asyncio.sleep(0)
    return [text[:1] or None for text in texts]


FIRST_LETTER = {
    "plain": lambda text: text[:1] or None,
    "async": slow_first_letter,
    "batched": Batched(lambda texts: (text[:1] or None for text in texts)),
    "batched async": Batched(all_first_letters),
}


@pytest.mark.parametrize("kind", FIRST_LETTER)
def test_every_kind_of_callable_gives_the_same_votes(kind):
    engine = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14)
    plain = engine.solve("hello", SelfConsistency(6, PARAMS, FIRST_LETTER["plain"]))
    solution = engine.solve("hello", SelfConsistency(6, PARAMS, FIRST_LETTER[kind]))
    assert solution.votes == plain.votes and solution.votes
    assert [path.answer for path in solution.paths] == [path.answer for path in plain.paths]


def test_async_extractors_run_together():
    start = time.perf_counter()
    assert answers_of(slow_first_letter, ["ab"] * 40) == ["a"] * 40
    assert time.perf_counter() - start < 1  # 40 x 0.05 s one by one


def test_an_async_extractor_runs_where_a_loop_is_running():
    async def main() -> list[str | None]:
        return answers_of(slow_first_letter, ["xy", ""])

    assert asyncio.run(main()) == ["x", None]


def test_answers_are_text_numbers_or_none():
    assert answers_of(len, ["ab", ""]) == ["2", "0"]
    assert answers_of(FIRST_LETTER["batched"], []) == []
    with pytest.raises(TypeError, match=r"text, a number or None, got \['a'\]"):
        answers_of(list, ["a"])
    with pytest.raises(ValueError, match="gave 1 answers for 2 texts"):
        answers_of(Batched(lambda texts: ["a"]), ["a", "b"])


@pytest.mark.parametrize(
    "broken",
    [
        Batched(lambda texts: ["x"]),
        Batched(lambda texts: 1 / 0),
        lambda text: ["no", "answer"],
        slow_first_letter(""),  # no callable at all
    ],
    ids=["wrong number", "raises", "wrong kind", "no callable"],
)
def test_a_bad_extractor_fails_its_question_only(broken):
    engine = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14)
    [failed] = engine.solve_many(["hello"], SelfConsistency(3, PARAMS, broken))
    assert isinstance(failed, Exception)
    assert engine.blocks_in_use == 0
    assert engine.solve("hello", SelfConsistency(3, PARAMS, FIRST_LETTER["plain"])).paths
    if hasattr(broken, "close"):
        broken.close()


def test_normalised_answers_are_one_vote():
    texts = ["Answer: The Cat.", "answer: the  cat", 'Answer: "THE CAT"', "Answer: 1,000.50", ""]
    one = normalised(extract.pattern(r"(?i)answer: (.*)"), extract.spelling)
    assert answers_of(one, texts) == ["the cat", "the cat", "the cat", "1000.5", None]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"value": 3}', "3"),
        ('so {"value": 3.0} or {"value": " x "}', "x"),
        ('{"value": {"b": 1, "a": [1, null]}}', '{"a": [1, null], "b": 1}'),
        ('{"value": 1} {"other": 2} {', "1"),
        ('{"value": null}', None),
        ('{"value": ""}', None),
        ('{"value": true}', "true"),
        ('{{"value": "in braces"}}', "in braces"),
        ("{" * 3000, None),
        ('{"value":' * 3000, None),
        ("none", None),
    ],
)
def test_json_field(text, answer):
    assert extract.json_field("value")(text) == answer


def test_json_field_by_a_path():
    assert extract.json_field("a.b")('{"a": 1} {"a": {"b": 2}} {"a": {"c": 3}}') == "2"
    with pytest.raises(ValueError, match="no path of names"):
        extract.json_field("a.")


@pytest.mark.parametrize(
    ("text", "language", "code"),
    [
        ("```python\nx = 1\n```", None, "x = 1"),
        ("```\na\n```\nthen\n~~~js\n  b\n    c\n~~~\n", None, "b\n  c"),
        ("```python\na\n```\n```js\nb\n```", "Python", "a"),
        ("````md\n```\ninner\n```\n````", None, "```\ninner\n```"),
        ("```python\nnot closed", None, None),
        ("```\n\n```", None, None),
        ("x ``` y", None, None),
    ],
)
def test_code_block(text, language, code):
    assert extract.code_block(language)(text) == code


SAME = [
    ["1/2", "0.5", r"\frac{1}{2}", r"\dfrac12", "$0.50$", ".5", "2/4", "x = 1/2"],
    ["(x+1)^2", "x^2+2x+1", "x**2 + 2*x + 1", r"x^{2} + 2x + 1", "(1+x)(x+1)"],
    [r"2\sqrt{2}", "sqrt(8)", r"\sqrt8", "8^(1/2)"],
    ["1,000", "1000", "10^3", "1000."],
    ["(1, 2)", "(2/2,2)"],
    [r"\frac{\pi}{2}", "pi/2", "\u03c0/2"],
    ["sqrt(x^2)", "abs(x)"],
    ["x"],
    ["pi"],
    ["3.14159265358979"],
    ["dog bites man"],
    ["man bites dog"],
    ["(2, 1)"],
    ["9**9**9**9"],
    ["1/0"],
    ["2/0"],
    ["__import__('os').system('true')"],
    ["1 if 1 else 2"],
    ["True"],
]


def test_equal_expressions_are_one_answer_and_others_are_not():
    answers = [answer for group in SAME for answer in group]
    expected = [group[0] for group in SAME for _ in group]
    assert symbolic.merged(answers) == expected
    assert symbolic.merged([None, "1/2", None, "0.5"]) == [None, "1/2", None, "1/2"]


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9**9",
        "1.000001**100000000",
        "exp(exp(exp(exp(9))))",
        "(" * 190 + "1" + ")" * 190,
        "-" * 390 + "1",
        "9**" * 130 + "9",
        "1" * 5000,
        r"\frac{" * 60,
        "x" * 400,
        "(1+x)**(" * 40 + "2" + ")" * 40,
    ],
    ids=lambda text: text[:12],
)
def test_hostile_answers_take_no_time(text):
    start = time.process_time()
    symbolic.merged([text, f"{text} + 0", "1"])
    assert time.process_time() - start < 2


def test_votes_of_equal_expressions_add_up():
    texts = iter([r"so \boxed{1/2}", r"\boxed{0.5}", r"\boxed{3}", r"\boxed{3.1}"])
    assert answers_of(extract.named("symbolic:boxed"), list(texts)) == ["1/2", "1/2", "3", "3.1"]


def test_without_sympy_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(symbolic, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'parallel_decode\[math\]'"):
        symbolic.symbolic(extract.boxed)
    assert importlib.import_module is not missing


def test_extractors_by_name():
    assert extract.named("json:a.b")('{"a": {"b": 7}}') == "7"
    assert extract.named("code")("```\nx\n```") == "x"
    assert extract.named("text")(" x y ") == "x y"
    with pytest.raises(ValueError, match=r"no extractor 'json:': use number, .*symbolic:NAME"):
        extract.named("json:")
