"""What each operation does: the work it needs first, and its result once that work is done."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from parallel_decode import _C
from parallel_decode.engine.branch import GIVEN, Branch, Sight, View
from parallel_decode.engine.checks import Checks
from parallel_decode.engine.grammars import Grammars
from parallel_decode.engine.joined_tables import JoinedTables
from parallel_decode.engine.joining import Joining
from parallel_decode.engine.kv_cache import KVCache
from parallel_decode.engine.operation import (
    Broadcast,
    Extend,
    Fork,
    Join,
    Operation,
    Prefill,
    Prune,
    Recall,
    Release,
    Rollback,
    Score,
    See,
    Seed,
    Shorten,
    Swap,
    Verify,
)
from parallel_decode.engine.program import Program
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.engine.scoring import Scoring
from parallel_decode.engine.shortened import shortened
from parallel_decode.engine.stop import StopMatcher
from parallel_decode.engine.swapping import Swapping
from parallel_decode.engine.verification import Verification
from parallel_decode.engine.work import Finish, Work
from parallel_decode.kernels import Ops
from parallel_decode.model.tokenizer import Tokenizer

NUM_MATCHERS = 64
"""Of stop strings, that are kept."""


class Primitives:
    """Starts operations: `start` returns works to wait for and a function that gives the result.

    Raises ValueError for what can't be done; nothing has changed then.
    """

    def __init__(
        self,
        cache: KVCache,
        tokenizer: Tokenizer,
        vocab_size: int,
        max_seq_len: int,
        turn_keys: Callable[[Tensor, Tensor], Tensor],
        evict: Callable[[int], int],
        max_batch_tokens: int,
        grammars: Grammars,
        ops: Ops,
    ) -> None:
        self._cache = cache
        self.running: dict[int, Work] = {}
        self.checks = Checks(tokenizer, vocab_size, max_seq_len, self.running)
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_seq_len = max_seq_len
        self._max_batch_tokens = max_batch_tokens
        self._grammars = grammars
        self._swapping = Swapping(cache, evict)
        # What a matcher has learned of tokens serves all operations with the same strings.
        self._stop_matcher = functools.lru_cache(NUM_MATCHERS)(
            lambda stop: StopMatcher(stop, tokenizer.decode)
        )
        self._scoring = Scoring(self.checks, ops, self._stop_matcher)
        tables = JoinedTables(cache, turn_keys, evict)
        self._joining = Joining(self.checks, tables, self._fork)
        self._starters: dict[type, Callable[[Any, Program], tuple[list[Work], Finish]]] = {
            Prefill: self._prefill,
            Extend: self._extend,
            Fork: self._fork,
            Score: self._scoring.start,
            Verify: self._verify,
            Prune: self._prune,
            Rollback: self._rollback,
            Join: self._joining.start,
            See: self._see,
            Broadcast: self._broadcast,
            Seed: self._seed,
            Recall: self._recall,
            Release: self._release,
            Swap: self._swap,
            Shorten: self._shorten,
        }

    def start(self, operation: Operation, program: Program) -> tuple[list[Work], Finish]:
        starter = self._starters.get(type(operation))
        if starter is None:
            names = ", ".join(kind.__name__ for kind in self._starters)
            raise TypeError(f"a program must yield one of {names}, got {operation!r}")
        self._swapping.bring_back_for(operation)
        return starter(operation, program)

    def _prefill(self, op: Prefill, program: Program) -> tuple[list[Work], Finish]:
        tokens = self.checks.encode(op.prompt, is_prompt=True)
        if not tokens:
            raise ValueError("the prompt is empty: it needs at least one token")
        self.checks.end(len(tokens), 0)
        branch = Branch(tokens, _C.BlockTable(self._cache.pool), self._tokenizer.decode)
        program.branches.append(branch)
        program.usage.prompt_tokens += len(tokens)
        return [Work(branch, op)], lambda: branch

    def _extend(self, op: Extend, program: Program) -> tuple[list[Work], Finish]:
        branches = list(op.branches)
        tokens = self.checks.encode(op.tokens)
        params = _one_each(op.params, len(branches))
        if op.params is None and not tokens:
            raise ValueError("Extend needs tokens, sampling params or both")
        for given in {id(p): p for p in params if p is not None}.values():
            self._check_params(given)
        if len({id(branch) for branch in branches}) != len(branches):
            raise ValueError("Extend: the same branch is named twice")
        for branch in branches:
            self.checks.idle(branch)
            self.checks.end(branch.end_position + len(tokens), len(tokens))
            if not tokens:
                self.checks.has_last_token(branch)
        kept = self._scoring.matcher(op.keep_hidden)
        works = []
        for branch, p in zip(branches, params, strict=True):
            self._set_grammar(branch, p, len(tokens))
            if tokens:
                branch.status, branch.finish_reason = "live", None
                if op.logprobs and not branch.num_pending:
                    branch.make_ready(again=True)
                recorded = range(branch.num_tokens, branch.num_tokens + len(tokens))
                for token in tokens:
                    branch.push(token, GIVEN)
            elif branch.status == "finished":
                continue
            if p is not None and branch.end_position >= self._max_seq_len:
                branch.finish_reason = "length"
                if not tokens:
                    continue
                p = None
            matcher = None
            if p is not None and p.stop:
                matcher = self._stop_matcher(p.stop)
            work = Work(branch, op, p, matcher, op.on_token)
            if branch.finish_reason == "length":
                work.num_before = branch.num_running
            work.kept = kept
            if tokens and op.logprobs:
                work.recorded = recorded
            works.append(work)
        return works, lambda: branches

    def _fork(self, op: Fork, program: Program) -> tuple[list[Work], Finish]:
        branch, n = op.branch, op.n
        self.checks.idle(branch)
        at = branch.num_tokens if op.at is None else op.at
        if n < 1 or not 1 <= at <= branch.num_tokens:
            raise ValueError(
                f"can't fork {n} children at token {at} of a branch of {branch.num_tokens}"
            )
        if at < branch.join_length:
            raise ValueError(f"can't fork at token {at}, inside a join ({branch.join_length})")
        lengths = _position_ranges(op)
        if lengths:
            self.checks.end(branch.end_position - (branch.num_tokens - at) + sum(lengths), 0)
        base = branch if at == branch.num_tokens else branch.view(at)
        base.make_ready()
        works = [Work(base, op)] if base.num_pending else []
        first = branch.name_children(n)
        return works, functools.partial(
            self._born, branch, base, range(first, first + n), lengths, program
        )

    def _born(
        self, branch: Branch, base: Branch, numbers: range, lengths: Sequence[int], program: Program
    ) -> list[Branch]:
        """The children that a fork named, of what `base` holds."""
        children = [branch.child(base, number) for number in numbers]
        start = base.end_position
        for child, length in zip(children, lengths, strict=False):
            child.start_position = child.position = start
            child.position_limit = start + length
            child.recomputable = False
            start += length
        if base is not branch:
            base.release()
        program.branches += children
        return children

    def _verify(self, op: Verify, program: Program) -> tuple[list[Work], Finish]:
        branches = list(op.branches)
        params = _one_each(op.params, len(branches))
        laws = [None] * len(branches) if op.draft_probs is None else list(op.draft_probs)
        counts = op.num_generated
        counts = [counts] * len(branches) if isinstance(counts, int) else list(counts)
        if not len(op.drafts) == len(laws) == len(counts) == len(branches):
            raise ValueError(
                f"{len(op.drafts)} drafts, {len(laws)} draft_probs and {len(counts)} numbers of"
                f" generated tokens for {len(branches)} branches"
            )
        if len({id(branch) for branch in branches}) != len(branches):
            raise ValueError("Verify: the same branch is named twice")
        works = []
        columns = zip(branches, params, op.drafts, laws, counts, strict=True)
        for branch, p, draft, law, num_generated in columns:
            if p is None:
                raise ValueError("Verify needs sampling params")
            self._check_params(p)
            self.checks.idle(branch)
            self.checks.has_last_token(branch)
            if branch.sight is not None or branch.is_seen:
                raise ValueError(
                    f"Verify: {branch!r} sees others or is seen: it goes token by token"
                )
            verification = Verification(draft, op.rule, law, op.replacement)
            verification.check(self._vocab_size)
            if len(draft) >= self._max_batch_tokens:
                raise ValueError(
                    f"a draft of {len(draft)} nodes and the token before it are more than a step"
                    f" has, max_batch_tokens={self._max_batch_tokens}"
                )
            matcher = self._stop_matcher(p.stop) if p.stop else None
            work = Work(branch, op, p, matcher, op.on_token)
            work.num_generated = num_generated
            left = min(p.max_tokens - num_generated, self._max_seq_len - branch.end_position)
            work.verification = verification.within(left)
            if left < 1:
                work.done = True
            works.append(work)
        running = [work for work in works if not work.done and work.branch.status != "finished"]
        for work in works:
            if work.done:
                work.branch.finish_reason = "length"
        for work in running:
            work.branch.finish_reason = None
            self._set_grammar(work.branch, work.sampling, 0)
            work.branch.make_ready(again=True)
        return running, lambda: [list(work.accepted) for work in works]

    def _prune(self, op: Prune, program: Program) -> tuple[list[Work], Finish]:
        for branch in op.branches:
            work = self.running.get(id(branch))
            if work is not None:
                work.done = True
            if branch.status != "failed":
                branch.status = "pruned"
            branch.release()
            branch.kept_hidden = {}
            branch.sight = None
        return [], lambda: None

    def _release(self, op: Release, program: Program) -> tuple[list[Work], Finish]:
        for branch in op.branches:
            self.checks.idle(branch)
            if not branch.recomputable:
                raise ValueError(
                    f"{branch!r} was joined or moved, or saw others: text alone can't bring back"
                    " its keys"
                )
        for branch in op.branches:
            branch.release()
        return [], lambda: None

    def _swap(self, op: Swap, program: Program) -> tuple[list[Work], Finish]:
        for branch in op.branches:
            self.checks.idle(branch)
            if branch.is_seen:
                raise ValueError(f"{branch!r} is seen by others: its keys must stay")
        counts = [self._swapping.take_out(branch) for branch in op.branches]
        program.usage.swapped_tokens += sum(counts)
        return [], lambda: counts

    def _shorten(self, op: Shorten, program: Program) -> tuple[list[Work], Finish]:
        text = shortened(op.text, op.max_tokens, self._tokenizer)
        return [], lambda: text

    def _rollback(self, op: Rollback, program: Program) -> tuple[list[Work], Finish]:
        self.checks.idle(op.branch)
        if not 1 <= op.num_tokens <= op.branch.num_tokens:
            raise ValueError(f"can't roll back to {op.num_tokens} of {op.branch.num_tokens} tokens")
        if op.num_tokens < op.branch.join_length:
            raise ValueError(f"can't roll back to {op.num_tokens}, inside a join")
        op.branch.truncate(op.num_tokens)
        op.branch.status, op.branch.finish_reason = "live", None
        return [], lambda: op.branch

    def _see(self, op: See, program: Program) -> tuple[list[Work], Finish]:
        branch = op.branch
        views = [
            view if isinstance(view, View) else View(view, view.fork_length) for view in op.views
        ]
        self.checks.idle(branch)
        if len({id(view.branch) for view in views}) != len(views):
            raise ValueError("See: the same branch is named twice")
        for view in views:
            if view.branch is branch:
                raise ValueError(f"{branch!r} sees its own tokens as it is")
            if not 0 <= view.begin <= view.branch.num_tokens:
                raise ValueError(f"{view.branch!r} can't be seen from token {view.begin} on")
            # Of nothing, to find out whether it is a branch of this engine.
            _C.BlockTable(self._cache.pool).append_view(view.branch.table, 0, 0, 0)
        works = []
        for looked_at in (branch, *(view.branch for view in views)):
            # A pre-emption may have taken the blocks of one that is idle.
            absent = not looked_at.num_stored and looked_at.status in ("live", "finished")
            idle = id(looked_at) not in self.running
            if looked_at.num_pending and idle and (looked_at is branch or absent):
                works.append(Work(looked_at, op))

        def finish() -> None:
            if branch.status not in ("live", "finished"):
                raise ValueError(f"{branch!r} ended before it could see others")
            branch.sight = None
            if views:
                branch.sight = Sight(views, branch.fork_length, op.offset)
                branch.recomputable = False
            for view in views:
                view.branch.is_seen = True

        return works, finish

    def _broadcast(self, op: Broadcast, program: Program) -> tuple[list[Work], Finish]:
        tokens = self.checks.encode(op.tokens)
        works = [self.running.get(id(branch)) for branch in op.branches]
        sampling = [w if w and w.params is not None and not w.done else None for w in works]
        for branch, work in zip(op.branches, sampling, strict=True):
            if work is None:
                self.checks.idle(branch)
                self.checks.end(branch.end_position + len(tokens), len(tokens))
        for branch, work in zip(op.branches, sampling, strict=True):
            if work is None:
                self._set_grammar(branch, None, len(tokens))
            if work is not None:
                work.inbox = (*work.inbox, (tokens, op.after))
                continue
            branch.status, branch.finish_reason = "live", None
            for token in tokens:
                branch.push(token, GIVEN)
        return [], lambda: None

    def _seed(self, op: Seed, program: Program) -> tuple[list[Work], Finish]:
        key: int = _C.child_key(op.branch.path_key, program.seed & (2**64 - 1))
        return [], lambda: key

    def _recall(self, op: Recall, program: Program) -> tuple[list[Work], Finish]:
        branches = list(op.branches)
        if len(branches) != len(op.histories):
            raise ValueError(f"{len(op.histories)} histories for {len(branches)} branches")
        for branch, history in zip(branches, op.histories, strict=True):
            self.checks.idle(branch)
            if branch.sight is not None:
                raise ValueError(f"{branch!r} sees others: text alone can't bring back its keys")
            self.checks.encode(history.tokens)
            self.checks.end(branch.end_position + len(history.tokens), len(history.tokens))
        extend = op.extend or Extend(branches)
        given = len(self.checks.encode(extend.tokens))
        params = _one_each(extend.params, len(branches))
        for branch, history, p in zip(branches, op.histories, params, strict=True):
            self._set_grammar(branch, p, given)
            for token, record in zip(history.tokens, history.records, strict=True):
                branch.push(token, record)
                program.usage.generated_tokens += record.sampled
            branch.status, branch.finish_reason = history.status, history.finish_reason
            branch.stop_string, branch.error = history.stop_string, history.error
            if branch.status in ("pruned", "failed"):
                branch.release()
        program.usage.probes += op.probes
        return [], lambda: branches

    def _check_params(self, params: SamplingParams) -> None:
        params.check_vocabulary(self._vocab_size)
        if params.grammar is not None:
            self._grammars.check(params.grammar)

    def _set_grammar(self, branch: Branch, params: SamplingParams | None, num_given: int) -> None:
        """Before a branch gets `num_given` tokens and is then sampled: whether its text under a
        grammar goes on, is over, or begins."""
        if num_given and branch.status == "finished":
            branch.grammar_text = None
        if params is None:
            return
        text, grammar = branch.grammar_text, params.grammar
        if grammar is None:
            branch.grammar_text = None
        elif text is None or text.grammar != grammar:
            branch.grammar_text = self._grammars.begin(grammar, branch.num_tokens + num_given)


def _one_each(
    params: SamplingParams | Sequence[SamplingParams] | None, n: int
) -> Sequence[SamplingParams | None]:
    if params is None or isinstance(params, SamplingParams):
        return [params] * n
    if len(params) != n:
        raise ValueError(f"{len(params)} sampling params for {n} branches")
    return params


def _position_ranges(op: Fork) -> list[int]:
    """Length of each child's range of positions; empty for "inherit"."""
    if op.positions == "inherit":
        if op.lengths:
            raise ValueError("lengths go with positions 'promised' or 'disjoint_ranges'")
        return []
    if op.positions not in ("promised", "disjoint_ranges"):
        raise ValueError(f"unknown fork positions {op.positions!r}")
    lengths = list(op.lengths)
    if op.positions == "disjoint_ranges" and len(lengths) == 1:
        lengths *= op.n
    if len(lengths) != op.n or any(length < 1 for length in lengths):
        raise ValueError(f"{op.positions!r} needs {op.n} positive lengths, got {op.lengths!r}")
    return lengths
