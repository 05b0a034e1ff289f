"""Operations of a Graph of Thoughts: from some thoughts to others."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from parallel_decode.engine import Branch, Extend, Fork, Join, Prune, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.scorer import Scorer, ranked, score_branches


@dataclass(frozen=True)
class Thinker:
    """What operations work with: the question's branch, how thoughts are drawn and scored."""

    question: Branch
    params: SamplingParams
    scorer: Scorer


class ThoughtOperation(ABC):
    """Takes branches, the thoughts so far, and returns others; what it drops it prunes."""

    @abstractmethod
    def apply(self, thinker: Thinker, thoughts: list[Branch]) -> Steps: ...


@dataclass(frozen=True)
class Generate(ThoughtOperation):
    """`n` thoughts that go on from each.

    Args:
        n: of each.
        lead: text put in front of each.
    """

    n: int
    lead: str = ""

    def __post_init__(self) -> None:
        at_least(1, n=self.n)

    def apply(self, thinker: Thinker, thoughts: list[Branch]) -> Steps:
        families = yield [Fork(thought, self.n) for thought in thoughts]
        kids = [kid for family in families for kid in family]
        yield Extend(kids, thinker.params, self.lead)
        # The children hold what they share; the question stays for aggregates to come.
        yield Prune([thought for thought in thoughts if thought is not thinker.question])
        return [kid for kid in kids if kid.status != "failed"]


@dataclass(frozen=True)
class Refine(ThoughtOperation):
    """Each thought is followed by a lead that asks for a better one, and by the answer to that. The
    better of the two stays: a refinement that scores lower is dropped.

    Args:
        lead: text that asks for it.
        rounds: how often.
    """

    lead: str
    rounds: int = 1

    def __post_init__(self) -> None:
        if not self.lead:
            raise ValueError("lead must not be empty")
        at_least(1, rounds=self.rounds)

    def apply(self, thinker: Thinker, thoughts: list[Branch]) -> Steps:
        yield from score_branches(thinker.scorer, thoughts)
        for _ in range(self.rounds):
            forks = yield [Fork(thought) for thought in thoughts]
            drafts = [draft for [draft] in forks]
            yield Extend(drafts, thinker.params, self.lead)
            sound = [draft for draft in drafts if draft.status != "failed"]
            yield from score_branches(thinker.scorer, sound)
            better = []
            for thought, draft in zip(thoughts, drafts, strict=True):
                better.append(ranked([thought, draft])[0])
                loser = draft if better[-1] is thought else thought
                if loser is not thinker.question:
                    yield Prune([loser])
            thoughts = better
        return thoughts


@dataclass(frozen=True)
class Aggregate(ThoughtOperation):
    """One thought out of all: the question, the text of each thought, and what the model makes of
    them.

    Args:
        separator: text put behind each thought.
        lead: text put behind all.
        n: answers drawn.
    """

    separator: str = "\n"
    lead: str = ""
    n: int = 1

    def __post_init__(self) -> None:
        at_least(1, n=self.n)

    def apply(self, thinker: Thinker, thoughts: list[Branch]) -> Steps:
        if not thoughts:
            return []
        # As text, without the end of sequence behind a thought.
        texts = Join(
            thinker.question,
            thoughts,
            "answer",
            separator=self.separator,
            extract=lambda thought: thought.text,
        )
        joined = yield texts
        yield Prune([thought for thought in thoughts if thought is not thinker.question])
        return (yield from Generate(self.n, self.lead).apply(thinker, [joined]))


@dataclass(frozen=True)
class KeepBest(ThoughtOperation):
    """The `n` thoughts that score highest."""

    n: int

    def __post_init__(self) -> None:
        at_least(1, n=self.n)

    def apply(self, thinker: Thinker, thoughts: list[Branch]) -> Steps:
        yield from score_branches(thinker.scorer, thoughts)
        order = ranked(thoughts)
        yield Prune(order[self.n :])
        return order[: self.n]
