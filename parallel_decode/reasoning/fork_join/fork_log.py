"""`ForkLog`: what became of the tags of one question."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class ForkLog:
    """Attributes:
    paths: that were forked.
    cut: paths that were stopped before their closing tag.
    malformed: why tags were left in the text -> how often.
    """

    paths: int = 0
    cut: int = 0
    malformed: Counter[str] = field(default_factory=Counter)

    @property
    def warnings(self) -> list[str]:
        warnings = [f"{why} ({count} times)" for why, count in self.malformed.items()]
        if self.cut:
            warnings.append(f"{self.cut} of {self.paths} paths were stopped before their end")
        return warnings
