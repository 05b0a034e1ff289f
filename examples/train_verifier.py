"""Train outcome and process verifiers for the bundled reasoner, measure them, write their card.

python examples/train_verifier.py            writes parallel_decode/assets/reasoner-verifier
python examples/train_verifier.py --quick    under a minute, into a temporary folder

Traces are sampled through the engine, of the verifier split for training and of the test split for
the card. Step labels are exact (`Task.check_steps`), or with --rollouts the share of completions
that are right, sampled through the engine as well (Math-Shepherd).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from verifier_data import PARAMS, Trace, sample
from verifier_eval import (
    Pool,
    Row,
    as_classifier,
    best_reduction,
    likelihood,
    majority,
    path_likelihood,
    pool_of,
    row,
    scores_by,
    shuffled,
    step_auroc,
)
from verifier_heads import (
    LABELS,
    LEARNING_RATE,
    NUM_STATISTICS,
    ROWS,
    VARIANTS,
    WEIGHT_DECAY,
    WIDTH,
    log_loss,
    save,
    train,
)

from parallel_decode import Engine
from parallel_decode.model import Classifier, open_heads
from parallel_decode.reasoning.metrics import pass_at_k
from parallel_decode.reasoning.ranking.reduction import REDUCTIONS
from parallel_decode.tasks import load_split

ASSETS = Path(__file__).resolve().parent.parent / "parallel_decode" / "assets"
TRAIN_SEED, DEV_SEED, TEST_SEED = 2, 3, 0
KV_TOKENS = 1 << 17


def report(head: Classifier, reduce: str, pool: Pool) -> list[Row]:
    """All ways to choose, on one pool of traces."""
    against = majority(pool)
    rows = [
        row("exp mean log-probability (untrained)", pool, likelihood, against),
        row("exp summed log-probability (untrained)", pool, path_likelihood, against),
        row("outcome", pool, scores_by(head, "outcome", "last"), against),
    ]
    rows += [row(f"process, {r}", pool, scores_by(head, "process", r), against) for r in REDUCTIONS]
    dealt = shuffled(scores_by(head, "process", reduce), pool, TEST_SEED)
    return [*rows, row(f"process, {reduce}, shuffled (control)", pool, dealt, against)]


def gain(values: tuple[float, float, float]) -> str:
    return f"{values[0]:+.3f} ({values[1]:+.3f} to {values[2]:+.3f})"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def card(
    head: Classifier, reduce: str, variants: Sequence[Row], pool: Pool, training: dict[str, Any]
) -> str:
    """The model card; every number in it is measured or read from the training."""
    n = max(map(len, pool))
    against = majority(pool)
    header = (
        f"| scores | AUROC | best-of-{n} | minus majority | weighted | minus majority |\n"
        "|---|---|---|---|---|---|"
    )

    def line(r: Row) -> str:
        return (
            f"| {r.name} | {number(r.auroc)} | {r.best:.3f} | {gain(r.best_gain)} |"
            f" {r.weighted:.3f} | {gain(r.weighted_gain)} |"
        )

    rows = "\n".join(line(r) for r in report(head, reduce, pool))
    ablation = "\n".join(line(r) for r in variants)
    depths = "\n".join(f"| {name} | {number(v)} |" for name, v in step_auroc(head, pool).items())
    right = [sum(trace.right for trace in question) for question in pool]
    pass_1 = sum(r / len(q) for r, q in zip(right, pool, strict=True)) / len(pool)
    ceiling = sum(pass_at_k(len(q), r, len(q)) for r, q in zip(right, pool, strict=True)) / len(
        pool
    )
    t = training
    labels = (
        f"{t['rollouts']} completions of each step" if t["rollouts"] else "the exact step checker"
    )
    return f"""---
license: apache-2.0
---
# reasoner-verifier

Heads that read the bundled reasoner's own states and tell how likely a solution ("outcome") and
each of its steps ("process") are right. They cost no forward pass.

Written by `examples/train_verifier.py`, this card included; no number here was typed by hand.

    Verifier.from_pretrained("reasoner-verifier", "process")

## Model
One hidden layer of {WIDTH} and an output for each label, on {head.hidden_size} numbers: the
reasoner's final hidden state at the end of a step, and {NUM_STATISTICS} statistics of what it
thought of its own tokens (`step_statistics.STATISTICS`). `{reduce}` makes one score of the steps'
unless you say otherwise; it was chosen on development problems, as was which inputs are read.

