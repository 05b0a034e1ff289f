"""DVTS: several independent trees, each of which goes on with its own best step."""

from dataclasses import dataclass
from typing import ClassVar

from parallel_decode.engine import Prune, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.method import Card
from parallel_decode.reasoning.search.explorer import Explorer
from parallel_decode.reasoning.search.kv_room import Job
from parallel_decode.reasoning.search.node import SearchNode, best_first, branches_of
from parallel_decode.reasoning.search.step_search import StepSearch


@dataclass(frozen=True)
class DVTS(StepSearch):
    """Diverse verifier tree search: each of `trees` lines of thought draws `expand` next steps and
    keeps its own best one, so that a good line never crowds the others out.

    A line's last step keeps all of its children that ended: up to trees · expand candidates. With
    equal scores the first candidates of the lines are independent samples.

    Args:
        trees: lines that grow side by side.
        expand: next steps of each.
        scorer, step, max_steps, params, extract, weigh: see `StepSearch`.
    """

    card: ClassVar = Card(
        "dvts",
        "structured search",
        "Beeching, Tunstall and Rush, 2024",
        ("prefill", "fork", "extend", "prune"),
    )

    trees: int = 4
    expand: int = 4

    def __post_init__(self) -> None:
        at_least(1, trees=self.trees, expand=self.expand)
        super().__post_init__()

    def search(self, explorer: Explorer) -> Steps:
        lines = dict.fromkeys(range(self.trees), explorer.root)
        last: dict[int, list[SearchNode]] = {}
        for _ in range(self.max_steps):
            growing = [(tree, node) for tree, node in lines.items() if not node.ended]
            families = yield from explorer.expand([Job(node, self.expand) for _, node in growing])
            yield Prune(branches_of([node for _, node in growing]))
            for (tree, _), family in zip(growing, families, strict=True):
                del lines[tree]  # a line whose children all failed is lost
                if family:
                    lines[tree], *others = best_first(family)
                    kept = [kid for kid in others if kid.ended] if lines[tree].ended else []
                    yield Prune(branches_of([kid for kid in others if kid not in kept]))
                    last[tree] = [lines[tree], *kept]
            if explorer.cut or all(node.ended for node in lines.values()):
                break
        ended = [node for t in sorted(lines) for node in last[t] if node.ended]
        return (yield from explorer.conclude(ended, [n for n in lines.values() if not n.ended]))
