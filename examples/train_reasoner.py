"""Train the bundled reasoner and its draft model, measure them, write their model cards.

python examples/train_reasoner.py            writes parallel_decode/assets/reasoner{,-draft}
python examples/train_reasoner.py --quick    a minute, into a temporary folder

The data, the initial weights and the samples follow from --seed, unless --minutes, a limit for each
model, shortens the schedule. Training also ends when pass@1 on development problems has reached
--band.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from muon import Muon
from reasoner_eval import card, mean, measure, table
from reasoner_model import (
    EOS_ID,
    PAD_ID,
    Reasoner,
    ReasonerConfig,
    Training,
    build_tokenizer,
    load,
    save,
)
from tokenizers import Tokenizer
from torch import Tensor

from parallel_decode.tasks import TASKS, Mix, Problem, load_split, stream

ASSETS = Path(__file__).resolve().parent.parent / "parallel_decode" / "assets"
TEMPERATURE = 1.0
TEST_SEED, DEV_SEED = 0, 1
SORT_WINDOW = 16  # batches that are sorted by length together
FEW_SHOT_SHARE = 0.15
FEW_SHOT_TOKENS = 240  # longer rows would cost more than they teach


@dataclass(frozen=True)
class Plan:
    """How one model is trained."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    steps: int
    batch_size: int = 32
    learning_rate: float = 4e-3
    warmup: int = 100
    decay_share: float = 0.3


PLANS = {
    "reasoner": Plan("reasoner", 128, 384, 4, 4, 2, steps=2000),
    "reasoner-draft": Plan("reasoner-draft", 64, 192, 2, 2, 1, steps=2500),
}


def curriculum(progress: float) -> Mix:
    """Short problems first, all of them from a third of the way. `progress` runs from 0 to 1."""
    share = min(1.0, 0.1 + 2.7 * progress)
    chain = TASKS["chain"].difficulties[:16]
    dag = TASKS["dag"].difficulties[:6]
    mix: dict[tuple[str, int], float] = {}
    for task, difficulties, weight in (("chain", chain, 0.3), ("dag", dag, 0.3)):
        open_now = difficulties[: max(2, round(share * len(difficulties)))]
        mix |= {(task, d): weight / len(open_now) for d in open_now}
    return mix | {("countdown", 3): 0.2, ("countdown", 4): 0.2 * share}


def examples(tokenizer: Tokenizer, rng: Random, mix: Mix) -> Iterator[tuple[list[int], int]]:
    """(tokens, number of prompt tokens); some behind another solved example, as in few-shot use."""
    problems = stream("train", rng, mix)

    def one() -> tuple[list[int], int]:
        problem = next(problems)
        prompt = tokenizer.encode(problem.question).ids
        trace = TASKS[problem.task].solution(problem, rng)
        return prompt + tokenizer.encode(trace, add_special_tokens=False).ids + [EOS_ID], len(
            prompt
        )

    while True:
        tokens, num_prompt = one()
        if rng.random() < FEW_SHOT_SHARE:
            before, _ = one()
            if len(before) + len(tokens) <= FEW_SHOT_TOKENS:
                tokens, num_prompt = before + tokens, len(before) + num_prompt
        yield tokens, num_prompt


def batches(
    tokenizer: Tokenizer, plan: Plan, progress: Callable[[int], float], rng: Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """(tokens, loss mask) of [batch, time]; examples of like length stand together."""
    for start in count(0, SORT_WINDOW):
        source = examples(tokenizer, rng, curriculum(progress(start)))
        window = sorted(islice(source, SORT_WINDOW * plan.batch_size), key=lambda e: len(e[0]))
        groups = [window[i : i + plan.batch_size] for i in range(0, len(window), plan.batch_size)]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(tokens) for tokens, _ in group)
            tokens = torch.tensor([t + [PAD_ID] * (width - len(t)) for t, _ in group])
            columns = torch.arange(width)
            num_prompt = torch.tensor([p for _, p in group])[:, None]
            length = torch.tensor([len(t) for t, _ in group])[:, None]
            yield tokens, (columns >= num_prompt) & (columns < length)


def learning_rate(plan: Plan, step: int, progress: float) -> float:
    """Warm-up, plateau, linear decay to a twentieth."""
    warm = min(1.0, (step + 1) / plan.warmup)
    left = min(1.0, (1.0 - progress) / plan.decay_share)
    return plan.learning_rate * warm * max(0.05, left)


