"""The primitives as values. A reasoning program yields them; the scheduler carries them out."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from parallel_decode.engine.branch import Branch, Record, View
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.engine.verification import VerifyRule

JoinMode = Literal["answer", "text", "kv_union", "kv_concat"]
ForkPositions = Literal["inherit", "promised", "disjoint_ranges"]
JoinPositions = Literal[
    "same_start_max_join", "promised", "disjoint_ranges", "query_rotate", "thought_embed"
]


@dataclass(eq=False)
class Operation:
    """Something a program waits for. `yield operation` gives its result once it is done."""

    done: bool = field(default=False, init=False)
    result: object = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)


@dataclass(eq=False)
class Prefill(Operation):
    """A new root branch that holds `prompt` -> Branch.

    What other branches or the prefix tree already store of it is shared, not computed.
    """

    prompt: str | Sequence[int]


@dataclass(eq=False)
class Extend(Operation):
    """Grows branches, all in one batch -> list[Branch], the same ones.

    Give `params` to sample, or `tokens` (ids or text, the same for all branches) to append as they
    are, or both to append and then sample.

    Args:
        logprobs: also compute the log-probability of each appended token.
        keep_hidden: strings, such as a line end: the hidden states of output tokens that complete
            one are kept on the branch as they are computed, for `Score(at=...)` to find.
        on_token: called with (branch, token id) for each sampled token.
    """

    branches: Sequence[Branch]
    params: SamplingParams | Sequence[SamplingParams] | None = None
    tokens: str | Sequence[int] = ()
    logprobs: bool = False
    keep_hidden: str | Sequence[str] = ()
    on_token: Callable[[Branch, int], None] | None = None


@dataclass(eq=False)
class Fork(Operation):
    """n children of a branch -> list[Branch]. No block is copied until a child writes.

    Args:
        at: number of tokens that the children keep; None for all.
        positions: "inherit" numbers each child's tokens onward from the fork. "promised" and
            "disjoint_ranges" give child i its own range of positions, after the ranges of the
            children before it; `lengths` are the sizes (one for all: "disjoint_ranges").
    """

    branch: Branch
    n: int = 1
    at: int | None = None
    positions: ForkPositions = "inherit"
    lengths: Sequence[int] = ()


@dataclass(eq=False)
class Score(Operation):
    """Looks at branches without changing them -> list of results, one a branch.

    With `continuation`: the log-probability of each of its tokens after the branch, as list[float].
    With `head`: head(hidden [num_branches, hidden_size] fp32) of the last token, or of the last
    token of `continuation` where both are given; its rows are the results.
    With `head` and `at`: the head's results for each output token that completes one of the strings
    `at`, and for the last token, as one list a branch. Hidden states that were kept
    (`Extend(keep_hidden=...)`) are not computed again; from the first that was not kept on, the
    tokens go through the model once more.
    With `distribution`: the log-probabilities of the next token, each [vocab_size] fp32, without
    temperature or filters. A branch that was just forked has them computed already.
    With none of these: the record of the branch's last token.
    """

    branches: Sequence[Branch]
    continuation: str | Sequence[int] = ()
    head: Callable[[Tensor], Tensor] | None = None
    at: str | Sequence[str] = ()
    distribution: bool = False


@dataclass(eq=False)
class Verify(Operation):
    """Verifies a draft behind each branch, all in one step: commits the tokens that the rule
    accepts and one more -> list[list[int]], the accepted nodes of each draft.

    Rules; all but the last give a branch tokens with the law of plain sampling:
        "match": right is what the branch would draw by itself, with its own random numbers. It gets
            the tokens that it would get without a draft, whatever that holds.
        "rejection": multi-round rejection from the root down (Leviathan et al., 2023; Miao et al.,
            2024; without replacement: Chen et al., 2024, Sequoia).
        "traversal": from the leaves up (Weng et al., 2025); as lossless, and it accepts more.
        "typical": right is what is not unlikely (Cai et al., 2024, Medusa). Not lossless.

    Args:
        drafts: one a branch, of at most 63 nodes; see `DraftTree`.
        params: how the branch draws. A step gives no more than `max_tokens`, and ends at stops.
        draft_probs: for "rejection" and "traversal", [num_nodes, vocab_size] fp32 a branch, what
            each node was drawn from, before its earlier siblings were taken out; None where they
            were chosen and not drawn, as the most probable ones or n-grams are.
        replacement: whether siblings were drawn independently, so that they may be equal.
        num_generated: tokens that a branch got under the same params before, one number for all or
            one a branch: they count for max_tokens, min_tokens and stops.
        on_token: as of `Extend`.
    """

    branches: Sequence[Branch]
    drafts: Sequence[DraftTree]
    params: SamplingParams | Sequence[SamplingParams]
    rule: VerifyRule = "match"
    draft_probs: Sequence[Tensor | None] | None = None
    replacement: bool = False
    num_generated: int | Sequence[int] = 0
    on_token: Callable[[Branch, int], None] | None = None


@dataclass(eq=False)
class Prune(Operation):
    """Ends branches, running ones too, and frees what they do not share, at once -> None."""

    branches: Sequence[Branch]


@dataclass(eq=False)
class Release(Operation):
    """Gives back what branches do not share, at once -> None. Their tokens stay: the keys are
    computed again when a branch next runs, from the nearest ancestor that has its own."""

    branches: Sequence[Branch]


@dataclass(eq=False)
class Swap(Operation):
    """Copies the keys that branches hold alone, behind all that they share, to the host's memory
    and gives their blocks back, at once -> list[int], how many tokens each has there.

    The next operation on such a branch brings them back first, bit for bit. Where the pool is full
    then, a branch that text can bring back is computed again when it next runs, and others are
    pre-empted for it; for one that was joined or moved, or saw others, the operation fails with
    `PoolExhausted`, and its keys stay where they are until there is room.
    """

    branches: Sequence[Branch]


@dataclass(eq=False)
class Rollback(Operation):
    """Truncates a branch to its first `num_tokens` tokens -> Branch."""

    branch: Branch
    num_tokens: int


@dataclass(eq=False)
class Join(Operation):
    """A child of `parent` that continues from several of its forks -> Branch.

    Modes, which give different logits:
        "answer": the parent, then `extract(branch)` of each branch, computed as plain text.
        "text": the parent, then each branch's own tokens, computed as plain text.
        "kv_union": the parent's keys, then each branch's own keys as they are stored. The branches
            have not seen each other.
        "kv_concat": the same keys, read at consecutive positions as if the branches stood one
            after the other (positions "query_rotate": the query is turned, no key is copied).

    Positions of "kv_union": "same_start_max_join" (branches start together, the join goes on after
    the longest), "promised" and "disjoint_ranges" (ranges given at the fork), "thought_embed"
    (as the first, with `embeddings` [num_branches, num_kv_heads, head_dim] added to each branch's
    keys, before rotation, and values, in copies of its blocks; ParaThinker).

    A joined branch has no last token: extend it with tokens before sampling.
    """

    parent: Branch
    branches: Sequence[Branch]
    mode: JoinMode
    positions: JoinPositions | None = None
    separator: str | Sequence[int] = ()
    extract: Callable[[Branch], str | Sequence[int]] | None = None
    embeddings: Tensor | None = None


@dataclass(eq=False)
class See(Operation):
    """From its next token on, a branch also attends to the keys of others as these grow -> None.

    A token sees what the others had stored before the step in which it is computed. Nothing is
    copied and nothing computed anew: keys that are read at other positions than those at which they
    were stored meet a turned query. A branch that sees, or is seen, takes one token a step and
    is not drafted for, so that what it sees depends on nothing else that runs.

    Of a branch that was pruned nothing is seen any more, of one that was rolled back what is left;
    one that has finished stays visible. Forks of the branch see what it sees. What was computed so
    can't be computed again from text: the branch can't be released, and its question keeps its
    blocks when the pool is full.

    Args:
        views: whom it sees from now on, and nobody else. A `View` is the tokens of a branch from a
            number on; the branch itself stands for those since its last fork.
        offset: positions by which their keys are moved, 0 to read them where they were stored;
            None to read them one after the other between what the branch had at its last fork
            and its own tokens, as if they stood there as text (Rodionov et al., 2025, Hogwild!).
    """

    branch: Branch
    views: Sequence[Branch | View]
    offset: int | None = None


@dataclass(eq=False)
class Broadcast(Operation):
    """Injects tokens into branches at a safe point -> None, at once.

    A branch that is being sampled takes them before its next token, or, where `after` is given,
    once its text ends with that string. An idle branch takes them now. Messages to one branch
    arrive in the order in which they were sent.
    """

    branches: Sequence[Branch]
    tokens: str | Sequence[int]
    after: str | None = None


class Runs(Protocol):
    """What `Delegate` needs of another engine."""

    @property
    def in_step(self) -> bool: ...

    @property
    def idle(self) -> bool: ...

    def submit(self, steps: Any, *, seed: int | None = None) -> Any: ...

    def step(self, *, wait: bool = True) -> bool: ...

    def drop(self, program: Any) -> None: ...


@dataclass(eq=False)
class Delegate(Operation):
    """Runs a program on another engine, such as that of a verifier -> the program's result.

    The other engine takes a step whenever this one does, with all that was delegated to it in one
    batch. Its tokens are counted as `Usage.delegated_tokens`; a budget of tokens does not see them.

    Args:
        engine: the other engine.
        steps: a generator that yields operations on the other engine's branches.
    """

    engine: Runs
    steps: Generator[Any, Any, Any]


@dataclass(eq=False)
class Call(Operation):
    """Runs a callable outside of the engine, such as a tool -> what it returns.

    Decoding goes on meanwhile, and nothing spins where nothing else runs. What the callable raises
    is raised in the program; one that takes too long gives TimeoutError. A program that was
    stopped, by its budget or from outside, gets `Interrupted` from its calls at once. See
    `Engine.executor`.

    Args:
        function: called as function(*args) in a thread; an `async def` runs on an event loop.
        timeout: seconds; None to wait for as long as it takes.
        branch: that the result is for: once it was pruned, aborted or has failed, the call is given
            up and gets `Interrupted`.
    """

    function: Callable[..., Any]
    args: Sequence[Any] = ()
    timeout: float | None = None
    branch: Branch | None = None


@dataclass(eq=False)
class Cancel(Operation):
    """Gives up calls that are under way: each gets `Interrupted` -> None, at once."""

    calls: Sequence[Call]


@dataclass(eq=False)
class Shorten(Operation):
    """The longest beginning of a text that has at most `max_tokens` tokens -> str, at once.

    No more of the text is looked at than that takes, however long it is.
    """

    text: str
    max_tokens: int


@dataclass(eq=False)
class Seed(Operation):
    """An integer for a program's own draws, of the program's seed and the branch's path -> int."""

    branch: Branch


@dataclass(frozen=True)
class History:
    """What a branch got in an earlier run: tokens, one record each, and how it stood then."""

    tokens: Sequence[int]
    records: Sequence[Record]
    status: str
    finish_reason: str | None
    stop_string: str | None = None
    error: str | None = None


@dataclass(eq=False)
class Recall(Operation):
    """Gives branches what they got in an earlier run of the program, at once -> list[Branch].

    Tokens that were drawn then count as generated by this program; their keys are computed when a
    branch next runs.

    Args:
        histories: one a branch.
        probes: branches looked at in that run, to be counted.
        extend: what gave them that.
    """

    branches: Sequence[Branch]
    histories: Sequence[History]
    probes: int = 0
    extend: Extend | None = None


@dataclass(eq=False)
class FirstOf(Operation):
    """Waits until at least one operation is done -> list of those that are done."""

    operations: Sequence[Operation]
