"""`Drafting`: the drafts of a step: asked for, cut to what there is room for, verified."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parallel_decode import _C
from parallel_decode.engine.admission import Entry
from parallel_decode.engine.budget import Usage
from parallel_decode.engine.chunk import Chunk
from parallel_decode.engine.decoder import Decoder, Drafted
from parallel_decode.engine.draft_tree import MAX_ROWS, NO_DRAFT, DraftTree, columns_of
from parallel_decode.engine.drafter import DraftRequest
from parallel_decode.engine.draws import draw_key
from parallel_decode.engine.kv_cache import KVCache
from parallel_decode.engine.program import Program
from parallel_decode.engine.runner import Computed, Runner
from parallel_decode.engine.speculator import Speculator
from parallel_decode.engine.verified import NOTHING_DRAWN, Verified
from parallel_decode.engine.work import Work


class Drafting:
    """What a scheduler asks a speculator, and does with the answers.

    Args:
        usage: of the engine.
        max_seq_len: tokens of a branch.
        max_batch_tokens: of a step.
    """

    def __init__(
        self,
        runner: Runner,
        decoder: Decoder,
        cache: KVCache,
        usage: Usage,
        max_seq_len: int,
        max_batch_tokens: int,
    ) -> None:
        self._runner = runner
        self._decoder = decoder
        self._cache = cache
        self._usage = usage
        self._max_seq_len = max_seq_len
        self._max_batch_tokens = max_batch_tokens
        self._speculator: Speculator | None = None
        self._asked: list[int] = []  # chunks of the current step

    @property
    def speculator(self) -> Speculator | None:
        """None where nothing is drafted."""
        return self._speculator

    @speculator.setter
    def speculator(self, speculator: Speculator | None) -> None:
        observer = None if speculator is None else speculator.row_observer
        self._speculator = speculator
        self._runner.observer = observer
        self._cache.attached = () if observer is None else (observer.storage,)

    def add(self, chunks: list[Entry]) -> list[Entry]:
        """The chunks of a step, with drafts behind those after which their branches draw. They take
        what is left of the step's tokens and of the pool, and nobody's place."""
        self._asked = []
        speculator = self.speculator
        if speculator is None:
            return chunks
        num_rows = sum([entry[2].num_rows for entry in chunks])
        if not speculator.wants_to_draft(num_rows):
            return chunks
        room = self._max_batch_tokens - num_rows
        may_draft = [index for index, entry in enumerate(chunks) if _may_draft(*entry)]
        if not may_draft or room <= 0:
            return chunks
        self._asked = may_draft
        requests = [
            DraftRequest(work.branch, work.sampling, draw_key(work, program.seed))
            for index in self._asked
            for program, work, _ in [chunks[index]]
        ]
        drafts = speculator.draft(requests, num_rows, room)
        if not self._checked_nodes(drafts, len(requests), room):
            return chunks
        drafted = list(chunks)
        for index, draft in zip(self._asked, drafts, strict=True):
            program, work, chunk = chunks[index]
            drafted[index] = (program, work, chunk.with_draft(self._fitted(work, chunk, draft)))
        needed = self._runner.blocks_needed([chunk for *_, chunk in drafted])
        return drafted if needed <= self._cache.pool.num_free else chunks

    def _checked_nodes(self, drafts: Sequence[DraftTree], num_requests: int, room: int) -> int:
        """Their number, where there may be such drafts."""
        if len(drafts) != num_requests:
            raise ValueError(f"{len(drafts)} drafts for {num_requests} branches")
        num_nodes = sum(map(len, drafts))
        if num_nodes > room:
            raise ValueError(f"{num_nodes} nodes are drafted, the step has room for at most {room}")
        size = self._runner.vocab_size
        highest = _C.highest_token(columns_of(drafts))
        if highest >= size:
            raise ValueError(f"a draft has token {highest}, outside the vocabulary of {size}")
        return num_nodes

    def _fitted(self, work: Work, chunk: Chunk, draft: DraftTree) -> DraftTree:
        """As much of a draft as a mask has bits for, and the branch has tokens left to draw."""
        num_nodes = len(draft)
        if not num_nodes:
            return draft
        left = self._left(work)
        # Behind the last token that it may draw nothing is asked. No node is deeper than there are.
        if num_nodes >= left and draft.depths.max() >= left:
            draft = draft.keep(draft.depths < left)
        room = MAX_ROWS - len(chunk.tokens)
        return draft if num_nodes <= room else draft.cut(room)

    def _left(self, work: Work) -> int:
        """Tokens that its branch may still draw."""
        return min(
            work.sampling.max_tokens - work.num_generated,
            self._max_seq_len - work.branch.end_position,
        )

    def verify(self, chunks: list[Entry], computed: dict[int, Computed]) -> list[Verified]:
        """Hands out the tokens that drafts have right, and forgets the others' keys."""
        numbers = [index for index, (*_, chunk) in enumerate(chunks) if chunk.num_nodes]
        if not numbers:
            return [Verified(chunks[index][2].branch, NO_DRAFT, []) for index in self._asked]
        # Who was asked for and got no draft draws with the others: a draw for many takes little
        # longer than one for few. Not its last token: who waits for its end is not to go on sooner.
        undrafted = [
            index
            for index in self._asked
            if not chunks[index][2].num_nodes and self._left(chunks[index][1]) > 1
        ]
        drawing = sorted(numbers + undrafted)
        drafted = []
        for index in drawing:
            program, work, chunk = chunks[index]
            row = chunk.branch.logits_row
            assert row is not None
            drafted.append(Drafted(program, work, chunk.draft, row))
            program.usage.drafted_tokens += chunk.num_nodes
        nothing: tuple[list[int], NDArray[np.int64]] = ([], NOTHING_DRAWN)
        of_chunk: dict[int, tuple[list[int], NDArray[np.int64]]] = {}
        try:
            of_chunk = dict(zip(drawing, self._decoder.verify(drafted), strict=True))
            for entry, (path, _) in zip(drafted, of_chunk.values(), strict=True):
                branch = entry.work.branch
                row = None if entry.work.kept is None else branch.hidden_row
                if row is not None:
                    rows = [row.number + 1 + node for node in path]
                    entry.work.keep(branch.num_stored, row.tensor, rows)
        finally:
            self._runner.commit(
                [
                    (chunks[index][2], computed[index].slots, of_chunk.get(index, nothing)[0])
                    for index in numbers
                ]
            )
        for index, (path, _) in of_chunk.items():
            if path:
                for usage in (self._usage, chunks[index][0].usage):
                    usage.accepted_tokens += len(path)
        return [
            Verified(chunk.branch, chunk.draft, *of_chunk.get(index, nothing))
            for index in self._asked
            for *_, chunk in [chunks[index]]
        ]


def _may_draft(program: Program, work: Work, chunk: Chunk) -> bool:
    """Whether the branch draws after this chunk and after nothing else, at the next position."""
    branch = work.branch
    return (
        work.params is not None
        and branch.sight is None
        and not branch.is_seen  # how far it gets in a step is what others see
        and branch.end_position == branch.position + branch.num_pending
        and not work.inbox
        and not work.recorded
        and work.claimed is None
        and work.verification is None
        and program.stop_reason is None
        and chunk.num_logits == 1
        and len(chunk.tokens) < MAX_ROWS
    )
