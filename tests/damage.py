"""Ways in which a file gets damaged, and what may come of it."""

import tracemalloc
from collections.abc import Callable

from hypothesis import strategies as st

# What lies in a length, a count or an offset.
EXTREMES = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


@st.composite
def damaged(draw: st.DrawFn, data: bytes, header_bytes: int) -> bytes:
    """`data` cut short, with bits flipped, or with numbers of its header replaced."""
    anywhere = st.integers(0, len(data) - 1)
    in_header = st.integers(0, header_bytes - 1)
    broken = bytearray(data)
    match draw(st.sampled_from(["truncate", "flip", "extreme", "splice"])):
        case "truncate":
            return data[: draw(anywhere | in_header)]
        case "flip":
            for position in draw(st.lists(in_header | anywhere, min_size=1, max_size=8)):
                broken[position] ^= 1 << draw(st.integers(0, 7))
        case "extreme":
            for position in draw(st.lists(in_header, min_size=1, max_size=2)):
                width = draw(st.sampled_from([4, 8]))
                value = draw(st.sampled_from(EXTREMES)) % (1 << 8 * width)
                broken[position : position + width] = value.to_bytes(width, "little")
        case "splice":
            start, end = sorted(draw(st.tuples(in_header, in_header)))
            target = draw(in_header)
            broken[target : target + end - start] = data[start:end]
    return bytes(broken)


def peak_bytes(action: Callable[[], object]) -> int:
    """The most memory that `action` held in Python and numpy objects; ValueError is an outcome."""
    tracemalloc.start()
    try:
        action()
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak
