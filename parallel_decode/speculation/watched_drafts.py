"""`WatchedDrafts`: drafts that are not computed, but compared with what their branches say next."""

from collections.abc import Iterable

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import MAX_NODES, DraftTree
from parallel_decode.speculation.calibration import Judged

WATCHED = 3
"""Tokens of a branch by which a draft is judged; deeper nodes are not."""


class WatchedDrafts:
    """Shows what a drafter is worth at the price of its drafts: a branch gets its tokens anyway."""

    def __init__(self) -> None:
        self._waiting: dict[Branch, tuple[DraftTree, int]] = {}

    def watch(self, branch: Branch, tree: DraftTree) -> None:
        """A tree behind the branch's last token. One that is watched already goes on."""
        if len(tree):
            self._waiting.setdefault(branch, (tree, branch.num_tokens))

    def judge(self, branches: Iterable[Branch]) -> list[Judged]:
        """Those of these branches whose tokens have left their draft or reached its end."""
        judged = []
        for branch in branches:
            entry = self._waiting.get(branch)
            if entry is not None and (right := _judge(branch, *entry, is_over=False)) is not None:
                del self._waiting[branch]
                judged.append(right)
        return judged

    def end(self, branch: Branch) -> Judged | None:
        """The branch says nothing more: what it has not said was wrong."""
        entry = self._waiting.pop(branch, None)
        return None if entry is None else _judge(branch, *entry, is_over=True)

    def drop(self, branch: Branch) -> None:
        """The branch was rolled back."""
        self._waiting.pop(branch, None)


def _judge(branch: Branch, tree: DraftTree, start: int, *, is_over: bool) -> Judged | None:
    said = branch.num_tokens - start
    path, may_go_on = tree.follow(branch.recent(said))
    if may_go_on and not is_over and said < WATCHED:
        return None
    return Judged(tree, path, said if may_go_on and not is_over else MAX_NODES)
