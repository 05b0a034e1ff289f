"""The tree of a solution in the terminal."""

from collections import Counter
from collections.abc import Sequence

from rich.text import Text
from rich.tree import Tree

from parallel_decode.reasoning.search_tree import TreeNode
from parallel_decode.viewer.printable import one_line, printable

STYLES = {"pruned": "dim", "failed": "red", "finished": "bold green"}


def render_tree(root: TreeNode, *, max_pruned: int | None = 2) -> Tree:
    """A rich tree: the prompt once, then each branch's own text after its score and answer.

    Where one child alone goes on, it stands below its parent, marked ↓, and not to the right of it,
    so that a long search stays narrow. Pruned branches are dimmed.

    Args:
        max_pruned: pruned children of one branch that are shown, the best first; the rest is
            counted. None for all of them and what is below them.
    """
    top = Tree(_label(root))
    # Not by recursion: a tree is as deep as a search has steps. Entries: node, the tree that it
    # stands in, how many leaves it stands for, and whether it goes on alone.
    open_nodes: list[tuple[TreeNode, Tree, int, bool]] = [(root, top, 1, False)]
    while open_nodes:
        node, level, count, alone = open_nodes.pop()
        below = top if node is root else level.add(_label(node, count, alone))
        going = node.children
        if max_pruned is not None:
            going = [child for child in node.children if child.status != "pruned"]
            pruned = [child for child in node.children if child.status == "pruned"]
            _add_pruned(below, pruned, max_pruned)
        if len(going) == 1 and node is not root:
            open_nodes.append((going[0], level, 1, True))
        else:
            open_nodes += [(child, below, n, False) for child, n in reversed(_counted(going))]
    return top


def _counted(nodes: Sequence[TreeNode]) -> list[tuple[TreeNode, int]]:
    """Leaves that say the same stand once, with their number."""
    looks = [id(node) if node.children else (node.text, node.status) for node in nodes]
    counts = Counter(looks)
    return [(node, counts.pop(look)) for node, look in zip(nodes, looks) if look in counts]


def _add_pruned(tree: Tree, pruned: Sequence[TreeNode], limit: int) -> None:
    best_first = sorted(pruned, key=lambda node: 0.0 if node.score is None else -node.score)
    shown = _counted(best_first)[:limit]
    for node, count in shown:
        tree.add(_label(node, count))
    rest = len(pruned) - sum(count for _, count in shown)
    if rest:
        more = "more " if shown else ""
        tree.add(Text(f"… {rest} {more}pruned", style="dim"))


def _label(node: TreeNode, count: int = 1, alone: bool = False) -> Text:
    dim = " dim" if node.status == "pruned" else ""
    label = Text("↓ " if alone else "", no_wrap=True, overflow="ellipsis")
    if node.score is not None:
        label.append(f"{node.score:.3g}  ", style=f"cyan{dim}")
    if count > 1:
        label.append(f"×{count}  ", style="dim")
    if node.answer is not None:
        label.append(f"[{printable(node.answer)}]  ", style=f"bold{dim}")
    if node.error is not None or node.finish_reason not in (None, "stop", "eos"):
        label.append(f"{node.finish_reason}  ", style="yellow")
    return label.append(one_line(node.text), style=STYLES.get(node.status, ""))
