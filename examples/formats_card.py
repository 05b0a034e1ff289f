"""The model card of `reasoner-formats`, measured with the engine and the methods that users run."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random

from branching_text import BranchingText
from format_fork_join import write
from reasoner_model import Reasoner, Training
from tokenizers import Tokenizer

from parallel_decode import Engine, SamplingParams
from parallel_decode.reasoning import Multiverse, SelfConsistency
from parallel_decode.reasoning.fork_join import PARALLEL, reasoner_tags
from parallel_decode.tasks import TASKS, Problem, load_split

KINDS = (("chain", 12), ("dag", 3), ("dag", 7), ("dag", 8))
GREEDY = SamplingParams(temperature=0, max_tokens=400)


def measure(engine: Engine, num_questions: int) -> list[str]:
    """A Markdown table: one row a kind of question."""
    lines = [
        "| task | difficulty | questions | right, chain | steps, chain | right, fork-join |"
        " steps, fork-join |",
        "|---|---|---|---|---|---|---|",
    ]
    extract = TASKS["dag"].extract_answer
    tags = reasoner_tags(engine.tokenizer)
    methods = {
        "": SelfConsistency(1, GREEDY, extract, speculation=None),
        PARALLEL: Multiverse(tags=tags, params=GREEDY, extract=extract),
    }
    for task, difficulty in KINDS:
        problems = load_split("test", num_questions, 0, {(task, difficulty): 1})
        cells = []
        for suffix, method in methods.items():
            engine.clear_prefixes()
            solutions = engine.solve_many([p.question + suffix for p in problems], method)
            right = [s.answer == p.answer for s, p in zip(solutions, problems, strict=True)]
            steps = [solution.usage.forward_steps for solution in solutions]
            cells += [f"{sum(right) / len(right):.3f}", f"{sum(steps) / len(steps):.1f}"]
        lines.append(f"| {task} | {difficulty} | {len(problems)} | {' | '.join(cells)} |")
    return lines


def shown(tokenizer: Tokenizer, problem: Problem) -> str:
    """A training text, as it is stored: its branches one after the other."""
    text = BranchingText()
    question = text.append(tokenizer.encode(problem.question).ids, learned=False)
    write(text, question, problem, tokenizer, Random(0))
    return tokenizer.decode(text.tokens)


def card(
    folder: Path,
    model: Reasoner,
    training: Training,
    forms: Sequence[str],
    args: argparse.Namespace,
) -> str:
    """Every number in it is measured or read from the training."""
    engine = Engine.from_pretrained(folder, threads=args.threads, kv_tokens=1 << 17)
    table = "\n".join(measure(engine, args.questions))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    [problem] = load_split("test", 1, 0, {("dag", 2): 1})
    c, t = model.config, training
    parameters = sum(p.numel() for p in model.parameters())
    names = ", ".join(f"`examples/{name}.py`" for name in forms)
    return f"""---
license: apache-2.0
library_name: transformers
---
# {t.name}

The bundled reasoner, trained further for formats of parallel reasoning: it answers a question in a
chain of steps, or, where `{PARALLEL}` follows it, forks into branches and joins them.

Written by `examples/train_formats.py`, this card included; no number here was typed by hand.

## Model
Llama architecture, {parameters:,} parameters in float32: {c.num_layers} layers, hidden size
{c.hidden_size}, vocabulary {c.vocab_size}: that of the reasoner and control tags of one token each.

## Formats
{names}. Branches of a fork do not see each other and begin at the same position; the join goes on
behind the longest and sees all: `Multiverse(tags=reasoner_tags(engine.tokenizer))`.

```
{shown(tokenizer, problem)}
```

## Training
From the bundled reasoner, on problems of the train split in all formats behind the same question:
DAGs of width 2 to 8 and length 1 to 4, and chains. {t.steps} steps, {t.tokens:,} tokens with
padding; Muon and AdamW, peak learning rate {t.learning_rate}, {t.precision} matrix products, seed
{t.seed}. {t.seconds / 60:.1f} minutes of CPU time on {t.threads} thread(s) with torch
{t.torch_version}. Last training loss: {t.loss:.4f}. It was not trained on countdown and does not
answer it.

## Accuracy
Test problems, `load_split("test", {args.questions}, 0, {{(task, difficulty): 1}})`, greedy. Steps
are forward steps of the engine in which a question took part, all questions in one batch.

{table}
"""
