"""The models that `train_formats.py` trains, and the texts that teach them.

A format is a module with `TAGS`, the control tokens that it adds to the vocabulary, and
`write(text, question, problem, encode, rng)`, which appends one solved example to a
`BranchingText` behind the view `question`, or nothing where the format is not for such a problem.
All formats of a problem stand in one text, behind the same question, and don't see each other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from types import ModuleType

import format_candidates
import format_chain
import format_fork_join
import format_peers
import format_tools
import format_workers
from branching_text import BranchingText, encoder
from tokenizers import AddedToken, Tokenizer

from parallel_decode.tasks import TASKS, Problem, split_of
from parallel_decode.tasks.dag import Dag
from parallel_decode.tasks.program import NAMES

# Short sub-chains are drawn more often: of what is hard, which is to find again the values that are
# reduced, they hold more in as many tokens.
LENGTHS = (1, 1, 2, 1, 2, 1, 3, 2, 4, 3)
CHAIN_STEPS = range(2, 17)


@dataclass(frozen=True)
class Plan:
    """How one model is trained.

    Attributes:
        base: the model that it begins as.
        formats: that each text holds, where they are for its problem.
        widths: of the DAGs, smallest first.
        chains: share of the problems that are chains.
        chain_form: share of the texts that hold the chain format besides.
        easy: share of the training in which the larger problems come in one after the other.
        batch_tokens: of a step, with padding; more of longer texts.
    """

    name: str
    base: str
    formats: tuple[ModuleType, ...]
    widths: range
    chains: float
    chain_form: float
    easy: float
    minutes: float
    learning_rate: float
    batch_tokens: int = 1500


PLANS = {
    plan.name: plan
    for plan in (
        Plan(
            "reasoner-formats",
            "reasoner",
            (format_fork_join,),
            range(2, 9),
            chains=0.1,
            chain_form=0.4,
            easy=0.4,
            minutes=18,
            learning_rate=4e-3,
        ),
        Plan(
            "reasoner-peers",
            "reasoner",
            (format_workers, format_peers),
            range(2, 5),
            chains=0.5,
            chain_form=0.3,
            easy=0.3,
            minutes=14,
            learning_rate=4e-3,
        ),
        Plan(
            "reasoner-judge",
            "reasoner",
            (format_candidates,),
            range(2, 5),
            chains=0.4,
            chain_form=0.5,
            easy=0.4,
            minutes=24,
            learning_rate=4e-3,
            batch_tokens=3000,
        ),
        Plan(
            "reasoner-tools",
            "reasoner",
            (format_tools,),
            range(2, 6),
            chains=0.3,
            chain_form=0.3,
            easy=0.4,
            minutes=18,
            learning_rate=4e-3,
            batch_tokens=3000,
        ),
    )
}


def add_tags(tokenizer: Tokenizer, plan: Plan) -> None:
    """Each is one token; a text shows it as it is written."""
    tags = dict.fromkeys(tag for form in plan.formats for tag in form.TAGS)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])


def problems(plan: Plan, rng: Random, progress: Callable[[], float]) -> Iterator[Problem]:
    """Of the train split, without end: DAGs of all shapes, and some chains."""
    dag, chain = TASKS["dag"], TASKS["chain"]
    assert isinstance(dag, Dag)
    while True:
        share = min(1.0, 0.15 + progress() / plan.easy)
        if rng.random() < plan.chains:
            problem = chain.generate(rng, rng.choice(_first(CHAIN_STEPS, share)))
        else:
            width, length = (
                rng.choice(_first(plan.widths, share)),
                rng.choice(_first(LENGTHS, share)),
            )
            # From any letter on, so that the late ones are not met in the largest shapes alone.
            first = rng.randrange(len(NAMES) - width * (length + 2) + 2)
            problem = dag.problem(0, dag.draw(rng, width, length, first))
        if split_of(problem) == "train":
            yield problem


def texts(
    tokenizer: Tokenizer, plan: Plan, rng: Random, progress: Callable[[], float]
) -> Iterator[BranchingText]:
    """One problem each; `progress` runs from 0 to 1."""
    encode = encoder(tokenizer)
    for problem in problems(plan, rng, progress):
        text = BranchingText()
        question = text.append(tokenizer.encode(problem.question).ids, learned=False)
        for form in plan.formats:
            form.write(text, question, problem, encode, rng)
        if rng.random() < plan.chain_form or not text.targets:
            format_chain.write(text, question, problem, encode, rng)
        yield text


def _first(values: Sequence[int], share: float) -> Sequence[int]:
    """Of values in the order of their hardness as many as have been come to."""
    return values[: max(1, round(share * len(values)))]
