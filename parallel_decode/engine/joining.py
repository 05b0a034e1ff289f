"""`Joining`: one branch of several: of their keys, or of their text."""

import functools
from collections.abc import Callable

from parallel_decode.engine.branch import GIVEN, Branch
from parallel_decode.engine.checks import Checks
from parallel_decode.engine.joined_tables import JoinedTables
from parallel_decode.engine.operation import Fork, Join
from parallel_decode.engine.program import Program
from parallel_decode.engine.work import Finish, Work


class Joining:
    """Starts `Join`.

    Args:
        fork: starts a `Fork`.
    """

    def __init__(
        self,
        checks: Checks,
        joined_tables: JoinedTables,
        fork: Callable[[Fork, Program], tuple[list[Work], Finish]],
    ) -> None:
        self._checks = checks
        self._joined_tables = joined_tables
        self._fork = fork

    def start(self, op: Join, program: Program) -> tuple[list[Work], Finish]:
        """What has to be computed first, and the joined branch once it is."""
        self._checks.idle(op.parent)
        forks = [self._fork_towards(op.parent, branch) for branch in op.branches]
        if not forks:
            raise ValueError(f"join {op.mode!r} needs at least one branch")
        if op.mode in ("answer", "text"):
            return self._text(op, program)
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
        self._checks.idle(branch)
        fork, shared = branch, branch.fork_length
        while fork.parent is not None and fork.parent is not parent:
            fork = fork.parent
            shared = min(shared, fork.fork_length)
        length = parent.num_tokens
        if fork.parent is not parent or shared != length or branch.tokens[:length] != parent.tokens:
            raise ValueError(f"{branch!r} is not a fork of {parent!r} at its end")
        return fork

    def _text(self, op: Join, program: Program) -> tuple[list[Work], Finish]:
        if op.mode == "answer" and op.extract is None:
            raise ValueError("join 'answer' needs extract(branch) -> text or token ids")
        separator = self._checks.encode(op.separator)
        tokens: list[int] = []
        for branch in op.branches:
            if op.mode == "answer":
                tokens += self._checks.encode(op.extract(branch))  # type: ignore[misc]
            else:
                tokens += branch.tokens[op.parent.num_tokens :]
            tokens += separator
        if not tokens:
            raise ValueError(f"join {op.mode!r} has no tokens to add")
        self._checks.end(op.parent.end_position + len(tokens), len(tokens))
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
