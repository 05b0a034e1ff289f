"""One token for each branch that has logits: draws, messages, and what ends a branch."""

from collections.abc import Callable, Sequence

from parallel_decode.engine.branch import GIVEN, Branch
from parallel_decode.engine.budget import Usage
from parallel_decode.engine.program import Program
from parallel_decode.engine.sampler import Sampler
from parallel_decode.engine.work import Work
from parallel_decode.model.tokenizer import Tokenizer


class Decoder:
    """The sampling half of a step.

    Args:
        sampler: draws the tokens.
        tokenizer: knows the ends of a text, and the text at which messages wait.
        max_seq_len: position at which a branch is full.
        usage: of the engine as a whole.
        end_program: called with a program and the error of its callback.
    """

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: Tokenizer,
        max_seq_len: int,
        usage: Usage,
        end_program: Callable[[Program, Exception], None],
    ) -> None:
        self._sampler = sampler
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
        draws = self._sampler.sample(
            [work for _, work in ready], [program.seed for program, _ in ready]
        )
        for (program, work), draw in zip(ready, draws, strict=True):
            if work.done:  # a callback ended it while this step's tokens were handed out
                continue
            limit = program.budget.tokens
            if limit is not None and program.usage.generated_tokens >= limit:
                self.finish(work, "budget")
                continue
            if draw is None:
                self.fail(work, "the model's logits hold a NaN or leave nothing to choose from")
                continue
            token, record = draw
            branch = work.branch
            branch.push(token, record)
            work.num_generated += 1
            program.usage.generated_tokens += 1
            self._usage.generated_tokens += 1
            if work.sampling.edits_logits:
                work.output_counts[token] += 1
            reason = self._end_reason(work, token)
            if reason is not None:
                self.finish(work, reason)
            if work.on_token is not None:
                try:
                    work.on_token(branch, token)
                except Exception as failure:
                    self._end_program(program, failure)

    def _has_logits(self, branch: Branch) -> bool:
        if branch.num_pending:
            return False
        if branch.logits_row is None:
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
            work.inbox.pop(0)
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
        if work.sampling.edits_logits:
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
            found = matcher.match(branch.recent(min(work.num_generated, matcher.window)))
            if found is not None and work.num_generated >= params.min_tokens:
                branch.stop_string = found
                return "stop"
        if work.num_generated >= params.max_tokens or branch.end_position >= self._max_seq_len:
            return "length"
        return None

    def finish(self, work: Work, reason: str) -> None:
        """Ends the sampling of a work."""
        work.branch.finish_reason = reason
        work.done = True
        if reason == "eos":
            work.branch.status = "finished"
            return
        # It is idle from here on, and an idle branch takes what it is told at once.
        for tokens, after in work.inbox:
            if after is None:
                self._tell(work, tokens)
        work.inbox.clear()

    def fail(self, work: Work, why: str) -> None:
        """Ends a branch that can't go on, and frees its blocks."""
        branch = work.branch
        branch.status, branch.finish_reason, branch.error = "failed", "error", why
        branch.release()
        work.done = True
