"""Tree of Thoughts: propose, value, and go on breadth first or depth first."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from parallel_decode.engine import Prune, Steps
from parallel_decode.engine.branch import Branch
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.method import Card
from parallel_decode.reasoning.search.explorer import Explorer
from parallel_decode.reasoning.search.kv_room import Job, KVRoom
from parallel_decode.reasoning.search.node import SearchNode, best_first, branches_of
from parallel_decode.reasoning.search.step_search import StepSearch

ORDERS = ("bfs", "dfs")


@dataclass(frozen=True)
class TreeOfThoughts(StepSearch):
    """Breadth first keeps the `width` best thoughts of a level. Depth first follows the best
    thought down, drops those below `threshold`, and turns back to the best one left where a thought
    has no good child; the keys of what it may turn back to stay.

    Args:
        order: "bfs" or "dfs".
        propose: next thoughts of each.
        width: thoughts that a level keeps ("bfs").
        threshold: value below which a thought is not followed ("dfs").
        solutions: whole solutions after which "dfs" stops.
        max_nodes: thoughts that "dfs" expands at the most.
        kv_blocks: see `KVRoom` ("dfs").
        scorer, step, max_steps, params, extract, weigh: see `StepSearch`. The paper asks the model
            for a value: `SelfEvaluation`.
    """

    card: ClassVar = Card(
        "tot", "structured search", "Yao et al., 2023", ("prefill", "fork", "extend", "prune")
    )

    order: Literal["bfs", "dfs"] = "bfs"
    propose: int = 5
    width: int = 5
    threshold: float = 0.0
    solutions: int = 1
    max_nodes: int = 100
    kv_blocks: int | None = None

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        at_least(
            1,
            propose=self.propose,
            width=self.width,
            solutions=self.solutions,
            max_nodes=self.max_nodes,
        )
        KVRoom(self.kv_blocks, self.growth)
        super().__post_init__()

    def explorer(self, question: Branch) -> Explorer:
        return Explorer(question, self.growth, self.scorer, self.kv_blocks)

    def search(self, explorer: Explorer) -> Steps:
        return self._by_level(explorer) if self.order == "bfs" else self._by_depth(explorer)

    def _by_level(self, explorer: Explorer) -> Steps:
        level = [explorer.root]
        ended: list[SearchNode] = []
        while True:
            families = yield from explorer.expand([Job(node, self.propose) for node in level])
            yield Prune(branches_of(level))
            thoughts = best_first([node for family in families for node in family])
            kept, others = thoughts[: self.width], thoughts[self.width :]
            yield Prune(branches_of(others))
            ended += [node for node in kept if node.ended]
            level = [node for node in kept if explorer.can_grow(node)]
            if explorer.cut or not level or len(ended) >= self.width:
                unfinished = [node for node in kept if not node.ended]
                return (yield from explorer.conclude(ended, unfinished))

    def _by_depth(self, explorer: Explorer) -> Steps:
        stack = [explorer.root]  # what may be turned back to, the next one last
        ended: list[SearchNode] = []
        furthest: list[SearchNode] = []  # what stopped short of an end
        num_expanded = 0
        while stack and len(ended) < self.solutions and not explorer.cut:
            thought = stack.pop()
            if thought.ended:
                ended.append(thought)
                continue
            if not explorer.can_grow(thought) or num_expanded == self.max_nodes:
                furthest.append(thought)
                continue
            num_expanded += 1
            [kids] = yield from explorer.expand([Job(thought, self.propose)])
            good = [kid for kid in kids if kid.value >= self.threshold]
            yield Prune(branches_of([kid for kid in kids if kid.value < self.threshold]))
            stack += reversed(best_first(good))
        unfinished = [n for n in [*furthest, *reversed(stack)] if n.depth and not n.children]
        return (yield from explorer.conclude(ended, unfinished))
