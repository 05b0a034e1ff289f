"""The formats that `reasoner-formats` is trained for, each in a file of its own.

A format is a module with `TAGS`, the control tokens that it adds to the vocabulary, and
`write(text, question, problem, tokenizer, rng)`, which appends one solved example to a
`BranchingText` behind the view `question`. All formats of a problem stand in one text, behind the
same question, and don't see each other.
"""

from collections.abc import Iterator
from random import Random

import format_chain
import format_fork_join
from branching_text import BranchingText
from tokenizers import AddedToken, Tokenizer

from parallel_decode.tasks import TASKS, Problem, split_of
from parallel_decode.tasks.dag import Dag
from parallel_decode.tasks.program import NAMES

FORMATS = (format_chain, format_fork_join)
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
# Short sub-chains are drawn more often: of what is hard, which is to find again the values that are
# reduced, they hold more in as many tokens.
LENGTHS = (1, 1, 1, 1, 2, 2, 2, 3, 3, 4)
CHAIN_STEPS = range(2, 17)
CHAIN_SHARE = 0.08


def add_tags(tokenizer: Tokenizer) -> None:
    """Each is one token; a text shows it as it is written."""
    tags = dict.fromkeys(tag for form in FORMATS for tag in form.TAGS)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])


def problems(rng: Random) -> Iterator[Problem]:
    """Of the train split, without end: DAGs of all shapes, and some chains."""
    dag, chain = TASKS["dag"], TASKS["chain"]
    assert isinstance(dag, Dag)
    while True:
        if rng.random() < CHAIN_SHARE:
            problem = chain.generate(rng, rng.choice(CHAIN_STEPS))
        else:
            width, length = rng.choice(WIDTHS), rng.choice(LENGTHS)
            # From any letter on, so that the late ones are not met in the largest shapes alone.
            first = rng.randrange(len(NAMES) - width * (length + 2) + 2)
            problem = dag.problem(0, dag.draw(rng, width, length, first))
        if split_of(problem) == "train":
            yield problem


def texts(tokenizer: Tokenizer, rng: Random) -> Iterator[BranchingText]:
    """One problem each, in all formats."""
    for problem in problems(rng):
        text = BranchingText()
        question = text.append(tokenizer.encode(problem.question).ids, learned=False)
        for form in FORMATS:
            form.write(text, question, problem, tokenizer, rng)
        yield text
