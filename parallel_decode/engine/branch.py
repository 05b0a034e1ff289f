"""A branch: one path of tokens, and its view of the shared KV blocks."""

from __future__ import annotations

import hashlib
import itertools
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode import _C
from parallel_decode.engine.grammar_text import GrammarText
from parallel_decode.engine.stop import StopMatcher


class Top(NamedTuple):
    """The most likely tokens, the likeliest first, and their log-probabilities."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


class Record(NamedTuple):
    """What is known of one token after the prompt.

    Attributes:
        logprob: of the token under the model's own distribution, NaN where it was not computed.
        entropy: of that distribution, in nats.
        self_certainty: KL(uniform || p), in nats (Kang et al., 2025).
        sampled: whether the branch drew it (else it was given to the branch).
        top: the most likely tokens with their log-probabilities, as many as were asked for.
    """

    logprob: float = math.nan
    entropy: float = math.nan
    self_certainty: float = math.nan
    sampled: bool = False
    top: Top | None = None


GIVEN = Record()

TopRows = tuple[Sequence[int], Sequence[float]]
Kept = tuple[float, float, float, bool, TopRows | None]
"""A record as a branch keeps it: there is one a token, and the collector looks at plain tuples of
plain things once, at instances of `Record` for as long as they live. The most likely tokens are
rows of arrays."""


def record_of(kept: Kept) -> Record:
    logprob, entropy, self_certainty, sampled, rows = kept
    top = None if rows is None else Top(*(tuple(np.asarray(row).tolist()) for row in rows))
    return Record(logprob, entropy, self_certainty, sampled, top)


class Row(NamedTuple):
    """Row `number` of a tensor that many branches share."""

    tensor: Tensor
    number: int

    @property
    def value(self) -> Tensor:
        return self.tensor[self.number]


class View(NamedTuple):
    """The tokens of a branch from number `begin` on, those that are still to come, too."""

    branch: Branch
    begin: int


class Sight(NamedTuple):
    """What a branch sees of others: views that it reads behind its first `boundary` tokens.

    offset: positions by which the keys are moved; None where the views stand one after the other
        between these tokens and the rest.
    """

    views: Sequence[View]
    boundary: int
    offset: int | None


class Away(NamedTuple):
    """Keys of a branch's last stored tokens that are in the host's memory, see `Swap`.

    entries: [num_entries, 5] int32, of its table; their blocks went back.
    keys: what the blocks held, by storage.
    """

    entries: NDArray[np.int32]
    keys: Sequence[tuple[Tensor, Tensor]]
    position: int
    logits_row: Row | None
    hidden_row: Row | None


def gather_rows(rows: Sequence[Row]) -> Tensor:
    """[num_rows, width]; a view of the rows' own tensor where they follow each other there."""
    tensor = rows[0].tensor
    if any(row.tensor is not tensor for row in rows):
        return torch.stack([row.value for row in rows])
    return pick_rows(tensor, np.array([row.number for row in rows]))


def pick_rows(tensor: Tensor, numbers: NDArray[np.int64]) -> Tensor:
    """[len(numbers), ...]; a view where they follow each other."""
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first == len(numbers) - 1 and (np.diff(numbers) == 1).all():
        return tensor[first : last + 1]
    if tensor.device.type == "cpu":
        # torch would wake threads for so little, which wait for the cores that ours are on.
        return torch.from_numpy(tensor.numpy()[numbers])
    return tensor[torch.from_numpy(numbers).to(tensor.device)]


