"""The experiment of branches that talk: what is poisoned, told and counted, on a small run."""

import numpy as np
import pytest

from benchmarks.experiments import interaction, page
from parallel_decode import Engine, SamplingParams
from parallel_decode.reasoning.interaction.reasoner_format import HEARD, SHARE
from parallel_decode.tasks import load_split
from parallel_decode.tasks.program import Program

PARAMS = SamplingParams(max_tokens=80)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner-peers", threads=1, kv_tokens=1 << 16)


@pytest.fixture(scope="module")
def problems():
    return load_split("test", 8, 0, {("chain", 12): 1})


def test_half_of_the_paths_begin_wrong(engine, problems):
    [row] = interaction.solved(engine, problems, interaction.peers(PARAMS, "nothing", "half"), 1)
    for problem, solution in zip(problems, row, strict=True):
        given = Program.parse(problem.question).groups[0][0]
        for number, path in enumerate(solution.paths):
            first, step = path.text.split("\n")[:2]
            if number % 2:
                assert first == str(given)
                assert step not in Program.parse(problem.question).gold_lines
            assert path.text.split(SHARE)[0].count("\n") == interaction.STEPS + 1


def test_strangers_are_the_next_question(engine, problems):
    [row] = interaction.solved(engine, problems, interaction.peers(PARAMS, "strangers"), 1)
    for number, solution in enumerate(row):
        values = Program.parse(problems[(number + 1) % len(problems)].question).values
        [heard, *_] = solution.paths[0].text.split(HEARD)[1].split("<")
        told = heard.split()
        assert len(told) == interaction.PATHS - 1
        for line in told:
            name, value = line.split("=")
            assert values[name] == int(value)


def test_isolated_paths_are_the_others_until_they_hear(engine, problems):
    rows = [
        interaction.solved(engine, problems, interaction.peers(PARAMS, told), 1)[0]
        for told in ("nothing", "summaries")
    ]
    for alone, talking in zip(*rows, strict=True):
        for one, other in zip(alone.paths, talking.paths, strict=True):
            assert one.text.split(HEARD)[0] == other.text.split(HEARD)[0]
    extra = interaction.cost([rows[1]], [rows[0]])["extra_tokens"]
    generated = [np.mean([s.usage.generated_tokens for s in row]) for row in rows]
    assert extra == pytest.approx(generated[1] - generated[0])


def test_the_page_tells_of_all_parts():
    gains = {"gain": 0.2, "gain_low": 0.1, "gain_high": 0.3}
    costs = {"generated_tokens": 10.0, "forward_steps": 5.0, "chance": 0.1}
    rows = [
        {"puzzle": "dag 2x3", "method": name, "accuracy": 0.5, **gains, **costs}
        for name in ("isolated chains", "live")
    ]
    told = {"freed": 0.5, "infected": 0.1, "rescued": 0.2, "recovery": None, "accuracy": 0.5}
    rows.append({"puzzle": "trap 12", "method": "summaries", "poisoned": "half", **gains, **told})
    text = "\n".join(page.interaction(rows))
    assert "- Won: live +0.200 (+0.100 to +0.300)." in text
    assert "told summaries: 0.500 of these end right" in text
