"""Limits of a program, and what it used."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Budget:
    """Limits of one program; None is no limit. What runs into one ends with reason "budget".

    The program itself goes on and gets its branches back at once, whatever it extends after that:
    one that loops until its branches are done must look at `finish_reason`.

    Args:
        tokens: sampled tokens, of pruned branches too.
        steps: forward steps in which the program took part.
        blocks: KV blocks in use by the engine.
        seconds: wall time since the program was submitted.
    """

    tokens: int | None = None
    steps: int | None = None
    blocks: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "steps", "blocks", "seconds"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"budget of {name} must not be negative, got {value}")


@dataclass
class Usage:
    """What a program, or the engine as a whole, used.

    `kv_tokens_*`, `peak_*` are of the steps in which it took part, with all that ran beside it.

    Attributes:
        generated_tokens: sampled tokens, of pruned branches too.
        computed_tokens: tokens that went through the model (prompts, appended and sampled tokens,
            probes, recomputation after pre-emption).
        prompt_tokens: tokens of prompts as given.
        prompt_tokens_shared: of these, found stored.
        forward_steps: steps of the model in which it took part.
        wall_seconds: from submission to the end.
        kv_tokens_read: keys read by attention, shared ones once a step on a CPU.
        kv_tokens_logical: what would have been read without sharing.
        peak_kv_tokens_stored, peak_kv_tokens_logical: of the step that read the most.
        peak_blocks: KV blocks held by running branches, at the most.
        delegated_tokens: tokens that went through the models of other engines for it.
        probes: branches looked at by `Score`.
        calls: callables run outside of the engine.
        swapped_tokens: tokens whose keys went to the host's memory, see `Swap`.
        drafted_tokens: guessed by a drafter and computed, right or wrong.
        accepted_tokens: of these, those that became tokens of a branch.
        preemptions: how often it lost its blocks and started them again.
    """

    generated_tokens: int = 0
    computed_tokens: int = 0
    prompt_tokens: int = 0
    prompt_tokens_shared: int = 0
    forward_steps: int = 0
    wall_seconds: float = 0.0
    kv_tokens_read: int = 0
    kv_tokens_logical: int = 0
    peak_kv_tokens_stored: int = 0
    peak_kv_tokens_logical: int = 0
    peak_blocks: int = 0
    preemptions: int = 0
    probes: int = 0
    delegated_tokens: int = 0
    calls: int = 0
    swapped_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def snapshot(self) -> "Usage":
        return replace(self)
