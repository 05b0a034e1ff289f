"""The tree of a solution in the terminal."""

from collections import Counter

from rich.text import Text
from rich.tree import Tree

from parallel_decode.reasoning.search_tree import TreeNode

MAX_TEXT = 60


def render_tree(root: TreeNode, *, show_pruned: bool = True) -> Tree:
    """A rich tree: the prompt once, then each branch's own text; pruned branches are dimmed."""
    tree = Tree(_label(root))
    _grow(tree, root, show_pruned)
    return tree


def _grow(tree: Tree, node: TreeNode, show_pruned: bool) -> None:
    shown = [child for child in node.children if show_pruned or child.status != "pruned"]
    # Leaves that say the same stand once, with their number.
    same = Counter(_look(child) for child in shown if not child.children)
    for child in shown:
        if child.children:
            _grow(tree.add(_label(child)), child, show_pruned)
        elif count := same.pop(_look(child), 0):
            label = _label(child)
            tree.add(label.append(f"  ×{count}", style="dim") if count > 1 else label)


def _look(node: TreeNode) -> tuple[str, str]:
    return node.text, node.status


def _label(node: TreeNode) -> Text:
    text = node.text.strip("\n").replace("\n", " ⏎ ")
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT - 1] + "…"
    style = {"pruned": "dim", "failed": "red", "finished": "bold green"}.get(node.status, "")
    label = Text(text or "(nothing)", style=style)
    if node.score is not None:
        label.append(f"  {node.score:.3g}", style="cyan" if node.status != "pruned" else "dim cyan")
    if node.finish_reason not in (None, "stop", "eos"):
        label.append(f"  {node.finish_reason}", style="yellow")
    return label
