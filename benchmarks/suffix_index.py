"""The suffix index: the time and memory of a token, and the time of a draft.

`python -m benchmarks.suffix_index [--quick] [--json PATH]`
"""

import random
import re
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.annual_messages import NAME, annual_messages
from benchmarks.report import Report, argument_parser
from parallel_decode import _C
from parallel_decode.engine.draft_tree import MAX_NODES
from parallel_decode.speculation.suffix import CONTEXT_LENGTHS

CONTINUATIONS = 64
LIMITS = {"min_prob": 0.05, "factor": 2.0, "offset": 0.0, "unseen": 1.5}
PIECE = 4096
NUM_DRAFTS = 400


def words() -> list[int]:
    """The annual messages, a token a word or sign."""
    numbers: dict[str, int] = {}
    found = re.findall(r"\w+|[^\w\s]", annual_messages())
    return [numbers.setdefault(word, len(numbers)) for word in found]


def streams(num_tokens: int) -> dict[str, list[int]]:
    rng = random.Random(0)
    text = words()
    return {
        "random, 32,000 tokens": rng.choices(range(32_000), k=num_tokens),
        "random, 4 tokens": rng.choices(range(4), k=num_tokens),
        "text, again and again": (text * (num_tokens // len(text) + 1))[:num_tokens],
        "period of 50": [i % 50 for i in range(num_tokens)],
        "one token": [1] * num_tokens,
    }


def filled(tokens: Sequence[int], max_tokens: int) -> tuple[_C.SuffixIndex, int, float]:
    """(index, its one stream, seconds): the tokens in pieces, as a prompt comes."""
    index = _C.SuffixIndex(max_tokens, CONTEXT_LENGTHS, CONTINUATIONS)
    stream = index.open()
    return index, stream, extend(index, stream, tokens)


def extend(index: _C.SuffixIndex, stream: int, tokens: Sequence[int]) -> float:
    start = time.perf_counter()
    for begin in range(0, len(tokens), PIECE):
        grow(index, stream, tokens[begin : begin + PIECE])
    return time.perf_counter() - start


def grow(index: _C.SuffixIndex, stream: int, tokens: Sequence[int]) -> None:
    [length] = index.num_tokens([stream])
    index.follow([stream], [length + len(tokens)], [tokens])


def check_counts(index: _C.SuffixIndex, stream: int, tokens: Sequence[int]) -> None:
    """What a draft begins with, against a search through all tokens."""
    [draft] = index.draft([stream], [MAX_NODES], 0.0, 0.0, 1.0, 0.0)
    found, counts, length = draft.tokens, draft.counts, draft.match_length
    followed = [
        tokens[i]
        for i in range(length, len(tokens))
        if tokens[i - 1] == tokens[-1] and tokens[i - length : i] == tokens[-length:]
    ][-CONTINUATIONS:]
    wanted = sorted(Counter(followed).items(), key=lambda item: (-item[1], item[0]))
    if not length or list(zip(found.tolist(), counts.tolist())) != wanted[:MAX_NODES]:
        raise AssertionError(f"a context of {length} tokens is followed by {wanted}, not {found}")
    if not np.array_equal(draft.probabilities, counts / len(followed)):
        raise AssertionError(f"{counts} of {len(followed)} is not {draft.probabilities}")


def measure(name: str, tokens: list[int], repeats: int) -> dict[str, str | int | float]:
    growing, full = [], []
    for _ in range(repeats):
        index, stream, seconds = filled(tokens, len(tokens))
        growing.append(seconds / len(tokens))
        bytes_per_token = index.num_bytes / len(tokens)
        full.append(extend(index, stream, tokens) / len(tokens))
    index, stream, _ = filled(tokens, 2 * len(tokens))
    check_counts(index, stream, tokens)
    single = []
    [length] = index.num_tokens([stream])
    for number, token in enumerate(tokens[:PIECE], length + 1):
        start = time.perf_counter()
        index.follow([stream], [number], [[token]])
        single.append(time.perf_counter() - start)
    rng = random.Random(1)
    drafting, nodes = [], []
    for _ in range(NUM_DRAFTS):
        child = index.fork(stream, len(tokens) - rng.randrange(min(PIECE, len(tokens) // 2)))
        start = time.perf_counter()
        [draft] = index.draft([child], [MAX_NODES], **LIMITS)
        drafting.append(time.perf_counter() - start)
        nodes.append(len(draft))
        index.release(child)
    return {
        "stream": name,
        "tokens": len(tokens),
        "extend_ns_per_token": min(growing) * 1e9,
        "extend_full_ns_per_token": min(full) * 1e9,
        "follow_call_ns": float(np.median(single)) * 1e9,
        "index_bytes_per_token": bytes_per_token,
        "draft_p50_us": float(np.median(drafting)) * 1e6,
        "draft_p99_us": float(np.percentile(drafting, 99)) * 1e6,
        "draft_nodes": float(np.mean(nodes)),
    }


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    num_tokens, repeats = (1 << 16, 3) if args.quick else (1 << 18, 7)
    report = Report(
        "suffix_index",
        {
            "quick": args.quick,
            "context_lengths": " ".join(map(str, CONTEXT_LENGTHS)),
            "max_continuations": CONTINUATIONS,
            **LIMITS,
            "draft_max_nodes": MAX_NODES,
            "text": f"{NAME}, a token a word",
        },
    )
    for name, tokens in streams(num_tokens).items():
        report.add(**measure(name, tokens, repeats))
    report.finish(args.json)


if __name__ == "__main__":
    main()
