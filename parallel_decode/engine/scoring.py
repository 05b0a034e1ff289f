"""`Scoring`: probes behind branches that stay as they are: likelihoods, distributions, heads."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallel_decode.engine.branch import GIVEN, Branch, gather_rows
from parallel_decode.engine.checks import Checks
from parallel_decode.engine.operation import Score
from parallel_decode.engine.program import Program
from parallel_decode.engine.sampler import token_records
from parallel_decode.engine.stop import StopMatcher
from parallel_decode.engine.work import Finish, Work
from parallel_decode.kernels import Ops


class Scoring:
    """Starts `Score`.

    Args:
        stop_matcher: strings to what finds them.
    """

    def __init__(
        self, checks: Checks, ops: Ops, stop_matcher: Callable[[Sequence[str]], StopMatcher]
    ) -> None:
        self._checks = checks
        self._ops = ops
        self._stop_matcher = stop_matcher

    def start(self, op: Score, program: Program) -> tuple[list[Work], Finish]:
        """Its probes, and its results once they are done."""
        branches = list(op.branches)
        tokens = self._checks.encode(op.continuation)
        for branch in branches:
            self._checks.idle(branch)
        if op.distribution and (tokens or op.head is not None):
            raise ValueError("Score: a distribution goes with no continuation and no head")
        matcher = self.matcher(op.at)
        if matcher is not None and (op.head is None or tokens):
            raise ValueError("Score: `at` goes with `head`, and not with `continuation`")
        if not branches:
            return [], list
        if not tokens and op.head is None and not op.distribution:
            return [], lambda: [
                branch.records[-1] if branch.records else GIVEN for branch in branches
            ]
        for branch in branches:
            self._checks.has_last_token(branch)
            self._checks.end(branch.end_position + len(tokens), len(tokens))
        if matcher is not None:
            return self._steps(op, branches, matcher, program)
        if tokens and op.head is None:
            return self._continuation(op, branches, tokens, program)
        probes, works = [], []
        for branch in branches:
            probe = branch.view(branch.num_tokens)
            probes.append(probe)
            known = probe.logits_row if op.distribution else probe.hidden_row
            if not tokens and not probe.num_pending and known is not None:
                probe.table.truncate(0)  # that row is all that is asked of it
                continue
            if not tokens:
                probe.make_ready(again=True)
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

    def _continuation(
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
                probe.make_ready()
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

    def _steps(
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

    def matcher(self, strings: str | Sequence[str]) -> StopMatcher | None:
        """Of strings at which a step ends; None for no string."""
        strings = (strings,) if isinstance(strings, str) else tuple(strings)
        if not strings or strings == ("",):
            return None
        if not all(isinstance(s, str) and s for s in strings):
            raise ValueError(f"strings at which a step ends must not be empty, got {strings!r}")
        return self._stop_matcher(strings)
