"""`Verified`: what became of a draft."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import DraftTree

NOTHING_DRAWN = np.zeros(0, np.int64)


class Verified(NamedTuple):
    """A branch that got tokens: for `path`, the nodes of its draft that were right, and one more
    unless it ended there.

    drawn: [1 + num_nodes] int64, what is drawn behind the branch and behind each node, right or
        wrong, -1 where there was nothing to choose from; empty where it was not drawn with drafts.
    """

    branch: Branch
    draft: DraftTree
    path: list[int]
    drawn: NDArray[np.int64] = NOTHING_DRAWN
