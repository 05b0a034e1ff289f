"""Drafts of the model itself without some of its layers."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_decode.engine import Engine
from parallel_decode.speculation.self_draft import DraftLimits, SelfDrafter, fused_layers


class SkipLayersDrafter(SelfDrafter):
    """Self-speculation (Zhang et al. 2023, "Draft & Verify"; Elhoushi et al. 2024, "LayerSkip"; Xia
    et al. 2024, "SWIFT"): the layers that are kept draft, and all layers verify.

    They share the model's weights and read the keys that the whole model has stored for them, so
    that drafting takes neither memory nor a pass over the prompt.

    Args:
        engine: whose branches are drafted for, on the CPU backend.
        kept: numbers of the layers that draft, rising; `choose_layers` finds those that pay best.
        max_depth: tokens of a chain, at the most.
        min_prob: of a path, below which it ends.
        num_siblings: other guesses at each place of the chain.

    Raises:
        ValueError: the engine is on another backend, it has no such layers, or a number is out of
            range.
    """

    def __init__(
        self,
        engine: Engine,
        kept: Sequence[int],
        max_depth: int = 24,
        min_prob: float = 0.02,
        num_siblings: int = 1,
    ) -> None:
        self.kept = tuple(kept)
        super().__init__(
            engine,
            fused_layers(engine, self.kept),
            engine.cache.storage,
            DraftLimits(max_depth, min_prob, num_siblings),
        )
