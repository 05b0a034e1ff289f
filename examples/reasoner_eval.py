"""Sampling with a KV cache in plain torch, and the figures of the model card."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from reasoner_model import BOS_ID, EOS_ID, PAD_ID, KVCache, Reasoner, Training
from tokenizers import Tokenizer

from parallel_decode.tasks import DEFAULT_MIX, SPLITS, TASKS, Problem, stream

BATCH_PROBLEMS = 32
COMPACT_EVERY = 16


@torch.inference_mode()
def sample(
    model: Reasoner,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    num_samples: int,
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> list[list[str]]:
    """`num_samples` traces for each question, in the order of the questions."""
    prompts = [tokenizer.encode(question).ids for question in questions]
    # Neighbours in length share a batch: less padding, and they finish at about the same step.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts: list[list[str]] = [[] for _ in prompts]
    for start in range(0, len(order), BATCH_PROBLEMS):
        batch = order[start : start + BATCH_PROBLEMS]
        rows = _sample_batch(
            model, [prompts[i] for i in batch], num_samples, temperature, max_new_tokens, generator
        )
        decoded = tokenizer.decode_batch(rows)
        for k, i in enumerate(batch):
            texts[i] = decoded[k * num_samples : (k + 1) * num_samples]
    return texts


def _sample_batch(
    model: Reasoner,
    prompts: list[list[int]],
    num_samples: int,
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> list[list[int]]:
    width = max(map(len, prompts))
    padding = torch.tensor([width - len(p) for p in prompts])
    tokens = torch.tensor([[PAD_ID] * (width - len(p)) + p for p in prompts])
    columns = torch.arange(width + max_new_tokens)
    seen = columns[None, :width] >= padding[:, None]
    # Padding sees itself: a row of the mask without any True would be NaN.
    mask = (seen[:, None, :] & torch.ones(width, width, dtype=torch.bool).tril()) | torch.eye(
        width, dtype=torch.bool
    )
    cache = KVCache(model.config, len(prompts), width + max_new_tokens)
    positions = (columns[None, :width] - padding[:, None]).clamp(min=0)
    last = model.hidden(tokens, positions, mask[:, None], cache)[:, -1]

    live = torch.arange(len(prompts) * num_samples)
    origin = live // num_samples
    cache.take(origin)
    last, padding = last[origin], padding[origin]
    out = torch.full((len(live), max_new_tokens), PAD_ID)
    finished = torch.zeros(len(live), dtype=torch.bool)
    for step in range(max_new_tokens):
        probs = torch.softmax(model.logits(last) / temperature, dim=-1)
        chosen = torch.multinomial(probs, 1, generator=generator)[:, 0]
        chosen[finished] = PAD_ID
        out[live, step] = chosen
        finished |= chosen == EOS_ID
        if finished.all():
            break
        if step % COMPACT_EVERY == COMPACT_EVERY - 1 and finished.any():
            keep = (~finished).nonzero()[:, 0]
            cache.take(keep)
            live, chosen, padding, finished = (x[keep] for x in (live, chosen, padding, finished))
        end = width + step + 1
        visible = (columns[None, :end] >= padding[:, None])[:, None, None]
        positions = (width + step - padding)[:, None]
        last = model.hidden(chosen[:, None], positions, visible, cache)[:, -1]
    return [[t for t in row if t not in (PAD_ID, BOS_ID, EOS_ID)] for row in out.tolist()]


@dataclass(frozen=True)
class Result:
    """What n samples of one problem were worth."""

    problem: Problem
    pass_1: float
    maj: float
    pass_n: float
    steps_right: float


def judge(problem: Problem, texts: Sequence[str]) -> Result:
    """pass@1 = c/n; majority vote with ties broken uniformly, so a tie counts in part."""
    task = TASKS[problem.task]
    answers = [task.extract_answer(text) for text in texts]
    right = {a for a in set(answers) if a is not None and task.grade(problem, a)}
    votes = Counter(a for a in answers if a is not None)
    winners = [a for a, count in votes.items() if count == max(votes.values())]
    verdicts = [v for text in texts for v in task.check_steps(problem, text)]
    return Result(
        problem,
        pass_1=sum(a in right for a in answers) / len(answers),
        maj=sum(a in right for a in winners) / max(1, len(winners)),
        pass_n=float(bool(right)),
        steps_right=sum(verdicts) / max(1, len(verdicts)),
    )


def measure(
    model: Reasoner,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    num_samples: int,
    temperature: float,
    seed: int,
    max_new_tokens: int = 256,
) -> list[Result]:
    generator = torch.Generator().manual_seed(seed)
    questions = [p.question for p in problems]
    model.eval()
    texts = sample(model, tokenizer, questions, num_samples, temperature, max_new_tokens, generator)
    return [judge(problem, row) for problem, row in zip(problems, texts, strict=True)]


def mean(results: Sequence[Result], field: str) -> float:
    return sum(getattr(r, field) for r in results) / len(results)


def gain_interval(results: Sequence[Result], draws: int = 2000) -> tuple[float, float]:
    """Paired 95 % bootstrap interval, over questions, of majority vote minus pass@1."""
    rng = Random(0)
    gains = [r.maj - r.pass_1 for r in results]
    means = sorted(sum(rng.choices(gains, k=len(gains))) / len(gains) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def table(results: Sequence[Result], num_samples: int) -> str:
    """Markdown: one row for each task and difficulty, and one for all."""
    n = num_samples
    lines = [
        f"| task | difficulty | questions | pass@1 | maj@{n} | pass@{n} | steps right |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = sorted({(r.problem.task, r.problem.difficulty) for r in results})
    groups = [
        (name, str(d), [r for r in results if (r.problem.task, r.problem.difficulty) == (name, d)])
        for name, d in kinds
    ]
    for name, difficulty, rows in [*groups, ("all", "", list(results))]:
        figures = " | ".join(
            f"{mean(rows, field):.3f}" for field in ("pass_1", "maj", "pass_n", "steps_right")
        )
        lines.append(f"| {name} | {difficulty} | {len(rows)} | {figures} |")
    return "\n".join(lines)


def card(
    model: Reasoner,
    training: Training,
    results: Sequence[Result],
    num_samples: int,
    temperature: float,
    test_seed: int,
) -> str:
    """The model card; every number in it is measured or read from the training."""
    low, high = gain_interval(results)
    c, n, t = model.config, num_samples, training
    parameters = sum(p.numel() for p in model.parameters())
    role = {
        "reasoner": "A small reasoning model for trying out methods of parallel reasoning: right "
        "often enough to be worth sampling, wrong often enough for methods to differ.",
        "reasoner-draft": "A draft model for speculative decoding of the reasoner: same tokenizer, "
        "same data.",
    }[t.name]
    shown = []
    for name, task in TASKS.items():
        hardest_kind = max((kind for kind in DEFAULT_MIX if kind[0] == name), key=lambda k: k[1])
        problem = next(stream("test", Random(test_seed), {hardest_kind: 1}))
        trace = task.solution(problem, Random(test_seed))
        shown.append(f"```\n{problem.question}{trace}\n```")
    examples = "\n".join(shown)
    total = sum(DEFAULT_MIX.values())
    kinds = ", ".join(f"{k} {d} ({w / total:.0%})" for (k, d), w in DEFAULT_MIX.items())
    starts = (0, *SPLITS.values())
    shares = ", ".join(
        f"{name} {end - start} %"
        for (name, end), start in zip(SPLITS.items(), starts, strict=False)
    )
    ending = {
        "band": "pass@1 on development problems reached the wanted band",
        "steps": "the planned steps were done",
        "minutes": "the time limit, which shortened the schedule",
    }[t.ended_by]
    gain, spread = (mean(results, f) - mean(results, "pass_1") for f in ("maj", "pass_n"))
    return f"""---
