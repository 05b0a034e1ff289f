"""Train an EAGLE head and Medusa heads for a model, measure them, write their card.

python examples/train_heads.py            writes parallel_decode/assets/reasoner-heads
python examples/train_heads.py --quick    some seconds, into a temporary folder
python examples/train_heads.py --model smollm2 --prompts FILE --out FOLDER

They learn from what the model itself says: on problems of the train split, or after the prompts of
a file, one a line. Initial weights and samples follow from --seed, unless --minutes, a limit for
each kind of head, shortens the schedule.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from heads_model import Eagle, Medusa
from muon import Muon
from safetensors.torch import save_file
from torch import Tensor, nn

from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Drafter
from parallel_decode.engine.row_observer import ComputedRows
from parallel_decode.model.checkpoint import ASSETS, open_checkpoint
from parallel_decode.speculation import (
    EagleDrafter,
    MedusaDrafter,
    Speculation,
    StepCosts,
    TrainedHeads,
)
from parallel_decode.tasks import load_split, stream

TEMPERATURE = 1.0
WARMUP_STEPS, DECAY_SHARE = 50, 0.5
DEPTH_DECAY = 0.8  # weight of a place of a draft, of that of the place before
DRAFT_NODES = 8  # of the drafts that the card measures
SORT_WINDOW = 16  # batches that are sorted by length together


class Text(NamedTuple):
    """What the model said, with its hidden states [num_tokens, hidden_size]."""

    tokens: Tensor
    hidden: Tensor
    num_prompt: int


@dataclass
class Training:
    """How the heads came about; kept in the header of their file and told in the card."""

    model: str
    seed: int
    texts: int
    tokens: int
    batch_size: int
    learning_rate: float
    depth: int
    threads: int
    torch_version: str
    sampling_seconds: float = 0.0
    eagle_steps: int = 0
    eagle_seconds: float = 0.0
    eagle_loss: float = 0.0
    medusa_steps: int = 0
    medusa_seconds: float = 0.0
    medusa_loss: float = 0.0


class Recorder:
    """Takes the hidden states of what the engine computes."""

    def __init__(self, storage: Tensor) -> None:
        self.storage = storage
        self.hidden: list[Tensor] = []
        self.row_observer = self

    def computed(self, rows: ComputedRows) -> None:
        self.hidden.append(rows.hidden.clone())

    def wants_to_draft(self, num_rows: int) -> bool:
        return False

    def observe(self, branch: object) -> None:
        """Nothing is remembered of branches."""

    def forget(self, branch: object) -> None:
        """Nothing is remembered of branches."""


def texts_of(
    engine: Engine, prompts: Sequence[Sequence[int]], args: argparse.Namespace
) -> list[Text]:
    params = SamplingParams(temperature=TEMPERATURE, max_tokens=args.max_tokens)
    said: list[tuple[list[int], int]] = []
    for first in range(0, len(prompts), 64):
        branches = [engine.prefill(prompt) for prompt in prompts[first : first + 64]]
        engine.extend(branches, params)
        said += [(branch.tokens, branch.prompt_length) for branch in branches]
        engine.prune(branches)
    # The states of whole texts, one after the other, each computed from its beginning on.
    cache = engine.cache.storage
    recorder = Recorder(torch.zeros(1, *cache.shape[1:], dtype=cache.dtype))
    engine.speculator = recorder
    texts = []
    for tokens, num_prompt in said:
        engine.clear_prefixes()
        recorder.hidden.clear()
        engine.prune(engine.prefill(tokens))
        hidden = torch.cat(recorder.hidden)
        if len(hidden) != len(tokens):
            raise SystemExit(f"{len(hidden)} hidden states of {len(tokens)} tokens")
        texts.append(Text(torch.tensor(tokens), hidden, num_prompt))
    engine.speculator = None
    return texts


class Batch(NamedTuple):
    """tokens: [batch, time]; hidden: [batch, time, hidden_size]; said: [batch, time] bool, where
    the token was drawn by the model."""

    tokens: Tensor
    hidden: Tensor
    said: Tensor


def batches(texts: Sequence[Text], size: int, rng: Random) -> Iterator[Batch]:
    """Without end; texts of like length stand together."""
    while True:
        order = rng.sample(texts, len(texts))
        for start in range(0, len(order), SORT_WINDOW * size):
            window = sorted(order[start : start + SORT_WINDOW * size], key=lambda t: len(t.tokens))
            groups = [window[i : i + size] for i in range(0, len(window), size)]
            rng.shuffle(groups)
            for group in groups:
                pad = nn.utils.rnn.pad_sequence
                tokens = pad([text.tokens for text in group], batch_first=True)
                hidden = pad([text.hidden for text in group], batch_first=True)
                columns = torch.arange(tokens.shape[1])
                begin = torch.tensor([text.num_prompt for text in group])[:, None]
                end = torch.tensor([len(text.tokens) for text in group])[:, None]
                yield Batch(tokens, hidden, (columns >= begin) & (columns < end))


def train(
    module: nn.Module,
    loss_of: Callable[[Batch], Tensor],
    data: Iterator[Batch],
    steps: int,
    args: argparse.Namespace,
    name: str,
) -> tuple[int, float, float]:
    """-> steps, seconds, last loss."""
    matrices = [p for p in module.parameters() if p.dim() == 2]
    others = [p for p in module.parameters() if p.dim() != 2]
    rate = args.learning_rate
    optimizers = [
        Muon(matrices, rate, weight_decay=0.01),
        torch.optim.AdamW(others, rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    began, last = time.monotonic(), 0.0
    for step, batch in enumerate(data):
        # On a busy machine the time limit shortens the schedule; it does not cut it off.
        done = max(step / steps, (time.monotonic() - began) / (60 * args.minutes))
        if done >= 1:
            break
        scale = min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, (1 - done) / DECAY_SHARE)
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = rate * max(0.02, scale)
        loss = loss_of(batch)
        module.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        last = 0.98 * last + 0.02 * loss.item() if step else loss.item()
        if step % 100 == 99:
            print(f"{name} {step + 1} {time.monotonic() - began:.0f}s loss {last:.3f}", flush=True)
    return step, time.monotonic() - began, last


def train_eagle(
    engine: Engine, matrices: tuple[Tensor, Tensor], texts: Sequence[Text], args: argparse.Namespace
) -> tuple[Eagle, tuple[int, float, float]]:
    """Each place of a draft learns the distribution that the model has there."""
    embedding, lm_head = matrices
    module = Eagle(engine.config, args.inner or engine.config.intermediate_size)
    cos, sin = engine.model.cos, engine.model.sin

    def loss_of(batch: Batch) -> Tensor:
        time = batch.tokens.shape[1]
        said = module(
            batch.hidden, F.embedding(batch.tokens, embedding), (cos[:time], sin[:time]), args.depth
        )
        total, weights = torch.zeros(()), 0.0
        for place, states in enumerate(said):
            # Row i speaks of token i + 1; the draft began `place` tokens before.
            rows = F.pad(batch.said[:, 1:], (0, 1))
            if place:
                rows = rows & F.pad(rows, (place, 0))[:, :time]
            with torch.no_grad():
                target = F.linear(batch.hidden[rows], lm_head).softmax(-1)
            weight = DEPTH_DECAY**place
            total = total + weight * F.cross_entropy(F.linear(states[rows], lm_head), target)
            weights += weight
        return total / weights

    data = batches(texts, args.batch_size, Random(args.seed))
    return module, train(module, loss_of, data, args.steps, args, "eagle")


def train_medusa(
    engine: Engine, lm_head: Tensor, texts: Sequence[Text], args: argparse.Namespace
) -> tuple[Medusa, tuple[int, float, float]]:
    """Head k learns the k-th token behind the one that the model itself draws."""
    module = Medusa(engine.config, args.medusa_heads)

    def loss_of(batch: Batch) -> Tensor:
        total, weights = torch.zeros(()), 0.0
        for number, head in enumerate(module.heads):
            ahead = number + 2
            rows = F.pad(batch.said[:, ahead:], (0, ahead))[:, : batch.said.shape[1]]
            targets = F.pad(batch.tokens[:, ahead:], (0, ahead))[:, : batch.said.shape[1]][rows]
            features = batch.hidden[rows]
            states = features + F.silu(head["linear"](features))
            weight = DEPTH_DECAY**number
            total = total + weight * F.cross_entropy(F.linear(states, lm_head), targets)
            weights += weight
        return total / weights

    data = batches(texts, args.batch_size, Random(args.seed))
    return module, train(module, loss_of, data, args.steps, args, "medusa")


def save(folder: Path, eagle: Eagle, medusa: Medusa, training: Training) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"eagle.{name}": tensor for name, tensor in eagle.state_dict().items()}
    for number, head in enumerate(medusa.heads):
        for name, tensor in head.state_dict().items():
            tensors[f"medusa.{number}.{name}"] = tensor
    path = folder / "heads.safetensors"
    save_file(
        {name: tensor.half().contiguous() for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt", "training": json.dumps(asdict(training))},
    )
    # The library writes it for its owner alone; a package is for everybody.
    path.chmod(0o644)


def measure(
    engine: Engine,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    args: argparse.Namespace,
) -> tuple[float, float]:
    """(tokens a step, share of drafted nodes that were right), where everything is drafted."""
    everything_pays = StepCosts([1, 64], [1.0, 1.0])
    engine.speculator = Speculation(drafter, everything_pays, DRAFT_NODES)
    stats = engine.speculator.stats
    params = SamplingParams(temperature=temperature, max_tokens=args.max_tokens)
    for prompt in prompts:
        branch = engine.prefill(prompt)
        engine.extend(branch, params)
        engine.prune(branch)
    engine.speculator = None
    return stats.tokens_per_step, stats.acceptance


def card(
    training: Training, eagle: Eagle, medusa: Medusa, rows: Sequence[str], num_measured: int
) -> str:
    """Every number in it is measured or read from the training."""
    t = training
    sizes = [sum(p.numel() for p in module.parameters()) for module in (eagle, medusa)]
    return f"""---
