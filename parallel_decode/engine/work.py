"""One branch in motion: what the scheduler carries from step to step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.operation import Operation
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.engine.stop import StopMatcher
from parallel_decode.engine.verification import Verification


class Work:
    """Computes a branch's pending tokens and then, with `params`, samples until something ends it.

    Attributes:
        recorded: numbers of the tokens whose log-probability is recorded as they are computed.
        num_generated: tokens sampled by this work.
        num_before: tokens sampled just before by works that it goes on from: they ended at their
            length, and a stop string may have begun in them.
        inbox: (tokens, safe point) of messages not yet taken.
        key: of its branch's draws, once it has drawn.
        claimed: tokens whose blocks are claimed in the prefix tree.
        admitted: whether it has been looked up there, maybe before a pre-emption.
        then: works that follow this one in the same operation.
        verification: a draft behind the branch's last token; the work ends with it.
        accepted: the nodes of that draft that were right.
    """

    __slots__ = (
        "accepted",
        "admitted",
        "branch",
        "claimed",
        "done",
        "inbox",
        "key",
        "matcher",
        "num_before",
        "num_generated",
        "on_token",
        "operation",
        "output_counts",
        "params",
        "prompt_set",
        "recorded",
        "then",
        "verification",
    )

    def __init__(
        self,
        branch: Branch,
        operation: Operation,
        params: SamplingParams | None = None,
        matcher: StopMatcher | None = None,
        on_token: Callable[[Branch, int], None] | None = None,
    ) -> None:
        self.branch = branch
        self.operation = operation
        self.params = params
        self.matcher = matcher
        self.on_token = on_token
        self.recorded = range(0)
        self.num_generated = 0
        self.num_before = 0
        self.inbox: list[tuple[Sequence[int], str | None]] = []
        self.key: int | None = None
        self.claimed: list[int] | None = None
        self.admitted = False
        self.then: Callable[[], list[Work]] | None = None
        self.done = False
        self.verification: Verification | None = None
        self.accepted: list[int] = []
        self.output_counts: Counter[int] = Counter()
        self.prompt_set: set[int] = set()
        if params is not None and params.edits_logits:
            # Penalties look at the whole path: the prompt's tokens once, generated ones by count.
            self.output_counts = Counter(branch.output_tokens)
            self.prompt_set = set(branch.tokens[: branch.prompt_length])

    @property
    def sampling(self) -> SamplingParams:
        """The params of a work that samples."""
        assert self.params is not None
        return self.params
