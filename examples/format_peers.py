"""The format of peers: paths that stop now and then to tell each other how far they are.

`<peers>` follows the question. A path writes the given value, such as `a=7`, and some steps. Then
it is given `<share>` and writes the value of its last step; it is given `<heard>`, that of each of
the others, a line each, and `<agree>`, and writes which it goes on with: what most say, its own
where no other is said more often. Some of the values here are wrong, its own as well; the model
learns to go on from them, but not to write them.
"""

from collections import Counter
from collections.abc import Sequence
from random import Random

from branching_text import END, BranchingText, Encode

from parallel_decode.reasoning.interaction.reasoner_format import AGREE, HEARD, PEERS, SHARE
from parallel_decode.tasks import Problem
from parallel_decode.tasks.program import Program, Statement, apply

TAGS = (PEERS, SHARE, HEARD, AGREE)
MOST_PEERS = 3
STEPS = (2, 3, 4)
"""Between two exchanges."""
SLIP, PEER_SLIP, STRANGERS = 0.1, 0.25, 0.1
"""How often a step of the path is wrong, what a peer says, and what all of them say."""


def agreed(own: int, heard: Sequence[int]) -> int:
    """What most say; one's own where no other is said more often."""
    votes = Counter([own, *heard])
    return max([own, *heard], key=lambda value: votes[value])


def write(
    text: BranchingText,
    question: list[int],
    problem: Problem,
    encode: Encode,
    rng: Random,
) -> None:
    """Nothing for a question that could be split."""

    program = Program.parse(problem.question)
    if len(program.groups) > 1:
        return
    given, *rest = program.groups[0]
    modulus, most = program.modulus, rng.randint(0, MOST_PEERS)
    turn = rng.choice(STEPS)
    value = int(given.left)
    view = text.append(encode(PEERS), question, learned=False)
    view = text.append(encode(f"{given.name}={value}\n"), view)
    for first in range(0, len(rest), turn):
        truth = value
        steps = rest[first : first + turn]
        for statement in steps:
            result, truth = (step(statement, v, modulus) for v in (value, truth))
            slips = rng.random() < SLIP
            result = rng.randrange(modulus) if slips else result
            view = text.append(encode(f"{shown(statement, value)}="), view)
            view = text.append(encode(str(result)), view, learned=not slips)
            view = text.append(encode("\n"), view)
            value = result
        if len(steps) < turn:
            break
        strangers = rng.random() < STRANGERS
        heard = [
            rng.randrange(modulus) if strangers or rng.random() < PEER_SLIP else truth
            for _ in range(most)
        ]
        said = f"{statement.name}="
        view = text.append(encode(SHARE), view, learned=False)
        view = text.append(encode(f"{said}{value}\n"), view)
        told = "".join(f"{said}{peer}\n" for peer in heard)
        view = text.append(encode(HEARD + told + AGREE), view, learned=False)
        value = agreed(value, heard)
        view = text.append(encode(f"{said}{value}\n"), view)
    text.append(encode(f"answer {value}{END}"), view)


def step(statement: Statement, value: int, modulus: int) -> int:
    return apply(value, statement.op, int(statement.right)) % modulus


def shown(statement: Statement, value: int) -> str:
    """The step with its value, as a trace has it."""
    return f"{statement.name}={value}{statement.op}{statement.right}"
