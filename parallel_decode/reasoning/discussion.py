"""`Discussion`: rounds of texts that authors wrote about one question, of one or several models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from parallel_decode.engine import Branch, Prune, Steps
from parallel_decode.reasoning.author import Author, Reply, UnreadableError
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.gather import gather
from parallel_decode.reasoning.pipeline import Question
from parallel_decode.reasoning.solution import Path, Solution
from parallel_decode.reasoning.vote import tally


@dataclass
class Discussion:
    """What was said so far.

    Attributes:
        question: the branch that holds it, on the engine that solves it.
        rounds: replies, in the order of those who were asked.
        warnings: for the solution.
    """

    question: Branch
    rounds: list[list[Reply]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def last(self) -> list[Reply]:
        return self.rounds[-1]

    @property
    def over(self) -> bool:
        """Whether nobody said anything in the last round, or the run was stopped."""
        return any(reply.cut_off for reply in self.last) or all(reply.error for reply in self.last)

    def ask(self, authors: Sequence[Author], shown: Sequence[str]) -> Steps:
        """A round: each author writes behind the question and its text, all of them side by side
        -> list[Reply]. The branches of the round before are pruned; their texts stay.

        Raises:
            ValueError: a model can't read what another one wrote; the message names both.
        """
        if self.rounds:
            yield Prune([branch for branch in map(self._own, self.last) if branch is not None])
        groups: dict[int, list[int]] = {}
        for place, author in enumerate(authors):
            groups.setdefault(id(author), []).append(place)
        written = yield from gather(
            [
                self._written(authors[at[0]], [shown[place] for place in at], authors)
                for at in groups.values()
            ]
        )
        replies = [Reply("")] * len(authors)
        for at, group in zip(groups.values(), written, strict=True):
            for place, reply in zip(at, group, strict=True):
                replies[place] = reply
        self.rounds.append(replies)
        failed = [reply.error for reply in replies if reply.error]
        if failed:
            self.warnings.append(
                f"{len(failed)} of {len(replies)} replies of round {len(self.rounds)} failed:"
                f" {failed[0]}"
            )
        return replies

    def _own(self, reply: Reply) -> Branch | None:
        """The branch that wrote a reply, where it is one of the engine that solves the question."""
        root = reply.branch
        while root is not None and root.parent is not None:
            root = root.parent
        return reply.branch if root is self.question else None

    def _written(self, author: Author, shown: Sequence[str], authors: Sequence[Author]) -> Steps:
        try:
            return (yield from author.write(self.question, shown))
        except UnreadableError as error:
            others = {a.name for a in authors} | {"the engine's own model"}
            names = ", ".join(sorted(others - {author.name})) or "the template"
            raise ValueError(
                f"{author.name} {error}, in a text that it is shown: it can't read what comes"
                f" of {names}"
            ) from error

    def conclude(
        self,
        extract: Extractor,
        replies: Sequence[Reply] | None = None,
        weights: Sequence[float] | None = None,
        answers: Sequence[str | None] | None = None,
    ) -> Solution:
        """The vote of some replies.

        Args:
            extract: text of a reply to its answer.
            replies: None for those of the last round.
            weights: of their votes; None for 1 each.
            answers: of the replies, where they are known.
        """
        replies = self.last if replies is None else replies
        if answers is None:
            answers = self.answers(extract, replies)
        given = [1.0] * len(replies) if weights is None else weights
        given = [0.0 if a is None else float(w) for a, w in zip(answers, given, strict=True)]
        paths = [
            Path.told(reply.text, answer, weight, reply.error)
            if reply.branch is None
            else Path.of(reply.branch, answer, weight)
            for reply, answer, weight in zip(replies, answers, given, strict=True)
        ]
        named = {
            id(reply.branch): answer
            for reply, answer in zip(replies, answers, strict=True)
            if reply.branch is not None
        }
        solution = Solution.across(self.question, paths, named, tally(answers, given))
        solution.warnings += self.warnings
        return solution

    @staticmethod
    def answers(extract: Extractor, replies: Sequence[Reply]) -> list[str | None]:
        """Of each reply, None for one that failed."""
        sound = [reply for reply in replies if reply.error is None]
        found = iter(answers_of(extract, [reply.text for reply in sound]))
        return [next(found) if reply.error is None else None for reply in replies]


@dataclass(frozen=True)
class Conclude:
    """A: the vote of the last round of a discussion.

    Args:
        extract: text of a reply to its answer.
    """

    extract: Extractor

    def __call__(self, question: Question, talk: Discussion) -> Steps:
        yield from ()
        return talk.conclude(self.extract)