class Branch:
    """A handle on one path. Branches are made by the engine; see `Engine` for what can be done.

    The tokens [0, num_stored) have their keys and values in blocks; the rest are pending and are
    computed when the branch next runs. Tokens up to the last fork are shared with the parent.

    Attributes:
        path: child numbers from the root down.
        status: "live", "finished", "pruned" or "failed".
        finish_reason: of the last extension: "eos", "stop", "length", "budget", "aborted", "error".
        error: what went wrong, where status is "failed".
        sight: the other branches that it sees, see `See`; None for none.
        away: keys that are in the host's memory, see `Swap`; None for none.
        is_seen: whether another branch sees it, or has seen it.
        kept_hidden: number of a token -> its final hidden state, [hidden_size] fp32, where an
            operation kept it.
        score: set by whoever ranks branches; the engine does not look at it.
        grammar_text: the text under a grammar that it is in, if it is in one.
    """

    __slots__ = (
        "__weakref__",
        "_children",
        "_decode",
        "_hidden",
        "_hidden_number",
        "_logits",
        "_logits_number",
        "_num_named",
        "_own",
        "_own_records",
        "_prefix",
        "_prefix_records",
        "_sampled",
        "_text",
        "away",
        "error",
        "finish_reason",
        "fork_length",
        "grammar_text",
        "is_seen",
        "join_length",
        "join_position",
        "kept_hidden",
        "num_drafted",
        "num_running",
        "parent",
        "path",
        "path_key",
        "position",
        "position_limit",
        "prompt_length",
        "recomputable",
        "score",
        "sight",
        "start_position",
        "status",
        "stop_string",
        "table",
    )

    def __init__(
        self,
        tokens: Sequence[int],
        table: _C.BlockTable,
        decode: Callable[..., str],
        parent: Branch | None = None,
    ) -> None:
        self._prefix: tuple[int, ...] = tuple(tokens)
        self._own: list[int] = []
        self._prefix_records: tuple[Kept, ...] = ()
        self._own_records: list[Kept] = []
        # Of the sampled tokens alone: whoever ranks branches asks at every step.
        self._sampled = array("d")
        self._text: str | None = None
        self._decode = decode
        self.table = table
        self.parent = parent
        self._children: list[Branch] | None = None
        self._num_named = 0
        self.path: tuple[int, ...] = ()
        self.path_key = 0
        self.prompt_length = len(self._prefix)
        self.fork_length = 0
        self.join_length = 0
        self.join_position = 0
        self.start_position = 0
        self.position = 0
        self.num_drafted = 0
        self.position_limit: int | None = None
        self.recomputable = True
        self.sight: Sight | None = None
        self.away: Away | None = None
        self.is_seen = False
        self.status = "live"
        self.finish_reason: str | None = None
        self.stop_string: str | None = None
        self.num_running = 0
        self.error: str | None = None
        self.score: float | None = None
        self.grammar_text: GrammarText | None = None
        self._logits: Tensor | None = None
        self._logits_number = 0
        self._hidden: Tensor | None = None
        self._hidden_number = 0
        self.kept_hidden: dict[int, Tensor] = {}
        if parent is None:
            digest = hashlib.blake2b(np.asarray(tokens, np.int64).tobytes(), digest_size=8).digest()
            self.path_key = int.from_bytes(digest, "little")

    def __repr__(self) -> str:
        path = ".".join(map(str, self.path)) or "root"
        return f"<Branch {path}: {self.num_tokens} tokens, {self.status}>"

    @property
    def children(self) -> Sequence[Branch]:
        """Forks of this branch, pruned ones included."""
        return self._children or ()

    @property
    def num_tokens(self) -> int:
        return len(self._prefix) + len(self._own)

    @property
    def num_stored(self) -> int:
        return self.table.num_tokens - self.num_drafted

    @property
    def num_pending(self) -> int:
        # Not by the properties above: this is asked several times a token.
        return len(self._prefix) + len(self._own) - self.table.num_tokens + self.num_drafted

    @property
    def end_position(self) -> int:
        """The position of the token that comes next."""
        num_tokens = len(self._prefix) + len(self._own)
        num_stored = self.table.num_tokens - self.num_drafted
        if num_stored < self.fork_length:
            return self.start_position + num_tokens - self.fork_length
        return self.position + num_tokens - num_stored

    @property
    def tokens(self) -> list[int]:
        """All token ids, the prompt's first."""
        return [*self._prefix, *self._own]

    @property
    def output_tokens(self) -> list[int]:
        """The token ids after the prompt."""
        return self._tokens_from(self.prompt_length)

    @property
    def own_tokens(self) -> list[int]:
        """The token ids since the last fork."""
        return self._tokens_from(self.fork_length)

    def _tokens_from(self, begin: int) -> list[int]:
        shared = len(self._prefix)
        if begin >= shared:
            return self._own[begin - shared :]
        return [*self._prefix[begin:], *self._own]

    @property
    def records(self) -> list[Record]:
        """One record for each of `output_tokens`."""
        return [*map(record_of, self._kept())]

    def _kept(self) -> Iterator[Kept]:
        return itertools.chain(self._prefix_records, self._own_records)

    def _last_kept(self, limit: int) -> Sequence[Kept]:
        """Of the last `limit` tokens, or of as many as have a record."""
        if limit <= len(self._own_records):
            return self._own_records[len(self._own_records) - limit :]
        return [*self._kept()][-limit:]

    @property
    def text(self) -> str:
        """The text after the prompt."""
        if self._text is None:
            self._text = self._decode(self.output_tokens)
        return self._text

    @property
    def text_before_output(self) -> str:
        """The text of the prompt."""
        return self._decode(self.tokens[: self.prompt_length])

    @property
    def own_text(self) -> str:
        """The text since the last fork."""
        if self.fork_length == self.prompt_length:
            return self.text
        return self._decode(self.own_tokens)

    @property
    def own_text_with_specials(self) -> str:
        """`own_text` with special tokens as they are written."""
        return self._decode(self.own_tokens, skip_special_tokens=False)

    def tail(self, num_tokens: int) -> str:
        """The text of the last `num_tokens` of its own tokens."""
        own = self.own_tokens
        return self._decode(own[max(0, len(own) - num_tokens) :])

    @property
    def logprobs(self) -> list[float]:
        """Log-probability of each of `output_tokens`, NaN where it was not computed."""
        return [kept[0] for kept in self._kept()]

    def last_logprobs(self, limit: int) -> list[float]:
        """Those of the last `limit` of `output_tokens`."""
        return [kept[0] for kept in self._last_kept(limit)]

    @property
    def top_logprobs(self) -> list[Sequence[float] | None]:
        """Of each sampled token, the log-probabilities of the most likely ones, the highest first;
        None where they were not asked for."""
        return [None if kept[4] is None else kept[4][1] for kept in self._kept() if kept[3]]

    @property
    def num_sampled(self) -> int:
        """Tokens drawn on the path after the prompt."""
        return len(self._sampled)

    @property
    def cumulative_logprob(self) -> float:
        """Sum over the sampled tokens."""
        return math.fsum(self._sampled)

    @property
    def mean_logprob(self) -> float:
        """Mean over the sampled tokens; 0 where there is none."""
        return math.fsum(self._sampled) / max(1, len(self._sampled))

    @property
    def has_logits(self) -> bool:
        """Whether it is known what the model says of the next token."""
        return self._logits is not None

    @property
    def logits_row(self) -> Row | None:
        """What the model says of the next token, [vocab_size] fp32, where it is known."""
        return None if self._logits is None else Row(self._logits, self._logits_number)

    @property
    def hidden_row(self) -> Row | None:
        """The final hidden state of the last stored token, [hidden_size] fp32, where it is kept."""
        return None if self._hidden is None else Row(self._hidden, self._hidden_number)

    @property
    def logits(self) -> Tensor | None:
        """The value of `logits_row`."""
        return None if self._logits is None else self._logits[self._logits_number]

    @property
    def hidden(self) -> Tensor | None:
        """The value of `hidden_row`."""
        return None if self._hidden is None else self._hidden[self._hidden_number]

    def leave_logits(self, logits: Tensor, number: int) -> None:
        """Row `number` of a step's logits says what comes behind its last token."""
        self._logits, self._logits_number = logits, number

    def leave_hidden(self, hidden: Tensor, number: int) -> None:
        """Row `number` of a step's hidden states is that of its last stored token."""
        self._hidden, self._hidden_number = hidden, number

    def pending(self, limit: int) -> list[int]:
        """The first `limit` tokens that are not stored yet."""
        begin = self.table.num_tokens - len(self._prefix)
        if begin >= 0:
            return self._own[begin : begin + limit]
        return self.tokens[self.table.num_tokens : self.table.num_tokens + limit]

    def recent(self, limit: int) -> list[int]:
        """The last `limit` tokens."""
        if limit <= len(self._own):
            return self._own[-limit:] if limit else []
        return self.tokens[-limit:]

    def push(self, token: int, record: Kept) -> None:
        """Adds a token; it is pending until the branch runs."""
        self._own.append(token)
        self._own_records.append(record)
        if record[3]:
            self._sampled.append(record[0])
        self._logits = self._text = None

    def annotate(self, index: int, record: Record) -> None:
        """Replaces the record of output token `index`, which was given."""
        self._own_records[index - len(self._prefix_records)] = record

    def truncate(self, num_tokens: int) -> None:
        """Keeps the first `num_tokens` tokens, views and records."""
        self._forget_stored(num_tokens)
        if self.sight is not None and num_tokens < self.sight.boundary:
            self.sight = self.sight._replace(boundary=num_tokens)
        surplus = self.num_tokens - num_tokens
        if surplus:
            dropped = sum(kept[3] for kept in self._last_kept(surplus))
            del self._sampled[len(self._sampled) - dropped :]
        if surplus > len(self._own):
            self._prefix = self._prefix[:num_tokens]
            self._prefix_records = self._prefix_records[: max(0, num_tokens - self.prompt_length)]
            self._own, self._own_records = [], []
            self.prompt_length = min(self.prompt_length, num_tokens)
            if num_tokens < self.fork_length:
                self.fork_length = num_tokens
                self.start_position = self.position + self.num_pending
        elif surplus:
            del self._own[-surplus:], self._own_records[-surplus:]
        if surplus:
            self._logits = self._text = None
            if self.grammar_text is not None:
                if num_tokens < self.grammar_text.start:
                    self.grammar_text = None
                else:
                    self.grammar_text.truncate(num_tokens)
            self.kept_hidden = {n: h for n, h in self.kept_hidden.items() if n < num_tokens}

    def step_ends(self, step: str | Sequence[str]) -> list[int]:
        """Numbers of the tokens that end a step: the output tokens that complete one of the strings
        `step`, and the last token, whatever it is."""
        return self.ends(self.step_matcher(step))

    def step_matcher(self, step: str | Sequence[str]) -> StopMatcher:
        """Finds the ends of steps, for `ends`; branches of one engine can share it."""
        return StopMatcher((step,) if isinstance(step, str) else step, self._decode)

    def ends(self, matcher: StopMatcher) -> list[int]:
        """`step_ends`, of the strings that the matcher finds."""
        last = self.num_tokens - 1
        return [
            *(n for n in range(self.prompt_length, last) if self.completes(n, matcher)),
            last,
        ]

    def completes(self, number: int, matcher: StopMatcher) -> bool:
        """Whether output token `number` completes a string of the output."""
        if number < self.prompt_length or not matcher.may_end(self._token(number)):
            return False
        begin = max(self.prompt_length, number + 1 - matcher.window)
        return matcher.completes([self._token(n) for n in range(begin, number + 1)])

    def _token(self, number: int) -> int:
        shared = len(self._prefix)
        return self._prefix[number] if number < shared else self._own[number - shared]

    def _forget_stored(self, num_tokens: int) -> None:
        """Keeps the keys and values of the first `num_tokens` tokens at the most."""
        dropped = self.table.num_tokens - num_tokens
        if dropped <= 0:
            return
        self.table.truncate(num_tokens)
        self._logits = self._hidden = None
        if num_tokens == self.fork_length:
            self.position = self.start_position
        elif num_tokens == self.join_length:
            self.position = self.join_position
        elif num_tokens == 0:
            self.position = 0
        else:
            _, start, stop, _, position = self.table.entries()[-1].tolist()
            self.position = position + stop - start

    def next_run(self) -> int:
        """How many of the pending tokens lie at consecutive positions from `position` on."""
        to_fork = self.fork_length - self.num_stored
        if to_fork > 0 and not self.recomputable:
            return min(to_fork, self.num_pending)
        return self.num_pending

    def advance(self, count: int) -> None:
        """Moves on by `count` tokens that the table has taken, no more than `next_run`."""
        self.position += count
        if self.num_stored == self.fork_length:
            self.position = self.start_position

    def keep_drafted(self, num_kept: int, last_node: int) -> None:
        """Of the keys of its draft, which are behind those of its tokens, keeps the first ones for
        tokens that have been pushed meanwhile; the last of these was node `last_node`."""
        num_drafted, self.num_drafted = self.num_drafted, 0
        if self.table.num_tokens == 0:  # it has been released since
            return
        self.table.truncate(self.table.num_tokens - num_drafted + num_kept)
        self.position += num_kept
        if num_kept:
            self._hidden_number += 1 + last_node  # the rows of a draft follow its branch's

    def unstore_last(self) -> None:
        """Makes the last token pending again, so that its logits can be computed."""
        self._forget_stored(self.num_tokens - 1)

    def make_ready(self, *, again: bool = False) -> None:
        """Makes sure that running what is pending leaves logits on it; `again`: even where it has
        them."""
        if self.num_pending or self.num_tokens <= self.join_length:
            return
        if again or not self.has_logits:
            self.unstore_last()

    def release(self) -> None:
        """Gives the blocks back; the tokens stay."""
        self.table.truncate(0)
        self.position = self.num_drafted = 0
        self._logits = self._hidden = self.away = None

    def put_away(self, num_entries: int, keys: Sequence[tuple[Tensor, Tensor]]) -> int:
        """Gives back the blocks of its table's last `num_entries` entries, whose contents are in
        `keys` -> the tokens in them."""
        entries = self.table.entries()[-num_entries:]
        num_tokens = int((entries[:, 2] - entries[:, 1]).sum())
        self.away = Away(entries, keys, self.position, self.logits_row, self.hidden_row)
        self._forget_stored(self.table.num_tokens - num_tokens)
        return num_tokens

    def take_back(self) -> tuple[list[int], Sequence[tuple[Tensor, Tensor]]]:
        """Takes blocks for the keys that are away -> the blocks, and what belongs in them."""
        assert self.away is not None
        entries, keys, position, logits, hidden = self.away
        blocks: list[int] = self.table.append_copies(entries)
        self.away, self.position = None, position
        if logits is not None:
            self.leave_logits(*logits)
        if hidden is not None:
            self.leave_hidden(*hidden)
        return blocks, keys

    def freeze(self) -> None:
        """Moves own tokens into the shared prefix, so that many children copy nothing."""
        if not self._own:
            return
        self._prefix += tuple(self._own)
        self._prefix_records += tuple(self._own_records)
        self._own.clear()
        self._own_records.clear()

    def view(self, num_tokens: int) -> Branch:
        """The first `num_tokens` tokens under the same name, not one of the tree's branches."""
        view = Branch((), self.table.fork(), self._decode, self.parent)
        view._copy_from(self)
        view.fork_length, view.start_position = self.fork_length, self.start_position
        view.path, view.path_key = self.path, self.path_key
        view.truncate(num_tokens)
        view.freeze()
        return view

    def name_children(self, n: int) -> int:
        """Takes the numbers of n children to come -> the first of them.

        An operation names its children as it starts: how long it takes must not change their draws.
        """
        first, self._num_named = self._num_named, self._num_named + n
        return first

    def child(self, base: Branch, number: int) -> Branch:
        """A new child that holds what `base`, this branch or a view of it, holds."""
        child = Branch((), base.table.fork(), self._decode, self)
        child._copy_from(base)
        child.fork_length = base.num_tokens
        child.start_position = base.end_position
        child.path = (*self.path, number)
        child.path_key = _C.child_key(self.path_key, number)
        if self._children is None:
            self._children = []
        self._children.append(child)
        return child

    def _copy_from(self, other: Branch) -> None:
        other.freeze()
        self._prefix, self._prefix_records = other._prefix, other._prefix_records
        self._sampled = other._sampled[:]
        self.prompt_length = other.prompt_length
        self.join_length, self.join_position = other.join_length, other.join_position
        self.position, self.recomputable = other.position, other.recomputable
        self.sight = other.sight
        self._logits, self._logits_number = other._logits, other._logits_number
        self._hidden, self._hidden_number = other._hidden, other._hidden_number
        self.kept_hidden = dict(other.kept_hidden)
        self.grammar_text = None if other.grammar_text is None else other.grammar_text.copy()

    def adopt(self, branches: Sequence[Branch], position: int) -> None:
        """Takes what other branches have after this one's tokens as its own, and goes on from
        `position`; the caller joins the tables."""
        begin = self.num_tokens
        for branch in branches:
            self._own += branch.tokens[begin:]
            records = [*branch._kept()][begin - branch.prompt_length :]
            self._own_records += records
            self._sampled.extend([kept[0] for kept in records if kept[3]])
        self.join_length, self.join_position = self.num_tokens, position
        self.position = position
        self.recomputable = False
        self.grammar_text = None
        self._logits = self._hidden = self._text = None
