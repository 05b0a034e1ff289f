"""`numbered`: the points of a list that a model was asked for."""

import re

MARK = re.compile(r"\s*(?:\d+\s*[.):]|[-*])\s*")


def numbered(text: str, limit: int) -> list[str]:
    """The first `limit` lines that say something, without their numbers. The first line goes on
    from the number in the prompt; a later one without a number ends the list."""
    points: list[str] = []
    for line in text.split("\n"):
        mark = MARK.match(line)
        if points and line.strip() and mark is None:
            break
        point = line[mark.end() if mark else 0 :].strip()
        if point:
            points.append(point)
        if len(points) == limit:
            break
    return points
