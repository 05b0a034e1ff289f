"""Questions of the bundled tasks, of files and of reasoning-gym, and what a model gets of them."""

import importlib.util
import json
import random
import sys
from types import SimpleNamespace

import pytest

from parallel_decode import Engine, SelfConsistency
from parallel_decode.questions import Question, asked, load_questions, prompt_of
from parallel_decode.reasoning.extract import last_number
from tests.tiny_model import tiny_checkpoint

HAS_GYM = importlib.util.find_spec("reasoning_gym") is not None


def write(path, *rows) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_questions_of_one_task():
    found = load_questions("dag", 5)
    assert len(found) == 5 and {question.kind for question in found} == {"dag"}
    for question in found:
        assert question.problem is not None
        assert question.is_right(question.problem.answer) and not question.is_right(None)


def test_answers_of_a_file_are_read_as_their_kind_is_written(tmp_path):
    file = write(
        tmp_path / "few.jsonl",
        {"question": "1+1?", "answer": "1+1=2\n#### 1,002"},
        "",
        {"question": "half?", "answer": r"so 1 of 2, it is \boxed{\frac{1}{2}}"},
        {"question": "bare?", "answer": 14},
        {"question": "who?", "answer": "Euler"},
    )
    marked, half, bare, name = load_questions(file, 4)
    assert marked.prompt == "1+1?" and marked.kind == "few"

    def right(question: Question, text: str) -> bool:
        return question.is_right(*question.answers([text]))

    assert right(marked, "3, no, 1002.") and right(marked, "$1,002.00")
    assert not right(marked, "2") and not right(marked, "I do not know")
    assert (
        right(half, r"\boxed{\frac{1}{2}}") and right(half, r"\boxed{0.5}") and right(half, "1/2")
    )
    assert not right(half, r"\boxed{2}") and not right(half, r"\boxed{\frac{1}{2")
    assert right(bare, "it is 14") and not right(bare, "it is 4")
    assert right(name, r"\boxed{Euler}") and not right(name, r"\boxed{Gauss}")


def test_bad_files_are_named(tmp_path):
    good = {"question": "x", "answer": "1"}
    with pytest.raises(ValueError, match="has 1 questions, 3 are asked for"):
        load_questions(write(tmp_path / "short.jsonl", good), 3)
    for bad in ('{"question": "x"}', "[1]", "no json", "3"):
        with pytest.raises(ValueError, match=r'bad.jsonl:2 is no object with "question"'):
            load_questions(write(tmp_path / "bad.jsonl", good, bad), 2)
    with pytest.raises(ValueError, match="no questions 'nothing'"):
        load_questions("nothing", 1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        load_questions("test", 0)


class FakeData(list):
    def score_answer(self, answer: str, entry: dict) -> float:
        return 1.0 if answer == entry["answer"] else 0.01


def fake_gym(*answers: str) -> SimpleNamespace:
    def create_dataset(name: str, size: int, seed: int) -> FakeData:
        if name != "known":
            raise ValueError(f"Dataset '{name}' not registered")
        return FakeData({"question": f"{a}?", "answer": a} for a in answers[:size])

    return SimpleNamespace(create_dataset=create_dataset)


def test_gym_answers_are_read_as_the_task_has_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", fake_gym("7", "-12"))
    seven, _ = load_questions("gym:known", 2)
    assert seven.answers(["<answer> 7 </answer> of 9", r"\boxed{7}, not 8", "it is 7", "no"]) == [
        *["7"] * 3,
        None,
    ]
    assert seven.is_right("7") and not seven.is_right("8")
    monkeypatch.setitem(sys.modules, "reasoning_gym", fake_gym("7", "left"))
    _, left = load_questions("gym:known", 2)
    assert left.answers(["I go\nleft\n", "<answer>left</answer>.", " "]) == ["left", "left", None]
    with pytest.raises(ValueError, match="reasoning-gym has no task 'other'"):
        load_questions("gym:other", 1)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match="gym:known needs reasoning-gym: pip install"):
        load_questions("gym:known", 1)


@pytest.mark.skipif(not HAS_GYM, reason="reasoning-gym is not installed")
@pytest.mark.parametrize("task", ["chain_sum", "countdown", "letter_counting"])
def test_gym_itself(task):
    # Its tasks draw from the global random numbers now and then.
    random.seed(0)
    questions = load_questions(f"gym:{task}", 4)
    library = sys.modules["reasoning_gym"]
    data = library.create_dataset(task, size=4, seed=0)
    for question, entry in zip(questions, data, strict=True):
        assert question.prompt == entry["question"] and question.kind == task
        answer = f"<answer>{entry['answer']}</answer>"
        assert question.is_right(*question.answers([answer]))
        assert not question.is_right(*question.answers(["<answer>0.123</answer>"]))


def test_a_model_is_asked_in_its_own_format(tmp_path):
    engine = Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 12)
    assert prompt_of(engine, "x?") == prompt_of(engine, "x?\n") == "x?\n"
    other = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 10)
    assert other.chat_template is None and prompt_of(other, "x?") == "x?"
    questions = [Question("x?", "k", last_number, str.isdigit), Question([1, 2], "k", str, bool)]
    assert [question.prompt for question in asked(engine, questions)] == ["x?\n", [1, 2]]


def test_each_question_has_a_method_of_its_own():
    engine = Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 14)
    questions = [*load_questions("countdown", 2), *load_questions("dag", 1)]
    methods = [SelfConsistency(2 + i, extract=q.extract) for i, q in enumerate(questions)]
    together = engine.solve_many([q.prompt for q in questions], methods)
    for question, method, solution in zip(questions, methods, together, strict=True):
        assert len(solution.paths) == method.n
        assert (
            solution.as_dict()["paths"] == engine.solve(question.prompt, method).as_dict()["paths"]
        )
    with pytest.raises(ValueError, match="3 methods for 1 questions"):
        engine.solve_many(["a"], methods)