## Training
{t["traces"]} traces of {t["problems"]} problems, `load_split("verifier", ..., seed={TRAIN_SEED})`,
{t["samples"]} each at temperature {PARAMS.temperature}; {t["steps"]} steps, labels by {labels}.
{t["epochs"]} epochs in batches of {ROWS} steps, AdamW, peak learning rate {LEARNING_RATE}, weight
decay {WEIGHT_DECAY}, seed {t["seed"]}. Sampling {t["sampling_minutes"]:.1f} and training
{t["training_minutes"]:.1f} minutes on {t["threads"]} threads.

## Accuracy
{len(pool)} test problems, `load_split("test", {len(pool)}, seed={TEST_SEED})`, one pool of {n}
traces each; every row chooses among the same ones. AUROC is within questions: the chance that a
right trace scores higher than a wrong one of the same question. In brackets: paired 95 % bootstrap
intervals over questions. pass@1 {pass_1:.3f}, majority {sum(against) / len(pool):.3f}, any of {n}
right {ceiling:.3f}.

{header}
{rows}

What the heads read, scored by `process, {reduce}`; these files hold "{t["reads"]}":

{header}
{ablation}

AUROC of single steps, by their number:

| steps | AUROC |
|---|---|
{depths}
"""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for the files")
    parser.add_argument("--model", default="reasoner", help="whose traces and states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--problems", type=int, default=1500, help="of the verifier split")
    parser.add_argument("--development", type=int, default=150, help="more of them, held out")
    parser.add_argument("--samples", type=int, default=8, help="traces for each of these")
    parser.add_argument("--rollouts", type=int, default=0, help="completions for a step's label")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--questions", type=int, default=500, help="size of the test set")
    parser.add_argument("--candidates", type=int, default=16, help="traces of a test question")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="prove that the script runs")
    args = parser.parse_args(argv)
    for name in ("problems", "development", "samples", "epochs", "questions", "candidates"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.rollouts < 0:
        parser.error("--rollouts must not be negative")
    if args.quick:
        args.problems, args.development, args.samples, args.epochs = 12, 4, 4, 2
        args.questions, args.candidates, args.threads = 6, 4, 1
        args.out = args.out or Path(tempfile.mkdtemp(prefix="verifier-"))
    args.out = args.out or ASSETS / "reasoner-verifier"
    return args


def whole(traces: Sequence[Trace]) -> list[Trace]:
    return [trace for trace in traces if trace.steps]


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    began = time.monotonic()
    engine = Engine.from_pretrained(args.model, threads=args.threads, kv_tokens=KV_TOKENS)
    problems = load_split("verifier", args.problems, TRAIN_SEED)
    known = set(problems)
    others = load_split("verifier", args.problems + 4 * args.development, DEV_SEED)
    held_out = [problem for problem in others if problem not in known][: args.development]
    traces = sample(engine, problems, args.samples, args.seed, args.rollouts)
    development = sample(engine, held_out, args.samples, args.seed + 1)
    sampled = time.monotonic()

    heads = {variant: train(whole(traces), variant, args.epochs, args.seed) for variant in VARIANTS}
    losses = {variant: log_loss(head, whole(development)) for variant, head in heads.items()}
    print(losses, flush=True)
    kept = min(VARIANTS, key=lambda variant: sum(losses[variant]))
    reduce = best_reduction(as_classifier(heads[kept], LABELS), pool_of(development))
    training = {
        "model": args.model,
        "reads": kept,
        "problems": len(problems),
        "samples": args.samples,
        "traces": len(whole(traces)),
        "steps": sum(len(trace.steps) for trace in traces),
        "rollouts": args.rollouts,
        "epochs": args.epochs,
        "seed": args.seed,
        "threads": args.threads,
        "sampling_minutes": (sampled - began) / 60,
        "training_minutes": (time.monotonic() - sampled) / 60,
    }
    save(heads[kept], args.out, reduce, training)

    test = load_split("test", args.questions, TEST_SEED)
    pool = pool_of(sample(engine, test, args.candidates, args.seed + 2))
    against = majority(pool)
    variants = [
        row(variant, pool, scores_by(as_classifier(head, LABELS), "process", reduce), against)
        for variant, head in heads.items()
    ]
    # What is measured is what the files hold.
    text = card(open_heads(args.out).classifier, reduce, variants, pool, training)
    (args.out / "README.md").write_text(text)
    print(f"{text}\nwrote {args.out}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the heads are small; the engine has threads of its own
    main(sys.argv[1:])
