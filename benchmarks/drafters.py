"""How often drafts are right, and how long they take, on text that is known.

The text is said again: a step drafts for every branch, and a draft token counts as right where the
text goes on with it, which is when lossless verification accepts it if the model draws that text.
`python -m benchmarks.drafters [--quick] [--json PATH]`
"""

import random
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.annual_messages import NAME
from benchmarks.report import Report, argument_parser
from benchmarks.suffix_index import words
from parallel_decode import _C
from parallel_decode.engine import Branch, Engine, Record, SamplingParams
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest
from parallel_decode.speculation import NGramDrafter, SuffixDrafter
from parallel_decode.tasks import TASKS

Request = tuple[list[int], list[list[int]]]
"""A prompt, and what each of its branches says."""

MODEL = "reasoner"
BRANCHES = 8
SAMPLED = SamplingParams(max_tokens=400)
MAX_NODES = 16
DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "suffix": SuffixDrafter,
    "suffix, 32 lengths": lambda: SuffixDrafter(context_lengths=range(1, 33)),
    "suffix, all continuations": lambda: SuffixDrafter(max_continuations=1 << 20),
    "suffix, factor 4": lambda: SuffixDrafter(factor=4.0),
    "suffix, frequencies": lambda: SuffixDrafter(unseen=0.0, min_prob=0.1),
    "n-gram": NGramDrafter,
}


def sampled_requests(threads: int, per_task: int) -> list[Request]:
    """Siblings that a model says, of the hardest problems of every kind."""
    engine = Engine.from_pretrained(MODEL, threads=threads)
    requests = []
    for name, task in TASKS.items():
        for number in range(per_task):
            problem = task.generate(random.Random(f"{name}/{number}"), task.difficulties[-1])
            root = engine.prefill(problem.question)
            kids = engine.fork(root, BRANCHES)
            engine.extend(kids, SAMPLED)
            requests.append((root.tokens, [kid.output_tokens for kid in kids]))
            engine.prune([root, *kids])
    return requests


def num_right(tree: DraftTree, tokens: Sequence[int]) -> int:
    """How far `tokens` lead down the tree."""
    children = {
        (parent, token): node
        for node, (parent, token) in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist()))
    }
    node, depth = -1, 0
    while depth < len(tokens) and (node, tokens[depth]) in children:
        node = children[node, tokens[depth]]
        depth += 1
    return depth


def replay(drafter: Drafter, requests: Sequence[Request]) -> dict[str, float | int]:
    """Says the requests one after the other; siblings go on step by step."""
    pool = _C.BlockPool(1)
    steps = said = drafted = right = 0
    expected = 0.0
    proposing: list[float] = []
    for prompt, outputs in requests:
        root = Branch(prompt, _C.BlockTable(pool), lambda ids: "")
        left = {root.child(root, root.name_children(1)): output for output in outputs}
        while left := {branch: tokens for branch, tokens in left.items() if tokens}:
            start = time.perf_counter()
            trees = drafter.propose(
                [DraftRequest(branch, SamplingParams(), 0) for branch in left],
                [MAX_NODES] * len(left),
            )
            proposing.append((time.perf_counter() - start) / len(left))
            for (branch, tokens), tree in zip(list(left.items()), trees):
                accepted = num_right(tree, tokens)
                left[branch] = tokens[accepted + 1 :]  # the model adds one
                for token in tokens[: accepted + 1]:
                    branch.push(token, Record())
                said += min(accepted + 1, len(tokens))
                right += accepted
                drafted += len(tree)
                expected += float(tree.path_probabilities.sum())
                steps += 1
    return {
        "tokens": said,
        "tokens_per_step": said / steps,
        "drafted_per_step": drafted / steps,
        "right_per_step": right / steps,
        "expected_right_per_step": expected / steps,
        "propose_p50_us_per_branch": float(np.median(proposing)) * 1e6,
    }


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    report = Report(
        "drafters",
        {
            "quick": args.quick,
            "threads": args.threads,
            "max_nodes": MAX_NODES,
            "text": f"{NAME}, a token a word, one branch",
            "siblings": f"{MODEL}, {BRANCHES} of each problem, temperature {SAMPLED.temperature}",
        },
    )
    text = words()[: 10_000 if args.quick else None]
    replayed: dict[str, list[Request]] = {
        "text": [(text[:1], [text[1:]])],
        "siblings": sampled_requests(args.threads, 1 if args.quick else 10),
    }
    for what, requests in replayed.items():
        for name, make in DRAFTERS.items():
            report.add(said=what, drafter=name, **replay(make(), requests))
    report.finish(args.json)


if __name__ == "__main__":
    main()
