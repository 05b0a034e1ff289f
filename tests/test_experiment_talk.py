"""The experiments in which models read texts: planted readers, identical samples, flips."""

import argparse

import pytest

from benchmarks.experiments import debate, page, selectors, synthesis, wording
from benchmarks.experiments.pool import Pool
from benchmarks.experiments.reader import Reader
from benchmarks.experiments.search import solve
from parallel_decode import Engine, SamplingParams
from parallel_decode.questions import load_questions
from parallel_decode.reasoning import Author
from tests.scripted_author import Scripted
from tests.test_experiments import pool as small_pool

PARAMS = SamplingParams(max_tokens=160)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 15)


@pytest.fixture(scope="module")
def pool(engine: Engine) -> Pool:
    return Pool.sample(engine, load_questions("chain", 6), 4, PARAMS, 0)


def arguments(**settings) -> argparse.Namespace:
    base = {"frame": None, "quote": None, "trained": False, "model": "reasoner"}
    return argparse.Namespace(**{**base, **settings})


def first_shown(shown: str) -> str:
    return shown.split("[1] ")[1].split("\n\n[2]")[0]


def test_a_planted_reader_of_identical_samples(engine, pool):
    """One that copies the first candidate: what it gives is a trace of its question, or, of the
    control, of the next one."""
    shown = wording.worded(arguments(), "synthesis", "reasoner")
    reader = Reader(Scripted(says=first_shown), shown, 3)
    for strangers in (False, True):
        readings = reader.read(engine, pool, 4, strangers=strangers)
        for number, row in enumerate(readings.syntheses):
            assert len(row) == 3
            source = pool.traces[(number + strangers) % 6]
            assert {s.text for s in row} <= {t.text for t in source}
    columns = synthesis.collapse_columns([reader.read(engine, pool, 4)])
    assert columns["copies"] == columns["first_copied"] == 1


def test_a_perfect_and_a_copying_reader():
    """Two of four majorities are wrong, one of these beside a right answer."""
    pool = small_pool("abb", "aab", "bbb", "aaa")
    rows = {
        name: synthesis.compared([pool], synthesis.chosen([pool], choice, 3), 3, 6.0)
        for name, choice in (("copy", selectors.majority), ("perfect", selectors.oracle))
    }
    copy, perfect = rows["copy"], rows["perfect"]
    assert copy["gain"] == copy["harm"] == copy["rescue"] == copy["lost_right"] == 0
    assert perfect["gain"] == 0.25 and perfect["rescue"] == 0.5 and perfect["harm"] == 0
    assert perfect["lost_questions"] == perfect["lost_right"] == 1
    assert perfect["super_oracle"] == 0
    # As many tokens as two of the traces have.
    assert copy["equal_tokens"] == 6


def test_a_model_reads_and_is_counted(engine, pool):
    params = SamplingParams(temperature=0, max_tokens=8)
    reader = Reader(Author(params), wording.worded(arguments(), "synthesis", "reasoner"), 2)
    readings = reader.read(engine, pool, 2)
    assert 0 < readings.generated_tokens <= 8 < readings.computed_tokens
    assert len(readings.answers) == 6 and engine.blocks_in_use == 0


def test_weights_of_a_token():
    large, small = (
        synthesis.num_weights(Engine.from_pretrained(name, threads=1, kv_tokens=16))
        for name in ("reasoner", "reasoner-draft")
    )
    assert 0 < small < large


def test_wording(tmp_path):
    frame = tmp_path / "frame.txt"
    frame.write_text("<{texts}>")
    given = arguments(frame=frame)
    for model in ("reasoner", "reasoner-judge"):
        assert wording.worded(given, "synthesis", model).of(["a"]) == "<\n\n[1] a>"
        assert "was not trained" in wording.training(given, model)
    assert "was not trained" not in wording.training(arguments(trained=True), "reasoner")


def test_the_wording_that_a_model_was_taught():
    """In the order of the numbers; an agent's own solution is the last one."""
    taught = arguments()
    assert "was trained" in wording.training(taught, "reasoner-judge")
    shown = wording.worded(taught, "mixture", "reasoner-judge").of(["x", "y", "z"])
    assert shown.endswith("<candidate>3\nz\n<synthesis>")
    assert wording.worded(taught, "debate", "reasoner-judge", 2).of(["x", "y"], own="z") == shown


def test_every_debate_runs_and_begins_as_samples(engine):
    args = arguments(agents=2, temperature=1.0, max_tokens=60, second="reasoner-draft")
    second = Engine.from_pretrained("reasoner-draft", threads=1, kv_tokens=1 << 15)
    questions = load_questions("chain", 3)
    strangers = debate.answers_to_another(
        argparse.Namespace(**vars(args), data="chain"), engine, questions
    )
    assert len(strangers) == 2
    stored = Pool.sample(engine, questions, 2, SamplingParams(max_tokens=60), 0)
    for name in debate.methods(args, second, strangers, questions[0].extract):
        runs = [
            solve(
                engine,
                questions,
                name,
                lambda extract, place=place: {
                    key: pair[place]
                    for key, pair in debate.methods(args, second, strangers, extract).items()
                },
                0,
            )
            for place in (0, 1)
        ]
        row = debate.compared([runs[0]], [runs[1]], [stored])
        assert row["accuracy"] - row["before"] == pytest.approx(
            row["wrong_to_right"] - row["right_to_wrong"]
        )
        if "with" not in name:
            for solution, traces in zip(runs[1].solutions, stored.traces, strict=True):
                assert [p.text for p in solution.paths] == [t.text for t in traces], name
    assert engine.blocks_in_use == second.blocks_in_use == 0


def test_flips():
    assert debate.flips([1, 1, 0, 0], [1, 0, 1, 0]) == (0.25, 0.25)


def test_their_sections():
    gains = {"gain": 0.2, "gain_low": 0.1, "gain_high": 0.3}
    equal = {f"equal_{key}": -value for key, value in gains.items()}
    equal["equal_gain_low"], equal["equal_gain_high"] = -0.3, -0.1
    row = {"method": "synthesis", "n": 4, "copies": 0.5, **gains, **equal}
    text = "\n".join(page.synthesis([row]))
    assert "- Won: synthesis +0.200" in text and "- Lost: synthesis -0.200" in text
    row = {"method": "debate", "right_to_wrong": 0.1, "wrong_to_right": 0.3, **gains}
    text = "\n".join(page.debate([row]))
    assert "0.100 of the questions from right to wrong, 0.300 from wrong to right" in text