license: apache-2.0
library_name: transformers
---
# {t.name}

{role}

Written by `examples/train_reasoner.py`, this card included; no number here was typed by hand.

## Model
Llama architecture, {parameters:,} parameters in float32: {c.num_layers} layers, hidden size
{c.hidden_size}, MLP {c.intermediate_size}, {c.num_heads} query heads and {c.num_kv_heads} key-value
head(s) of {c.head_dim}, {c.max_positions} positions in the configuration (trained on far fewer),
vocabulary {c.vocab_size}: byte-level BPE in which each number below 100 is one token.

## Format
The prompt is `<bos>` and a question that ends with a newline. The output is steps, one a line, then
`answer X` and `<eos>`. Sample at temperature {temperature}.

{examples}

## Data
Problems of `parallel_decode.tasks`, generated as needed, with gold traces. A hash of a problem's
structure decides its split: {shares}.
The test mix, task and difficulty: {kinds}.

## Training
{t.steps} steps of {t.batch_size} examples, {t.tokens:,} tokens with padding; Muon and AdamW, peak
learning rate {t.learning_rate}, {t.precision} matrix products, seed {t.seed}, short problems first.
{t.seconds / 60:.1f} minutes on {t.threads} CPU threads with torch {t.torch_version}.
Ended by: {ending}. Last training loss: {t.loss:.4f}.

## Accuracy
{len(results)} test problems, `load_split("test", {len(results)}, seed={test_seed})`, {n} samples
each at temperature {temperature}. pass@1 is the mean over samples; maj@{n} is the majority vote,
ties broken uniformly; pass@{n}: any sample is right; steps right: share of lines with a right
verdict.

{table(results, n)}

maj@{n} - pass@1 = {gain:.3f} (paired 95 % bootstrap interval over questions: {low:.3f} to
{high:.3f}); pass@{n} - pass@1 = {spread:.3f}.
"""
