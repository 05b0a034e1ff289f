"""Fine-tune the bundled reasoner for the formats of parallel reasoning, measure it, write its card.

python examples/train_formats.py            writes parallel_decode/assets/reasoner-*
python examples/train_formats.py --quick    seconds, into a temporary folder

The data follow from --seed; minutes of CPU time shape the schedule, so that what else runs on the
machine does not.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from branching_text import TextBatch
from formats import PLANS, Plan, add_tags, texts
from formats_card import card
from muon import Muon
from reasoner_model import PAD_ID, Reasoner, Training, load, save
from tokenizers import Tokenizer
from torch import nn

ASSETS = Path(__file__).resolve().parent.parent / "parallel_decode" / "assets"
SORT_WINDOW = 64  # texts that are sorted by length together
WARMUP_STEPS, DECAY_SHARE = 60, 0.5
TEMPERATURE = 1.0


def batches(
    tokenizer: Tokenizer, plan: Plan, rng: Random, progress: Callable[[], float]
) -> Iterator[TextBatch]:
    """Of about `batch_tokens` with padding; texts of like length stand together."""
    source = texts(tokenizer, plan, rng, progress)
    while True:
        window = sorted(islice(source, SORT_WINDOW), key=lambda text: len(text.tokens))
        groups, group = [], []
        for text in window:
            if group and len(text.tokens) * (len(group) + 1) > plan.batch_tokens:
                groups.append(group)
                group = []
            group.append(text)
        groups.append(group)
        rng.shuffle(groups)
        yield from (TextBatch.of(group, PAD_ID) for group in groups)


def with_tags(model: Reasoner, vocab_size: int) -> Reasoner:
    """The same model with rows for new tokens, which begin at the mean of the others."""
    grown = Reasoner(replace(model.config, vocab_size=vocab_size))
    weights = dict(model.state_dict())
    rows = weights["model.embed_tokens.weight"]
    new = rows.mean(0) + 0.02 * torch.randn(vocab_size - len(rows), rows.shape[1])
    weights["model.embed_tokens.weight"] = torch.cat((rows, new))
    grown.load_state_dict(weights)
    return grown


def step_loss(model: Reasoner, batch: TextBatch) -> torch.Tensor:
    hidden = model.hidden(batch.tokens, batch.positions, batch.mask)
    return F.cross_entropy(model.logits(hidden[batch.rows, batch.columns].float()), batch.targets)


def optimizers_of(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    inner = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    return [
        Muon(inner, rate, weight_decay=0.01),
        torch.optim.AdamW(outer, rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def train(model: Reasoner, tokenizer: Tokenizer, plan: Plan, args: argparse.Namespace) -> Training:
    """Next-token loss on what the model is to write; what it is given teaches nothing."""
    rate = plan.learning_rate
    minutes = args.minutes or plan.minutes
    report = Training(
        plan.name,
        args.seed,
        0,
        rate,
        args.precision,
        args.threads,
        torch.__version__,
        ended_by="minutes",
    )
    optimizers = optimizers_of(model, rate)
    began = time.process_time()
    model.train()
    done = 0.0
    data = batches(tokenizer, plan, Random(args.seed), lambda: done)
    for step, batch in enumerate(data):
        report.seconds = time.process_time() - began
        done = report.seconds / (60 * minutes)
        if args.steps is not None:
            done = max(done, step / args.steps)
        if done >= 1:
            break
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        now = rate * warm * max(0.02, min(1.0, (1 - done) / DECAY_SHARE))
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = now
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16"):
            loss = step_loss(model, batch)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        report.steps = step + 1
        report.tokens += batch.tokens.numel()
        report.loss = 0.98 * report.loss + 0.02 * loss.item() if step else loss.item()
        if step % 50 == 49:
            print(
                f"{plan.name} {step + 1} {report.seconds:.0f}s loss {report.loss:.3f}", flush=True
            )
    return report


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for the model folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="a limit besides that of the minutes")
    parser.add_argument("--models", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--minutes", type=float, help="of CPU time, in place of the plan's")
    parser.add_argument("--questions", type=int, default=200, help="of each kind in the card")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure-only", action="store_true", help="write the card again")
    parser.add_argument("--quick", action="store_true", help="prove that the script runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.questions = 2, 2
        args.out = args.out or Path(tempfile.mkdtemp(prefix="formats-"))
    args.out = args.out or ASSETS
    return args


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    for name in args.models:
        plan, folder = PLANS[name], args.out / name
        if not args.measure_only:
            torch.manual_seed(args.seed)
            here = args.out / plan.base
            model, tokenizer, _ = load(here if here.is_dir() else ASSETS / plan.base)
            add_tags(tokenizer, plan)
            model = with_tags(model, tokenizer.get_vocab_size())
            training = train(model, tokenizer, plan, args)
            save(model, tokenizer, folder, TEMPERATURE, training)
        model, tokenizer, training = load(folder)
        text = card(folder, model, training, args)
        (folder / "README.md").write_text(text)
        print(f"{text}\nwrote {folder}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
