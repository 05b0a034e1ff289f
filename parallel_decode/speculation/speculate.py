"""`speculate`: an engine that guesses ahead."""

from parallel_decode.engine import Drafter, Engine
from parallel_decode.speculation.controller import Speculation
from parallel_decode.speculation.draft_model import DraftModelDrafter
from parallel_decode.speculation.ngram import NGramDrafter
from parallel_decode.speculation.step_costs import StepCosts
from parallel_decode.speculation.suffix import SuffixDrafter

NAMED: dict[str, type[SuffixDrafter] | type[NGramDrafter]] = {
    "suffix": SuffixDrafter,
    "n-gram": NGramDrafter,
}


def speculate(engine: Engine, drafter: str | Engine | Drafter = "suffix") -> Speculation:
    """Lets `engine` guess ahead from now on, wherever that saves time. Branches get the tokens that
    they would get without; `engine.speculator = None` ends it.

    What a step takes on this machine is measured first, for about a second.

    Args:
        engine: that decodes.
        drafter: "suffix", what was said before in any branch; "n-gram", what was said before in the
            branch itself; a smaller model of the same vocabulary; or any drafter.

    Raises:
        ValueError: there is no drafter of this name, or the models' vocabularies differ.
    """
    if isinstance(drafter, Engine):
        if drafter.config.vocab_size != engine.config.vocab_size:
            raise ValueError(
                f"{drafter.name!r} has a vocabulary of {drafter.config.vocab_size} tokens,"
                f" {engine.name!r} of {engine.config.vocab_size}"
            )
        chosen: Drafter = DraftModelDrafter(drafter)
    elif isinstance(drafter, str):
        if drafter not in NAMED:
            raise ValueError(f"drafter must be one of {', '.join(NAMED)}, got {drafter!r}")
        chosen = NAMED[drafter]()
    else:
        chosen = drafter
    speculation = Speculation(chosen, StepCosts.measure(engine))
    engine.speculator = speculation
    return speculation
