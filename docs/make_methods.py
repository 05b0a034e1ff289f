"""Writes the list of methods in docs/methods.md from their cards.

`python docs/make_methods.py` rewrites it, `--check` exits with 1 where it is not up to date.
"""

import argparse
import re
import sys
from itertools import groupby
from pathlib import Path

from parallel_decode.reasoning import METHODS, Method

PAGE = Path(__file__).with_name("methods.md")
BEGIN, END = "<!-- methods -->", "<!-- end of methods -->"


def methods_block() -> str:
    """One table a family, in the order in which the families are listed first."""
    order = list(dict.fromkeys(method.card.family for method in METHODS))
    by_family = sorted(METHODS, key=lambda method: order.index(method.card.family))
    parts = []
    for family, members in groupby(by_family, key=lambda method: method.card.family):
        rows = [
            f"| `{m.__name__}` | {first_sentence(m)} | {m.card.paper} |"
            f" {', '.join(m.card.primitives)} |"
            for m in members
        ]
        head = ["| class | what it does | source | primitives |", "| --- | --- | --- | --- |"]
        parts.append("\n".join([f"### {family.capitalize()}", "", *head, *rows]))
    return "\n\n".join(parts)


def first_sentence(method: type[Method]) -> str:
    text = " ".join((method.__doc__ or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0].rstrip(".:").replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it would change")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    old = args.page.read_text("utf-8")
    head, begin, rest = old.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{args.page} needs the marks {BEGIN} and {END}")
    new = f"{head}{BEGIN}\n{methods_block()}\n{END}{tail}"
    if args.check and new != old:
        sys.exit(f"{args.page} is not up to date: run python docs/make_methods.py")
    if new != old:
        args.page.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