def train(
    model: Reasoner,
    tokenizer: Tokenizer,
    plan: Plan,
    args: argparse.Namespace,
    dev: list[Problem],
) -> Training:
    """Next-token loss on the traces alone; the questions are given, so they teach nothing."""
    steps = args.steps or plan.steps
    # Muon for the matrices inside: the loss falls faster than with AdamW alone.
    inner = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    rate = plan.learning_rate
    optimizers = [
        Muon(inner, rate, weight_decay=0.01),
        torch.optim.AdamW(outer, rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    report = Training(
        plan.name,
        args.seed,
        plan.batch_size,
        plan.learning_rate,
        args.precision,
        args.threads,
        torch.__version__,
    )
    began = time.monotonic()

    def progress(step: int) -> float:
        # On a busy machine the time limit shortens the schedule; it does not cut it off.
        return max(step / steps, (time.monotonic() - began) / (60 * args.minutes))

    data = batches(tokenizer, plan, progress, Random(args.seed))
    for step, (tokens, in_trace) in enumerate(data):
        done = progress(step)
        if done >= 1.0:
            report.ended_by = "steps" if step >= steps else "minutes"
            break
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = learning_rate(plan, step, done)
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16"):
            hidden = model.hidden(tokens[:, :-1])
        target = in_trace[:, 1:]
        loss = F.cross_entropy(model.logits(hidden[target].float()), tokens[:, 1:][target])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()

        report.steps = step + 1
        report.tokens += int(tokens.numel())
        report.loss = 0.98 * report.loss + 0.02 * loss.item() if step else loss.item()
        report.seconds = time.monotonic() - began
        if step % 50 == 49:
            print(
                f"{plan.name} {step + 1} {report.seconds:.0f}s loss {report.loss:.3f}", flush=True
            )
        # The draft model is not held to the band; early on, both are far below it.
        if plan.name == "reasoner" and done > 0.6 and (step + 1) % args.measure_every == 0:
            results = measure(model, tokenizer, dev, 8, TEMPERATURE, DEV_SEED, args.max_tokens)
            print(table(results, 8), flush=True)
            if mean(results, "pass_1") >= args.band:
                report.ended_by = "band"
                break
    report.seconds = time.monotonic() - began
    return report


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for the model folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--steps", type=int, help="in place of the plan's number")
    parser.add_argument("--minutes", type=float, default=25, help="wall limit for each model")
    parser.add_argument("--band", type=float, default=0.45, help="pass@1 that ends training")
    parser.add_argument("--measure-every", type=int, default=50)
    parser.add_argument("--questions", type=int, default=500, help="size of the test set")
    parser.add_argument("--samples", type=int, default=16, help="traces for each test question")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest trace sampled")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure-only", action="store_true", help="write the cards again")
    parser.add_argument("--quick", action="store_true", help="prove that the script runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.measure_every, args.questions, args.samples = 4, 4, 4, 2
        args.threads, args.max_tokens = 1, 32
        args.out = args.out or Path(tempfile.mkdtemp(prefix="reasoner-"))
    args.out = args.out or ASSETS
    return args


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    tokenizer = build_tokenizer()
    # The development problems are held out too: they come from the verifier split.
    dev = load_split("verifier", 4 if args.quick else 96, DEV_SEED)
    test = load_split("test", args.questions, TEST_SEED)
    for name in args.models:
        folder = args.out / name
        if args.measure_only:
            model, tokenizer, training = load(folder)
        else:
            plan = PLANS[name]
            torch.manual_seed(args.seed)
            shape = {k: v for k, v in asdict(plan).items() if k in ReasonerConfig.__annotations__}
            model = Reasoner(ReasonerConfig(tokenizer.get_vocab_size(), **shape))
            training = train(model, tokenizer, plan, args, dev)
            save(model, tokenizer, folder, TEMPERATURE, training)
        results = measure(
            model, tokenizer, test, args.samples, TEMPERATURE, TEST_SEED, args.max_tokens
        )
        text = card(model, training, results, args.samples, TEMPERATURE, TEST_SEED)
        (folder / "README.md").write_text(text)
        print(f"{table(results, args.samples)}\nwrote {folder}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
