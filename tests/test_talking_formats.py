"""The formats of `reasoner-peers`: answers come from what workers see and what paths are told."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.experiments.interaction import (
    EXTRACT,
    PATHS,
    paths_right,
    peers,
    solved,
    team,
)
from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Extend
from parallel_decode.reasoning.interaction.reasoner_format import (
    AGREE,
    HEARD,
    PEERS,
    SHARE,
    TEAM,
    WORKER_SPAN,
    reasoner_peers,
    reasoner_team,
)
from parallel_decode.tasks import load_split
from parallel_decode.tasks.program import Program
from tests.accuracy import assert_as_accurate_as_torch
from tests.training_text import TrainingText

ROOT = Path(__file__).resolve().parent.parent
GREEDY = SamplingParams(temperature=0, max_tokens=80)
SAMPLED = SamplingParams(temperature=1.0, max_tokens=80)
EXCHANGE = re.compile(f"\n{SHARE}(\\w)=(\\d+)\n{HEARD}((?:\\1=\\d+\n)*){AGREE}(\\1=\\d+)\n")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner-peers", threads=1, kv_tokens=1 << 16)


@pytest.mark.parametrize("difficulty", [2, 5])
def test_the_training_form_is_what_workers_compute(monkeypatch, engine, difficulty):
    """Logits at all that is learned, of the masked text and of branches that see each other; a text
    whose workers also see what comes at the same time must differ."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    text = TrainingText.of("format_workers", "reasoner-peers", ("dag", difficulty))
    exact, single = text.dense(torch.float64), text.dense(torch.float32)
    first = len(text.prompt) + 1  # the tag of the team
    root = engine.prefill(text.tokens[:first])
    size = {2: 2, 5: 3}[difficulty]
    kids = engine.fork(root, size, positions="disjoint_ranges", lengths=[WORKER_SPAN])
    for kid in kids:
        engine.see(kid, [other for other in kids if other is not kid], 0)
    rounds: dict[int, list[tuple[int, int]]] = {}
    for number in range(first, len(text.tokens)):
        worker, step = divmod(text.positions[number] - first, WORKER_SPAN)
        rounds.setdefault(step, []).append((worker, number))
    for together in rounds.values():

        def program(together=together):
            yield [Extend([kids[worker]], tokens=[text.tokens[n]]) for worker, n in together]

        engine.run_program(program())
        for worker, number in together:
            logits = kids[worker].logits
            assert_as_accurate_as_torch(logits, exact[number], single[number])
    seeing = text.dense(torch.float32, text.causal)
    assert not torch.allclose(seeing[first:], single[first:].float(), atol=1e-2)
    engine.prune([root, *kids])


def test_workers_need_what_they_see(engine):
    """Cut off from each other they know nothing of the others' values; chance is 0.06."""
    problems = load_split("test", 60, 0, {("dag", 3): 1})
    right = {
        seen: paths_right(problems, solved(engine, problems, team(2, GREEDY, seen), 1)).mean()
        for seen in ("team", "nobody", "strangers")
    }
    assert right["team"] > 0.6
    assert right["nobody"] < 0.2 and right["strangers"] < 0.2
    assert engine.blocks_in_use == 0


def test_paths_exchange_in_the_form_of_the_training(engine):
    """Each time after so many steps; they hear all the others."""
    problems = load_split("test", 12, 0, {("chain", 12): 1})
    method = reasoner_peers(3, 4, 4, SAMPLED, EXTRACT)
    for solution in engine.solve_many([p.question + PEERS for p in problems], method, seed=1):
        for path in solution.paths:
            parts = EXCHANGE.split(path.text)
            assert [part.count("\n") for part in parts[::5]][:3] == [4, 3, 3], path.text
            assert all(heard.count("\n") == 2 for heard in parts[3::5])
    assert engine.blocks_in_use == 0


def test_a_path_goes_on_with_what_most_say(engine):
    """Of the exchanges in which one value has a majority."""
    problems = load_split("test", 40, 0, {("chain", 12): 1})
    followed = []
    for row in solved(engine, problems, peers(SAMPLED, "summaries"), 1):
        for path in (path for solution in row for path in solution.paths):
            for name, own, heard, agreed in EXCHANGE.findall(path.text):
                said = [f"{name}={own}", *heard.split()]
                most = max(said, key=said.count)
                if said.count(most) > PATHS / 2:
                    followed.append(agreed == most)
    assert len(followed) > 300
    assert sum(followed) / len(followed) > 0.95


def test_poisoned_paths_are_freed_by_the_others(engine):
    """Not by themselves, and not by what is told of another question."""
    problems = load_split("test", 40, 0, {("chain", 12): 1})
    freed = {
        told: paths_right(problems, solved(engine, problems, peers(SAMPLED, told, "half"), 1))[
            ..., 1::2
        ].mean()
        for told in ("nothing", "summaries", "strangers")
    }
    # By themselves some come right: a product may make a wrong value right again.
    assert freed["summaries"] > 0.3 + max(freed["nothing"], freed["strangers"])


def test_the_answers_of_a_team_vote(engine):
    [problem] = load_split("test", 1, 0, {("dag", 7): 1})
    size = len(Program.parse(problem.question).groups) - 1
    solution = engine.solve(problem.question + TEAM, reasoner_team(size, GREEDY, EXTRACT))
    assert len(solution.paths) == size == 4
    assert [path.text.split("\n")[0][-1] for path in solution.paths] == list("1234")
    assert solution.answer in {path.answer for path in solution.paths}
