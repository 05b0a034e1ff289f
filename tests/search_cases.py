"""A tiny model whose whole solutions can be listed, and every search at a small size."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Branch
from parallel_decode.reasoning import (
    ABMCTS,
    DVTS,
    ETS,
    MCTS,
    Forest,
    GraphOfThoughts,
    Method,
    ParticleFilter,
    Rebase,
    SelfEvalBeam,
    StepBeam,
    StochasticBeam,
    TreeOfThoughts,
)
from parallel_decode.reasoning.search.posterior import BetaPrior
from parallel_decode.reasoning.search.thought_operation import (
    Aggregate,
    Generate,
    KeepBest,
    Refine,
)
from tests.tiny_model import TEXT, tiny_checkpoint

QUESTION = "hello"
LETTERS = "abcd"
END = TEXT.index("d")
TOKENS = frozenset(TEXT.index(c) for c in LETTERS)
MAX_STEPS = 3

PARAMS = SamplingParams(max_tokens=1, allowed_tokens=TOKENS, ignore_eos=True)
"""A step is a letter; no text ends."""
ENDING = replace(PARAMS, stop=("d",))
"""A step is a letter; a text ends with the letter d."""


def small_engine(seed: int = 0, **options: object) -> Engine:
    settings: dict = {"threads": 1, "kv_tokens": 1 << 14, **options}
    return Engine(tiny_checkpoint(), seed=seed, **settings)


def whole(text: str) -> str | None:
    return text or None


def constant(branches: Sequence[Branch]) -> list[float]:
    return [1.0] * len(branches)


def letters_law(engine: Engine, length: int, ends: bool) -> dict[str, float]:
    """Probability of each text of up to `length` letters, where the letter d ends a text or not."""
    law: dict[str, float] = {}
    texts = [("", 1.0)]
    for _ in range(length):
        longer = []
        for text, probability in texts:
            branch = engine.prefill(QUESTION)
            if text:
                engine.extend(branch, tokens=text)
            [row] = engine.score(branch, distribution=True)
            logprobs = row.double().numpy()[sorted(TOKENS)]
            shares = np.exp(logprobs - logprobs.max())
            for letter, share in zip(LETTERS, shares / shares.sum(), strict=True):
                longer.append((text + letter, probability * float(share)))
            engine.prune(branch)
        texts = [(t, p) for t, p in longer if not (ends and t.endswith("d"))]
        law |= {t: p for t, p in longer if ends and t.endswith("d")}
    law |= dict(texts)
    assert math.isclose(math.fsum(law.values()), 1)
    return law


def searches(params: SamplingParams, **settings: object) -> dict[str, Method]:
    """Every search over steps, small enough to run hundreds of times."""
    common: dict = {"params": params, "max_steps": MAX_STEPS, "extract": whole, **settings}
    return {
        "step-beam": StepBeam(2, 2, **common),
        "dvts": DVTS(2, 2, **common),
        "rebase": Rebase(3, **common),
        "tot-bfs": TreeOfThoughts("bfs", 2, 2, **common),
        "tot-dfs": TreeOfThoughts("dfs", 2, **common),
        "mcts": MCTS(6, 2, 2, simulate=False, **common),
        "mcts-simulated": MCTS(4, 2, 2, **common),
        "ab-mcts": ABMCTS(16, 2, simulate=False, **common),
        "ab-mcts-beta": ABMCTS(6, 2, BetaPrior(), **common),
        "ets": ETS(3, **common),
        "particle-filter": ParticleFilter(3, **common),
        "self-eval-beam": SelfEvalBeam(2, 2, mix=0.0, **common),
        "forest": Forest(DVTS(2, 2, **common), 2),
    }


def all_methods(**settings: object) -> dict[str, Method]:
    """With those that do not go by steps."""
    params = replace(PARAMS, max_tokens=4)
    scorer = {k: v for k, v in settings.items() if k in ("scorer", "extract")}
    thoughts: dict = {"params": params, "extract": whole, **scorer}
    extract = {k: v for k, v in settings.items() if k == "extract"}
    beams: dict = {"allowed_tokens": TOKENS, "ignore_eos": True, "extract": whole, **extract}
    plan = (Generate(4), Refine("ab"), KeepBest(2), Aggregate(n=2, lead="c"), KeepBest(1))
    return {
        **searches(ENDING, **settings),
        "got": GraphOfThoughts(plan, **thoughts),
        "stochastic-beam": StochasticBeam(3, 4, **beams),
    }


def product(letters: str, length: int) -> list[str]:
    return ["".join(p) for p in itertools.product(letters, repeat=length)]
