"""What each operation does: the work it needs first, and its result once that work is done."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallel_decode import _C
from parallel_decode.engine.branch import GIVEN, Branch, Sight, View, gather_rows
from parallel_decode.engine.grammars import Grammars
from parallel_decode.engine.joined_tables import JoinedTables
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
from parallel_decode.engine.sampler import token_records
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.engine.shortened import shortened
from parallel_decode.engine.stop import StopMatcher
from parallel_decode.engine.swapping import Swapping
from parallel_decode.engine.verification import Verification
from parallel_decode.engine.work import Work
from parallel_decode.kernels import Ops
from parallel_decode.model.tokenizer import Tokenizer

Finish = Callable[[], Any]
NUM_MATCHERS = 64
"""Of stop strings, that are kept."""


class Settling(ValueError):
    """A branch's pending tokens are being computed for another operation: try again after it."""


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
        self._ops = ops
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_seq_len = max_seq_len
        self._max_batch_tokens = max_batch_tokens
        self._grammars = grammars
        self._joined_tables = JoinedTables(cache, turn_keys, evict)
        self._swapping = Swapping(cache, evict)
        self.running: dict[int, Work] = {}
        # What a matcher has learned of tokens serves all operations with the same strings.
        self._stop_matcher = functools.lru_cache(NUM_MATCHERS)(
            lambda stop: StopMatcher(stop, tokenizer.decode)
        )
        self._starters: dict[type, Callable[[Any, Program], tuple[list[Work], Finish]]] = {
            Prefill: self._prefill,
            Extend: self._extend,
            Fork: self._fork,
            Score: self._score,
            Verify: self._verify,
            Prune: self._prune,
            Rollback: self._rollback,
            Join: self._join,
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

    def encode(self, text: str | Sequence[int], *, is_prompt: bool = False) -> list[int]:
        """Token ids of a text; ids pass through, checked. A prompt begins as the model wants it."""
        if isinstance(text, str):
            return self._tokenizer.encode(text, add_bos=None if is_prompt else False)
        tokens = [int(token) for token in text]
        for token in tokens:
            if not 0 <= token < self._vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary {self._vocab_size}")
        return tokens

    def _prefill(self, op: Prefill, program: Program) -> tuple[list[Work], Finish]:
        tokens = self.encode(op.prompt, is_prompt=True)
        if not tokens:
            raise ValueError("the prompt is empty: it needs at least one token")
        self._check_end(len(tokens), 0)
        branch = Branch(tokens, _C.BlockTable(self._cache.pool), self._tokenizer.decode)
        program.branches.append(branch)
        program.usage.prompt_tokens += len(tokens)
        return [Work(branch, op)], lambda: branch

    def _extend(self, op: Extend, program: Program) -> tuple[list[Work], Finish]:
        branches = list(op.branches)
        tokens = self.encode(op.tokens)
        params = _one_each(op.params, len(branches))
        if op.params is None and not tokens:
            raise ValueError("Extend needs tokens, sampling params or both")
        for given in {id(p): p for p in params if p is not None}.values():
            self._check_params(given)
        if len({id(branch) for branch in branches}) != len(branches):
            raise ValueError("Extend: the same branch is named twice")
        for branch in branches:
            self._check_idle(branch)
            self._check_end(branch.end_position + len(tokens), len(tokens))
            if not tokens:
                self._check_has_last_token(branch)
        kept = self._matcher(op.keep_hidden)
        works = []
        for branch, p in zip(branches, params, strict=True):
            self._set_grammar(branch, p, len(tokens))
            if tokens:
                branch.status, branch.finish_reason = "live", None
                if op.logprobs and not branch.num_pending:
                    self._make_ready(branch, unstore=True)
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
        self._check_idle(branch)
        at = branch.num_tokens if op.at is None else op.at
        if n < 1 or not 1 <= at <= branch.num_tokens:
            raise ValueError(
                f"can't fork {n} children at token {at} of a branch of {branch.num_tokens}"
            )
        if at < branch.join_length:
            raise ValueError(f"can't fork at token {at}, inside a join ({branch.join_length})")
        lengths = _position_ranges(op)
        if lengths:
            self._check_end(branch.end_position - (branch.num_tokens - at) + sum(lengths), 0)
        base = branch if at == branch.num_tokens else branch.view(at)
        self._make_ready(base)
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

    def _score(self, op: Score, program: Program) -> tuple[list[Work], Finish]:
        branches = list(op.branches)
        tokens = self.encode(op.continuation)
        for branch in branches:
            self._check_idle(branch)
        if op.distribution and (tokens or op.head is not None):
            raise ValueError("Score: a distribution goes with no continuation and no head")
        matcher = self._matcher(op.at)
        if matcher is not None and (op.head is None or tokens):
            raise ValueError("Score: `at` goes with `head`, and not with `continuation`")
        if not branches:
            return [], list
        if not tokens and op.head is None and not op.distribution:
            return [], lambda: [
                branch.records[-1] if branch.records else GIVEN for branch in branches
            ]
        for branch in branches:
            self._check_has_last_token(branch)
            self._check_end(branch.end_position + len(tokens), len(tokens))
        if matcher is not None:
            return self._score_steps(op, branches, matcher, program)
        if tokens and op.head is None:
            return self._score_continuation(op, branches, tokens, program)
        probes, works = [], []
        for branch in branches:
            probe = branch.view(branch.num_tokens)
            probes.append(probe)
            known = probe.logits_row if op.distribution else probe.hidden_row
            if not tokens and not probe.num_pending and known is not None:
                probe.table.truncate(0)  # that row is all that is asked of it
                continue
            if not tokens:
                self._make_ready(probe, unstore=True)
            for token in tokens:
                probe.push(token, GIVEN)
            works.append(Work(probe, op))
        program.usage.probes += len(works)

        def finish() -> list[Any]:
            if op.distribution:
                rows = [probe.logits_row.value for probe in probes if probe.logits_row is not None]
                return [torch.log_softmax(row.float(), 0) for row in rows]
            assert op.head is not None
            hidden = torch.stack([p.hidden_row.value for p in probes if p.hidden_row is not None])
            results = op.head(hidden)
            if len(results) != len(probes):
                raise ValueError(f"head gave {len(results)} results for {len(probes)} branches")
            return list(results.unbind(0)) if isinstance(results, Tensor) else list(results)

        return works, finish

    def _score_continuation(
        self, op: Score, branches: Sequence[Branch], tokens: Sequence[int], program: Program
    ) -> tuple[list[Work], Finish]:
        """Log-probabilities of tokens. The logits behind a branch are those of the first where they
        are known, and the last token's own are asked for by nobody: neither is computed."""
        *given, last = tokens
        probes, firsts, works = [], [], []
        for branch in branches:
            probe = branch.view(branch.num_tokens)
            probes.append(probe)
            first = None if probe.num_pending else probe.logits_row
            firsts.append(first)
            begin = probe.num_tokens
            if first is None:
                self._make_ready(probe)
            for token in given:
                probe.push(token, GIVEN)
            if not probe.num_pending:
                probe.table.truncate(0)  # the row that is known is all that is asked of it
                continue
            work = Work(probe, op)
            work.recorded = range(begin + (first is not None), probe.num_tokens)
            works.append(work)
        program.usage.probes += len(probes)

        def finish() -> list[list[float]]:
            rows = [row for row in (*firsts, *(p.logits_row for p in probes)) if row is not None]
            asked = [*(tokens[0] for row in firsts if row is not None), *(last for _ in probes)]
            records = token_records(self._ops, gather_rows(rows), asked)
            logprobs = iter([record.logprob for record in records])
            scores = [probe.last_logprobs(len(given)) for probe in probes]
            for score, first in zip(scores, firsts, strict=True):
                if first is not None:
                    score[:1] = [next(logprobs)]
            for score in scores:
                score[len(given) :] = [next(logprobs)]
            return scores

        return works, finish

    def _score_steps(
        self, op: Score, branches: Sequence[Branch], matcher: StopMatcher, program: Program
    ) -> tuple[list[Work], Finish]:
        """A head at the end of every step."""
        ends = [branch.ends(matcher) for branch in branches]
        starts = []
        for branch, numbers in zip(branches, ends, strict=True):
            last = branch.num_tokens - 1
            if not branch.num_pending and branch.hidden is not None:
                branch.kept_hidden.setdefault(last, branch.hidden.clone())
            start = next((n for n in numbers if n not in branch.kept_hidden), branch.num_tokens)
            moved = branch.join_length or (0 if branch.recomputable else branch.fork_length)
            if start < moved:
                raise ValueError(f"{branch!r} was joined or moved: its first steps were not kept")
            starts.append(start)
        probes: dict[int, Branch] = {}
        works = []
        for branch, start in zip(branches, starts, strict=True):
            if start == branch.num_tokens:
                continue
            probe = probes[id(branch)] = branch.view(start)
            for token in branch.tokens[start:]:
                probe.push(token, GIVEN)
            work = Work(probe, op)
            work.kept = matcher
            works.append(work)
        program.usage.probes += len(works)

        def finish() -> list[Any]:
            for branch in branches:
                probe = probes.get(id(branch))
                if probe is not None:
                    assert probe.hidden is not None
                    probe.kept_hidden[probe.num_tokens - 1] = probe.hidden.clone()
                    # The next look at a branch that has grown begins here.
                    branch.kept_hidden.update(probe.kept_hidden)
            rows = [
                branch.kept_hidden[number]
                for branch, numbers in zip(branches, ends, strict=True)
                for number in numbers
            ]
            results = op.head(torch.stack(rows))  # type: ignore[misc]
            if len(results) != len(rows):
                raise ValueError(f"head gave {len(results)} results for {len(rows)} steps")
            values = list(results.unbind(0)) if isinstance(results, Tensor) else list(results)
            cuts = itertools.accumulate(map(len, ends))
            return [
                values[cut - len(numbers) : cut] for numbers, cut in zip(ends, cuts, strict=True)
            ]

        return works, finish

    def _matcher(self, strings: str | Sequence[str]) -> StopMatcher | None:
        strings = (strings,) if isinstance(strings, str) else tuple(strings)
        if not strings or strings == ("",):
            return None
        if not all(isinstance(s, str) and s for s in strings):
            raise ValueError(f"strings at which a step ends must not be empty, got {strings!r}")
        return self._stop_matcher(strings)

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
            self._check_idle(branch)
            self._check_has_last_token(branch)
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
            self._make_ready(work.branch, unstore=True)
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
            self._check_idle(branch)
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
            self._check_idle(branch)
            if branch.is_seen:
                raise ValueError(f"{branch!r} is seen by others: its keys must stay")
        counts = [self._swapping.take_out(branch) for branch in op.branches]
        program.usage.swapped_tokens += sum(counts)
        return [], lambda: counts

    def _shorten(self, op: Shorten, program: Program) -> tuple[list[Work], Finish]:
        text = shortened(op.text, op.max_tokens, self._tokenizer)
        return [], lambda: text

    def _rollback(self, op: Rollback, program: Program) -> tuple[list[Work], Finish]:
        self._check_idle(op.branch)
        if not 1 <= op.num_tokens <= op.branch.num_tokens:
            raise ValueError(f"can't roll back to {op.num_tokens} of {op.branch.num_tokens} tokens")
        if op.num_tokens < op.branch.join_length:
            raise ValueError(f"can't roll back to {op.num_tokens}, inside a join")
        op.branch.truncate(op.num_tokens)
        op.branch.status, op.branch.finish_reason = "live", None
        return [], lambda: op.branch

    def _join(self, op: Join, program: Program) -> tuple[list[Work], Finish]:
        self._check_idle(op.parent)
        forks = [self._fork_towards(op.parent, branch) for branch in op.branches]
        if not forks:
            raise ValueError(f"join {op.mode!r} needs at least one branch")
        if op.mode in ("answer", "text"):
            return self._join_text(op, program)
        policies = {
            "kv_union": ("same_start_max_join", "promised", "disjoint_ranges", "thought_embed"),
            "kv_concat": ("query_rotate",),
        }
        if op.mode not in policies:
            raise ValueError(f"unknown join mode {op.mode!r}")
        policy = op.positions or policies[op.mode][0]
        if policy not in policies[op.mode]:
            raise ValueError(f"join {op.mode!r} has positions {policies[op.mode]}, not {policy!r}")
        for branch, fork in zip(op.branches, forks, strict=True):
            limit, end = fork.position_limit, branch.end_position
            if policy in ("promised", "disjoint_ranges"):
                if limit is None:
                    raise ValueError(f"{branch!r} was not forked with positions={policy!r}")
                if end > limit:
                    raise ValueError(
                        f"{branch!r} ends at position {end}, its promise ended at {limit}"
                    )
        if policy == "thought_embed":
            self._joined_tables.check_embeddings(op.embeddings, len(op.branches))
        if len({id(branch) for branch in op.branches}) != len(op.branches):
            raise ValueError("Join: the same branch is named twice")
        number = op.parent.name_children(1)
        ranges = [(fork.start_position, fork.position_limit or 0) for fork in forks]
        views: dict[int, Branch] = {}

        def settle(branch: Branch) -> list[Work]:
            """Keeps what a branch holds once it is complete; then it may change again."""
            views[id(branch)] = branch.view(branch.num_tokens)
            return []

        works = []
        for branch in (op.parent, *op.branches):
            if branch.num_pending:
                work = Work(branch, op)
                work.then = functools.partial(settle, branch)
                works.append(work)
            else:
                settle(branch)

        def finish() -> Branch:
            parent, *branches = (views[id(branch)] for branch in (op.parent, *op.branches))
            try:
                for view in views.values():
                    if view.num_pending:
                        raise ValueError(f"{view!r} ended before it could be joined")
                table, cursor = self._joined_tables.build(
                    parent, branches, ranges, policy, op.embeddings
                )
                joined = op.parent.child(parent, number)
                joined.table = table
                joined.adopt(branches, cursor)
            finally:
                for view in views.values():
                    view.release()
            program.branches.append(joined)
            return joined

        return works, finish

    def _fork_towards(self, parent: Branch, branch: Branch) -> Branch:
        """The child of `parent` on the path to `branch`: the branch's own text begins with it."""
        self._check_idle(branch)
        fork, shared = branch, branch.fork_length
        while fork.parent is not None and fork.parent is not parent:
            fork = fork.parent
            shared = min(shared, fork.fork_length)
        length = parent.num_tokens
        if fork.parent is not parent or shared != length or branch.tokens[:length] != parent.tokens:
            raise ValueError(f"{branch!r} is not a fork of {parent!r} at its end")
        return fork

    def _join_text(self, op: Join, program: Program) -> tuple[list[Work], Finish]:
        if op.mode == "answer" and op.extract is None:
            raise ValueError("join 'answer' needs extract(branch) -> text or token ids")
        separator = self.encode(op.separator)
        tokens: list[int] = []
        for branch in op.branches:
            if op.mode == "answer":
                tokens += self.encode(op.extract(branch))  # type: ignore[misc]
            else:
                tokens += branch.tokens[op.parent.num_tokens :]
            tokens += separator
        if not tokens:
            raise ValueError(f"join {op.mode!r} has no tokens to add")
        self._check_end(op.parent.end_position + len(tokens), len(tokens))
        fork_works, fork_finish = self._fork(Fork(op.parent), program)
        if fork_works:
            # The parent's own pending tokens come first, so that the child shares them.
            parent_work = fork_works[0]
            parent_work.operation = op
        joined: list[Branch] = []

        def finish() -> Branch:
            return joined[0]

        def append() -> list[Work]:
            [child] = fork_finish()
            child.grammar_text = None
            for token in tokens:
                child.push(token, GIVEN)
            joined.append(child)
            return [Work(child, op)]

        if not fork_works:
            return append(), finish
        parent_work.then = append
        return fork_works, finish

    def _see(self, op: See, program: Program) -> tuple[list[Work], Finish]:
        branch = op.branch
        views = [
            view if isinstance(view, View) else View(view, view.fork_length) for view in op.views
        ]
        self._check_idle(branch)
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
        tokens = self.encode(op.tokens)
        works = [self.running.get(id(branch)) for branch in op.branches]
        sampling = [w if w and w.params is not None and not w.done else None for w in works]
        for branch, work in zip(op.branches, sampling, strict=True):
            if work is None:
                self._check_idle(branch)
                self._check_end(branch.end_position + len(tokens), len(tokens))
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
            self._check_idle(branch)
            if branch.sight is not None:
                raise ValueError(f"{branch!r} sees others: text alone can't bring back its keys")
            self.encode(history.tokens)
            self._check_end(branch.end_position + len(history.tokens), len(history.tokens))
        extend = op.extend or Extend(branches)
        given = len(self.encode(extend.tokens))
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

    def _make_ready(self, branch: Branch, *, unstore: bool = False) -> None:
        """Makes sure that running the branch's pending tokens leaves logits on it."""
        if branch.num_pending or branch.num_tokens <= branch.join_length:
            return
        if unstore or not branch.has_logits:
            branch.unstore_last()

    def _check_idle(self, branch: Branch) -> None:
        if branch.status in ("pruned", "failed"):
            why = f": {branch.error}" if branch.error else ""
            raise ValueError(f"{branch!r} can't go on{why}")
        work = self.running.get(id(branch))
        if work is not None and not work.done:
            # A fork or join needs no work as a rule, and some after a pre-emption: the program
            # must not notice the difference.
            settling = isinstance(work.operation, Fork | Join)
            kind = Settling if settling else ValueError
            raise kind(f"{branch!r} is running in another operation")
        if not branch.recomputable and not branch.num_stored:
            raise ValueError(f"{branch!r} was released: text alone can't bring back its keys")

    def _check_has_last_token(self, branch: Branch) -> None:
        if branch.num_tokens == branch.join_length:
            raise ValueError(
                f"{branch!r} was joined: it has no last token to go on from, extend it with tokens"
            )

    def _check_end(self, end: int, added: int) -> None:
        """`end`: how far the positions would go."""
        if end > self._max_seq_len:
            what = f"{added} more tokens make" if added else "that makes"
            raise ValueError(
                f"{what} {end} tokens, over the context of {self._max_seq_len}: open the engine"
                " with a larger max_seq_len, or shorten the text"
            )


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