license: apache-2.0
---
# {t.model}-heads

Heads that draft for `{t.model}`: guesses which the model verifies, so that they change the time it
takes and no token.

Written by `examples/train_heads.py`, this card included; no number here was typed by hand.

## Heads
- EAGLE: one decoder layer over (hidden state, next token), {sizes[0]:,} parameters.
- Medusa: {len(medusa.heads)} residual blocks on the last hidden state, {sizes[1]:,} parameters.

Both share the model's embedding and output matrix. Stored in float16, in `heads.safetensors`.

## Training
{t.texts:,} texts of the model itself, sampled at temperature {TEMPERATURE}: with prompts
{t.tokens:,} tokens, in {t.sampling_seconds:.0f} s. Batches of {t.batch_size}, Muon and AdamW, peak
learning rate {t.learning_rate}, seed {t.seed}, {t.threads} CPU thread(s), torch {t.torch_version}.

| heads | steps | minutes | last loss |
|---|---|---|---|
| EAGLE, drafts of {t.depth} | {t.eagle_steps} | {t.eagle_seconds / 60:.1f} | {t.eagle_loss:.4f} |
| Medusa | {t.medusa_steps} | {t.medusa_seconds / 60:.1f} | {t.medusa_loss:.4f} |

The EAGLE head learns the model's own distributions, so that its loss has their entropy as its
floor.

