"""Pictures of a solution: in the terminal and as one HTML file."""

from parallel_decode.viewer.html import write_html
from parallel_decode.viewer.printable import printable
from parallel_decode.viewer.terminal import render_tree

__all__ = ["printable", "render_tree", "write_html"]
