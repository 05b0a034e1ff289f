"""Pictures of a solution: in the terminal and as one HTML file."""

from parallel_decode.viewer.html import write_html
from parallel_decode.viewer.terminal import render_tree

__all__ = ["render_tree", "write_html"]