## Accuracy
{num_measured} held-out prompts, drafts of at most {DRAFT_NODES} nodes in every step.

| heads | temperature | tokens a step | nodes that were right |
|---|---|---|---|
{chr(10).join(rows)}
"""


def prompts_of(engine: Engine, args: argparse.Namespace) -> tuple[list, list]:
    """Token ids to learn from, and others to measure with."""
    if args.prompts is None:
        if args.model != "reasoner":
            raise SystemExit(
                "--prompts: a model other than the reasoner needs prompts to learn from"
            )
        problems = islice(stream("train", Random(args.seed)), args.texts)
        learned = [problem.question for problem in problems]
        held_out = [problem.question for problem in load_split("test", args.questions)]
        return tuple(
            [engine.tokenizer.encode(text, add_bos=None) for text in texts]
            for texts in (learned, held_out)
        )
    lines = [line for line in args.prompts.read_text("utf-8").splitlines() if line.strip()]
    held_out, learned = lines[: args.questions], lines[args.questions :]
    if not learned:
        raise SystemExit(
            f"--prompts: {args.prompts} has {len(lines)} lines, {args.questions} of"
            " which are held out"
        )
    repeated = [learned[i % len(learned)] for i in range(args.texts)]
    return tuple(
        [engine.chat_prompt([{"role": "user", "content": text}]) for text in texts]
        for texts in (repeated, held_out)
    )


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="reasoner", help="its name, or where it is")
    parser.add_argument("--prompts", type=Path, help="a file, one prompt a line")
    parser.add_argument("--out", type=Path, help="folder of the heads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=3000, help="that the model says")
    parser.add_argument("--steps", type=int, default=1500, help="for each kind of head")
    parser.add_argument("--minutes", type=float, default=14, help="wall limit for each kind")
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--depth", type=int, default=3, help="places of a draft that are trained")
    parser.add_argument("--inner", type=int, help="width of the EAGLE head's MLP")
    parser.add_argument("--medusa-heads", type=int, default=4)
    parser.add_argument("--questions", type=int, default=60, help="held out, to measure with")
    parser.add_argument("--max-tokens", type=int, default=200, help="of a text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="prove that the script runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.texts, args.steps, args.questions, args.max_tokens, args.threads = 8, 4, 2, 32, 1
        args.out = args.out or Path(tempfile.mkdtemp(prefix="heads-"))
    args.out = args.out or ASSETS / f"{args.model}-heads"
    return args


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    engine = Engine.from_pretrained(
        args.model, dtype="float32", threads=args.threads, seed=args.seed
    )
    learned, held_out = prompts_of(engine, args)
    began = time.monotonic()
    texts = texts_of(engine, learned, args)
    training = Training(
        engine.name,
        args.seed,
        len(texts),
        sum(len(text.tokens) for text in texts),
        args.batch_size,
        args.learning_rate,
        args.depth,
        args.threads,
        torch.__version__,
        time.monotonic() - began,
    )
    tensors = open_checkpoint(args.model).tensors
    embedding = tensors["model.embed_tokens.weight"].float()
    tied = engine.config.tie_word_embeddings
    lm_head = embedding if tied else tensors["lm_head.weight"].float()
    medusa, figures = train_medusa(engine, lm_head, texts, args)
    training.medusa_steps, training.medusa_seconds, training.medusa_loss = figures
    eagle, figures = train_eagle(engine, (embedding, lm_head), texts, args)
    training.eagle_steps, training.eagle_seconds, training.eagle_loss = figures
    save(args.out, eagle, medusa, training)
    heads = TrainedHeads.load(args.out, engine.config)
    rows = []
    for name, drafter in (
        ("EAGLE", EagleDrafter(engine, heads)),
        ("Medusa", MedusaDrafter(engine, heads)),
    ):
        for temperature in (0.0, 1.0):
            tokens, acceptance = measure(engine, drafter, held_out, temperature, args)
            rows.append(f"| {name} | {temperature} | {tokens:.2f} | {acceptance:.3f} |")
            print(rows[-1], flush=True)
    text = card(training, eagle, medusa, rows, len(held_out))
    (args.out / "README.md").write_text(text)
    print(f"wrote {args.out}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
