"""What rules of verification make of the same trees, and shapes of trees of as many nodes.

`python -m benchmarks.verification [--quick] [--json PATH]`

The reasoner says countdown texts at temperature 1; somewhere in them its draft model draws trees,
and every rule verifies these same trees. `top_down` is multi-round rejection (of a chain that of
Leviathan et al.), `traversal` goes from the leaves up, `match` draws at every node: tokens a step,
by every way that a decision can go, in the mean over trees and texts. `gain`: traversal above
top-down, with the standard error of its mean over the texts.
"chosen" trees have the draft model's most probable tokens: there every lossless rule is as good as
the best, and match is that. `to_chain`: traversal's tokens per step over those of a chain with as
many nodes, drawn at `draft_passes` of the draft model, one a level.
"""

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import track

from benchmarks.drawn_trees import SHAPES, DrawnTrees, depth_of
from benchmarks.expected_length import expected_length
from benchmarks.next_token_laws import NextTokenLaws, Path
from benchmarks.report import Report, Value, argument_parser
from parallel_decode import Engine, SamplingParams
from parallel_decode.kernels.acceptance import accept
from parallel_decode.kernels.traversal import traverse
from parallel_decode.tasks import load_split

PARAMS = SamplingParams(temperature=1.0, max_tokens=100)
WAYS = ("replacement", "no replacement", "chosen")


@dataclass(frozen=True)
class Text:
    """A place in a text that the reasoner says, and what both models say from there on."""

    target: NextTokenLaws
    draft: NextTokenLaws


def texts(engine: Engine, draft: Engine, count: int) -> list[Text]:
    """One a problem; of the task in which the model is of the most minds."""
    found = []
    problems = [problem for problem in load_split("test", 1000) if problem.task == "countdown"]
    for number, problem in enumerate(problems[:count]):
        root = engine.prefill(problem.question)
        [kid] = engine.fork(root, 1)
        engine.extend(kid, PARAMS)
        cut = random.Random(number).randrange(1, len(kid.output_tokens))
        said = [*root.tokens, *kid.output_tokens[:cut]]
        engine.prune([root, kid])
        found.append(Text(*(NextTokenLaws(model, said, PARAMS) for model in (engine, draft))))
    return found


# ---- rules on the same trees ----


def matched(tokens: Sequence[int], parents: Sequence[int], p: np.ndarray) -> float:
    """What a step commits in the mean where every node draws: 1 + Σ probability of a path."""
    reached: dict[Path, float] = {(): 1.0}
    paths: list[Path] = [()]
    for token, parent in zip(tokens, parents):
        above = paths[1 + parent]
        paths.append((*above, token))
        # Equal siblings are one.
        reached[paths[-1]] = reached[above] * float(p[1 + parent, token])
    return sum(reached.values())


def tokens_per_step(text: Text, trees: DrawnTrees, num_trees: int, seed: int) -> dict[str, float]:
    """Of each rule, over trees behind one text."""
    drawn, q = trees.draw(num_trees, np.random.default_rng(seed))
    parents, replacement = trees.parents, trees.how == "replacement"
    found: dict[str, list[float]] = {rule: [] for rule in ("top_down", "traversal", "match")}
    for tokens, row in zip(drawn, q.double().numpy(), strict=True):
        tree = trees.tree(tokens)
        nodes = range(-1, len(parents))
        p = text.target.of([tuple(tree.path_to(node)) for node in nodes]).double().numpy()
        p /= p.sum(1, keepdims=True)
        law = None if trees.how == "chosen" else row / row.sum(1, keepdims=True)
        for name, rule in (("top_down", accept), ("traversal", traverse)):
            found[name].append(expected_length(rule, tokens, parents, p, law, replacement))
        found["match"].append(matched(tokens, parents, p))
    return {rule: statistics.fmean(values) for rule, values in found.items()}


def rule_rows(places: Sequence[Text], num_trees: int) -> Iterator[dict[str, Value]]:
    chains: dict[int, float] = {}
    for shape, parents in track(SHAPES.items(), "rules", transient=True):
        for how in WAYS:
            if how == "no replacement" and shape.startswith("chain"):
                continue  # nobody has a sibling
            found = [
                tokens_per_step(text, DrawnTrees(text.draft, parents, how), num_trees, n)
                for n, text in enumerate(places)
            ]
            mean = {rule: statistics.fmean(one[rule] for one in found) for rule in found[0]}
            gains = [one["traversal"] - one["top_down"] for one in found]
            if shape.startswith("chain"):
                chains[len(parents)] = max(mean["traversal"], chains.get(len(parents), 0.0))
            chain = chains.get(len(parents))
            yield {
                "shape": shape,
                "siblings": how,
                "nodes": len(parents),
                "draft_passes": depth_of(parents),
                **{rule: round(value, 4) for rule, value in mean.items()},
                "gain": round(statistics.fmean(gains), 5),
                "gain_se": round(statistics.stdev(gains) / math.sqrt(len(gains)), 5),
                "to_chain": None if chain is None else round(mean["traversal"] / chain, 3),
            }


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    num_texts, num_trees = (6, 1) if args.quick else (150, 4)
    engine = Engine.from_pretrained("reasoner", threads=args.threads)
    draft = Engine.from_pretrained("reasoner-draft", threads=args.threads)
    report = Report(
        "verification",
        {
            "quick": args.quick,
            "threads": args.threads,
            "model": "reasoner",
            "drafter": "reasoner-draft",
            "temperature": PARAMS.temperature,
            "texts": num_texts,
            "trees_of_each": num_trees,
        },
    )
    for row in rule_rows(texts(engine, draft, num_texts), num_trees):
        report.add(**row)
        report.save(args.json)
    report.finish(args.json)


if __name__ == "__main__":
    main()
