"""One token for each branch that has logits: draws, messages, and what ends a branch."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parallel_decode.engine.branch import GIVEN, Branch, Kept, Row
from parallel_decode.engine.budget import Usage
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.draft_verifier import DraftVerifier
from parallel_decode.engine.draws import Draws
from parallel_decode.engine.program import Program
from parallel_decode.engine.sampler import Sampler
from parallel_decode.engine.work import Work
from parallel_decode.model.tokenizer import Tokenizer


class Drafted(NamedTuple):
    """A draft whose logits are there: those behind the branch in `row`, those behind the nodes in
    the rows after it."""

    program: Program
    work: Work
    draft: DraftTree
    row: Row


class Decoder:
    """The sampling half of a step.

    Args:
        sampler: draws the tokens.
        verifier: tells which draft tokens are right.
        tokenizer: knows the ends of a text, and the text at which messages wait.
        max_seq_len: position at which a branch is full.
        usage: of the engine as a whole.
        end_program: called with a program and the error of its callback.
    """

    def __init__(
        self,
        sampler: Sampler,
        verifier: DraftVerifier,
        tokenizer: Tokenizer,
        max_seq_len: int,
        usage: Usage,
        end_program: Callable[[Program, Exception], None],
    ) -> None:
        self._sampler = sampler
        self._verifier = verifier
        self._tokenizer = tokenizer
        self._max_seq_len = max_seq_len
        self._usage = usage
        self._end_program = end_program
        self._eos_ids = frozenset(tokenizer.eos_ids)

    def step(self, works: Sequence[tuple[Program, Work]]) -> None:
        """Samples for those of the works that can; a callback that raises ends its program."""
        ready = [
            (program, work)
            for program, work in works
            if not work.done
            and work.params is not None
            and program.status != "preempted"
            and not self._take_messages(work)
            and self._has_logits(work.branch)
        ]
        if not ready:
            return
        draws = Draws(
            [work for _, work in ready],
            [program.seed for program, _ in ready],
            [row for _, work in ready if (row := work.branch.logits_row)],
        )
        drawn = self._sampler.records(draws, self._sampler.tokens(draws))
        for (program, work), draw in zip(ready, drawn, strict=True):
            if not work.done:  # a callback may have ended it while tokens were handed out
                self._take(program, work, draw)
                if work.verification is not None and not work.done:
                    self.finish(work, None)

    def verify(self, drafted: Sequence[Drafted]) -> list[tuple[list[int], NDArray[np.int64]]]:
        """Gives branches the tokens that their computed drafts have right, and one more -> of each
        the nodes of those tokens, and what was drawn, as in `Verified`. A branch that ends within
        its draft gets nothing behind its end.
        """
        draws = Draws(
            [entry.work for entry in drafted],
            [entry.program.seed for entry in drafted],
            [entry.row for entry in drafted],
            [entry.draft for entry in drafted],
        )
        committed = self._verifier.verify(draws)
        paths = [entry.path for entry in committed]
        visited: list[int] = []
        for first, path in zip(draws.firsts.tolist(), paths, strict=True):
            visited.append(first)
            visited += [first + 1 + node for node in path]
        tokens = np.array([token for entry in committed for token in entry.tokens], np.int64)
        drawn = iter(self._sampler.records(draws, tokens, np.array(visited)))
        for entry, path in zip(drafted, paths, strict=True):
            program, work = entry.program, entry.work
            taken = 0
            for draw in islice(drawn, 1 + len(path)):
                # A callback may have ended it, and a message comes before the next token.
                if not work.done and (work.verification is not None or not work.inbox):
                    taken += self._take(program, work, draw)
            del path[max(0, taken - 1) :]
            if work.verification is not None:
                work.accepted = path
                if not work.done:
                    self.finish(work, None)
        return [(entry.path, entry.drawn) for entry in committed]

    def _take(self, program: Program, work: Work, draw: tuple[int, Kept] | None) -> bool:
        """Gives a branch its next token, which may be its last -> whether it got one."""
        limit = program.budget.tokens
        if limit is not None and program.usage.generated_tokens >= limit:
            self.finish(work, "budget")
            return False
        if draw is None:
            self.fail(work, _why_nothing(work))
            return False
        token, record = draw
        branch = work.branch
        branch.push(token, record)
        work.num_generated += 1
        program.usage.generated_tokens += 1
        self._usage.generated_tokens += 1
        if work.output_counts is not None:
            work.output_counts[token] += 1
        reason = self._end_reason(work, token)
        if reason is not None:
            self.finish(work, reason)
        if work.on_token is not None:
            try:
                work.on_token(branch, token)
            except Exception as failure:
                self._end_program(program, failure)
        return True

    def _has_logits(self, branch: Branch) -> bool:
        if branch.num_pending:
            return False
        if not branch.has_logits:
            branch.unstore_last()
            return False
        return True

    def _take_messages(self, work: Work) -> bool:
        """Moves messages that are due into the branch -> whether there were any."""
        taken = False
        while work.inbox and not taken and not work.branch.num_pending:
            tokens, after = work.inbox[0]
            if after is not None:
                window = 2 * len(after.encode()) + 2  # a token may be a single byte, or none
                if not self._tokenizer.decode(work.branch.output_tokens[-window:]).endswith(after):
                    break
            work.inbox = work.inbox[1:]
            taken = True
            if not self._tell(work, tokens) or work.branch.end_position >= self._max_seq_len:
                self.finish(work, "length")
        return taken

    def _tell(self, work: Work, tokens: Sequence[int]) -> bool:
        """Appends a message -> whether there was room for it."""
        if work.branch.end_position + len(tokens) > self._max_seq_len:
            return False
        for token in tokens:
            work.branch.push(token, GIVEN)
        if work.output_counts is not None:
            work.output_counts.update(tokens)
        return True

    def _end_reason(self, work: Work, token: int) -> str | None:
        params, branch = work.sampling, work.branch
        if token in self._eos_ids and not params.ignore_eos:
            return "eos"
        if token in params.stop_tokens:
            return "stop"
        matcher = work.matcher
        if matcher is not None and matcher.may_end(token):
            num_sampled = work.num_before + work.num_generated
            found = matcher.match(branch.recent(min(num_sampled, matcher.window)))
            if found is not None and work.num_generated >= params.min_tokens:
                branch.stop_string = found
                return "stop"
        if work.num_generated >= params.max_tokens or branch.end_position >= self._max_seq_len:
            return "length"
        return None

    def finish(self, work: Work, reason: str | None) -> None:
        """Ends the sampling of a work; without a reason where the branch may go on."""
        work.branch.finish_reason = reason
        work.branch.num_running = work.num_before + work.num_generated
        work.done = True
        if reason == "eos":
            work.branch.status = "finished"
            return
        # It is idle from here on, and an idle branch takes what it is told at once.
        for tokens, after in work.inbox:
            if after is None:
                self._tell(work, tokens)
        work.inbox = ()

    def fail(self, work: Work, why: str) -> None:
        """Ends a branch that can't go on, and frees its blocks."""
        branch = work.branch
        branch.status, branch.finish_reason, branch.error = "failed", "error", why
        branch.release()
        work.done = True


def _why_nothing(work: Work) -> str:
    """Why a branch can't draw a token."""
    text = work.branch.grammar_text
    if work.sampling.grammar is None or text is None:
        return "the model's logits hold a NaN or leave nothing to choose from"
    if text.error is not None:
        return f"the grammar can't be met: {text.error}"
    return "the model's logits hold a NaN, or the grammar and the other params allow no token"
