"""`ReadInOrder`: the aggregation of texts that were written as trees."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.program import Steps
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.pipeline import Question
from parallel_decode.reasoning.solution import Path, Solution
from parallel_decode.reasoning.vote import tally


@dataclass(frozen=True)
class ReadInOrder:
    """A: reads each tree from its root down, child after child, and lets the answers vote.

    Args:
        extract: the whole text of a tree to its answer.
        warn: called at the end, what is to be added to the warnings.
    """

    extract: Extractor
    warn: Callable[[], list[str]] = list

    def __call__(self, question: Question, branches: Sequence[Branch]) -> Steps:
        yield from ()
        orders = [list(_walk(branch)) for branch in branches]
        texts = ["".join(node.own_text for node in order) for order in orders]
        answers = answers_of(self.extract, texts)
        votes = tally(answers, [1.0] * len(answers))
        ids = [id(branch) for branch in branches]
        weights = {key: float(a is not None) for key, a in zip(ids, answers, strict=True)}
        solution = Solution.of(
            branches,
            dict(zip(ids, answers, strict=True)),
            weights,
            votes,
            votes[0][0] if votes else None,
        )
        solution.paths = [
            _whole(path, text, order)
            for path, text, order in zip(solution.paths, texts, orders, strict=True)
        ]
        solution.warnings += self.warn()
        return solution


def _walk(branch: Branch) -> Iterator[Branch]:
    yield branch
    for child in branch.children:
        yield from _walk(child)


def _whole(path: Path, text: str, order: Sequence[Branch]) -> Path:
    """The path of a tree's root with what all of it has written."""
    own = [(branch, len(branch.own_tokens)) for branch in order]
    records = [record for branch, n in own for record in branch.records[len(branch.records) - n :]]
    return replace(
        path,
        text=text,
        tokens=[token for branch, _ in own for token in branch.own_tokens],
        logprobs=[record.logprob for record in records],
    )
