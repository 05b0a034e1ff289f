"""The tables by which branches read what they see of other branches."""

from collections.abc import Mapping, Sequence

from parallel_decode import _C
from parallel_decode.engine.branch import Branch


def stored_before(branches: Sequence[Branch]) -> dict[int, int]:
    """How many tokens everybody has stored whom one of the branches sees, by id(branch)."""
    return {
        id(view.branch): view.branch.num_stored
        for branch in branches
        if branch.sight is not None
        for view in branch.sight.views
    }


def reading_table(
    pool: _C.BlockPool, branch: Branch, num_rows: int, stored: Mapping[int, int]
) -> _C.BlockTable | None:
    """What the last `num_rows` tokens of a branch read; None for its own table and nothing else.

    It holds references to blocks: truncate it to 0 before anybody appends to one of them.

    stored: how many tokens of each branch that it sees are there for it to see, by id(branch).
    """
    if branch.sight is None:
        return None
    views, boundary, offset = branch.sight
    visible = [
        (view.branch.table, view.begin, stored[id(view.branch)])
        for view in views
        if stored[id(view.branch)] > view.begin
    ]
    if not visible:
        return None
    own = branch.table
    boundary = min(boundary, own.num_tokens - num_rows)
    moved = 0 if offset is not None else sum(begin - end for _, begin, end in visible)
    table = _C.BlockTable(pool)
    table.append_view(own, 0, boundary, moved)
    cursor = own.position_of(boundary) + moved
    for other, begin, end in visible:
        by = cursor - other.position_of(begin) if offset is None else offset
        table.append_view(other, begin, end, by)
        cursor += end - begin
    table.append_view(own, boundary, own.num_tokens, 0)
    return table
