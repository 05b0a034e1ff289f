"""`speculate`: an engine that guesses ahead."""

from collections.abc import Callable, Sequence

from parallel_decode.engine import Drafter, Engine
from parallel_decode.speculation.controller import Speculation
from parallel_decode.speculation.draft_model import DraftModelDrafter
from parallel_decode.speculation.eagle import EagleDrafter
from parallel_decode.speculation.layer_choice import choose_layers
from parallel_decode.speculation.lookahead import LookaheadDrafter
from parallel_decode.speculation.medusa import MedusaDrafter
from parallel_decode.speculation.ngram import NGramDrafter
from parallel_decode.speculation.skip_layers import SkipLayersDrafter
from parallel_decode.speculation.step_costs import StepCosts
from parallel_decode.speculation.suffix import SuffixDrafter

Prompts = Sequence[str | Sequence[int]]


def _skip_layers(engine: Engine, costs: StepCosts, prompts: Prompts) -> SkipLayersDrafter:
    begin = engine.tokenizer.bos_id
    texts = prompts or [[0 if begin is None else begin]]
    return SkipLayersDrafter(engine, choose_layers(engine, texts, costs).kept)


NAMED: dict[str, Callable[[Engine, StepCosts, Prompts], Drafter]] = {
    "suffix": lambda engine, costs, prompts: SuffixDrafter(),
    "n-gram": lambda engine, costs, prompts: NGramDrafter(),
    "lookahead": lambda engine, costs, prompts: LookaheadDrafter(),
    "skip-layers": _skip_layers,
    "eagle": lambda engine, costs, prompts: EagleDrafter(engine),
    "medusa": lambda engine, costs, prompts: MedusaDrafter(engine),
}


def speculate(
    engine: Engine, drafter: str | Engine | Drafter = "suffix", prompts: Prompts = ()
) -> Speculation:
    """Lets `engine` guess ahead from now on, wherever that saves time. Branches get the tokens that
    they would get without; `engine.speculator = None` ends it.

    What a step takes on this machine is measured first, for about a second.

    Args:
        engine: that decodes.
        drafter: a smaller model of the same vocabulary, any drafter, or one of these names:
            "suffix", what was said before in any branch;
            "n-gram", what was said before in the branch itself;
            "lookahead", what the model said of tokens to come;
            "skip-layers", the model with the layers that pay best;
            "eagle" and "medusa", heads that were trained for the bundled model.
        prompts: of texts like those to come, by which layers are chosen; without any it is the
            model's own text from its first token on.

    Raises:
        ValueError: there is no drafter of this name, it has no heads for this model, it does not
            run on this backend, or the models' vocabularies differ.
    """
    if isinstance(drafter, Engine) and drafter.config.vocab_size != engine.config.vocab_size:
        raise ValueError(
            f"{drafter.name!r} has a vocabulary of {drafter.config.vocab_size} tokens,"
            f" {engine.name!r} of {engine.config.vocab_size}"
        )
    if isinstance(drafter, str) and drafter not in NAMED:
        raise ValueError(f"drafter must be one of {', '.join(NAMED)}, got {drafter!r}")
    costs = StepCosts.measure(engine)
    if isinstance(drafter, Engine):
        chosen: Drafter = DraftModelDrafter(drafter)
    elif isinstance(drafter, str):
        chosen = NAMED[drafter](engine, costs, prompts)
    else:
        chosen = drafter
    speculation = Speculation(chosen, costs)
    engine.speculator = speculation
    return speculation
