"""Guessing ahead against llama.cpp's prompt lookup, on the same file and the same prompts.

`python -m benchmarks.speculation_peers [--quick] [--json PATH]`; `make peers` builds llama.cpp.

SmolLM2 as Q8_0, greedily, one branch, everybody in turns. llama.cpp with or without flash
attention, as a trial says; of it only the seconds of `llama_decode` count: it looks up and draws
for free, which llama-cpp-python's own loop does not.
Its drafts are those of `LlamaPromptLookupDecoding` with so many tokens; there is no smaller model
of this vocabulary to draft for it. Ours are timed in all, drafters with what the controller asks of
them. `tokens_per_s`: the median over rounds; `to_llama_cpp`: over the best of llama.cpp's rows of
the category. `same_text`: how many tokens at the beginnings of the outputs are llama.cpp's own.
"""

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import track

from benchmarks import llama_cpp_context as low
from benchmarks.llama_cpp_context import Configuration, Context, LlamaPromptLookupDecoding
from benchmarks.llama_cpp_peer import FILES
from benchmarks.report import Report, argument_parser
from benchmarks.speculation import Work, decode
from benchmarks.speculation_prompts import PROMPTS
from parallel_decode import Engine
from parallel_decode.engine import Drafter
from parallel_decode.model.checkpoint import find_smollm2
from parallel_decode.speculation import NGramDrafter, Speculation, StepCosts, SuffixDrafter

WEIGHTS = "Q8_0"
NUM_PREDICTED = (2, 5, 10)
CELLS = 1024


@dataclass(frozen=True)
class Said:
    seconds: float
    steps: int
    tokens: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens))


class Ours:
    """With a drafter, or without; what it learns is of one round."""

    def __init__(
        self, engine: Engine, costs: StepCosts, make: Callable[[], Drafter] | None
    ) -> None:
        self._engine, self._costs, self._make = engine, costs, make

    def say(self, work: Work) -> Said:
        if self._make is not None:
            self._engine.speculator = Speculation(self._make(), self._costs)
        outcome = decode(self._engine, work)
        self._engine.speculator = None
        return Said(outcome.seconds, outcome.steps, outcome.tokens)


class Theirs:
    """num_predicted: of a lookup, 0 for none."""

    def __init__(self, context: Context, num_predicted: int, end: Sequence[int]) -> None:
        self._context, self._end = context, frozenset(end)
        self._lookup = None
        if num_predicted:
            self._lookup = LlamaPromptLookupDecoding(num_pred_tokens=num_predicted)

    def say(self, work: Work) -> Said:
        seconds, steps, outputs = 0.0, 0, []
        for prompt in work.prompts:
            self._context.truncate(0, 0)
            self._context.append([prompt[:-1]], [0], 0)
            took, took_steps, tokens = self._answer(list(prompt), work.max_tokens)
            seconds, steps = seconds + took, steps + took_steps
            outputs.append(tokens)
        return Said(seconds, steps, outputs)

    def _answer(self, tokens: list[int], limit: int) -> tuple[float, int, list[int]]:
        begin, seconds, steps = len(tokens), 0.0, 0
        while len(tokens) < begin + limit and tokens[-1] not in self._end:
            drafted: list[int] = []
            if self._lookup is not None:
                drafted = self._lookup(np.array(tokens, np.intc)).tolist()
                drafted = drafted[: begin + limit - len(tokens) - 1]
            first = len(tokens) - 1
            rows = [tokens[-1], *drafted]
            took, logits = self._context.decode(
                rows, range(first, first + len(rows)), [0] * len(rows), [True] * len(rows)
            )
            seconds, steps = seconds + took, steps + 1
            for drawn, guess in zip(logits.argmax(1).tolist(), [*drafted, -1], strict=True):
                tokens.append(drawn)
                if drawn != guess or drawn in self._end:
                    break
            self._context.truncate(0, len(tokens) - 1)
        return seconds, steps, tokens[begin:]


def common(outputs: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> int:
    """Tokens at the beginnings that are the same."""
    total = 0
    for one, other in zip(outputs, others, strict=True):
        equal = [a == b for a, b in zip(one, other)]
        total += equal.index(False) if False in equal else len(equal)
    return total


def add_rows(report: Report, contestants: dict[str, Ours | Theirs], work: Work, num: int) -> None:
    said: dict[str, list[Said]] = {name: [] for name in contestants}
    for number in range(num):
        names = list(contestants)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            said[name].append(contestants[name].say(work))
    rates = {
        name: statistics.median(one.num_tokens / one.seconds for one in rounds)
        for name, rounds in said.items()
    }
    best = max(rate for name, rate in rates.items() if name.startswith("llama.cpp"))
    for name, rounds in said.items():
        last = rounds[-1]
        report.add(
            category=work.category,
            engine=name,
            tokens=last.num_tokens,
            same_text=common(last.tokens, said["llama.cpp"][-1].tokens),
            tokens_per_step=round(last.num_tokens / last.steps, 2),
            tokens_per_s=round(rates[name], 1),
            lowest=round(min(one.num_tokens / one.seconds for one in rounds), 1),
            highest=round(max(one.num_tokens / one.seconds for one in rounds), 1),
            to_llama_cpp=round(rates[name] / best, 2),
        )


def chats_of(engine: Engine, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(engine.chat_prompt([{"role": "user", "content": text}])) for text in texts)


def trial_seconds(shared: Context, ends: Sequence[int], work: Work) -> float:
    """Of the better of two turns without lookup."""
    with shared as context:
        return min(Theirs(context, 0, ends).say(work).seconds for _ in range(2))


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    if low.llama_cpp is None:
        raise SystemExit("llama.cpp is not built here: make peers")
    low.silence()
    rounds, max_tokens, num_prompts = (1, 24, 1) if args.quick else (3, 64, 2)
    path = low.requantised(find_smollm2(), WEIGHTS, FILES)
    engine = Engine.from_pretrained(
        str(path), dtype="int8", kv_dtype="float16", threads=args.threads
    )
    costs = StepCosts.measure(engine)
    model, ends = low.load(path), engine.config.eos_ids

    def context_of(config: Configuration) -> Context:
        return Context(model, config, sequences=1, cells=CELLS, longest=CELLS, threads=args.threads)

    works = [
        Work("smollm2", category, chats_of(engine, texts[:num_prompts]), 1, 0.0, max_tokens)
        for category, texts in PROMPTS.items()
    ]
    config = min(
        (Configuration(WEIGHTS), Configuration(WEIGHTS, flash=True)),
        key=lambda config: trial_seconds(context_of(config), ends, works[0]),
    )
    report = Report(
        "speculation_peers",
        {
            "quick": args.quick,
            "threads": args.threads,
            "model": f"smollm2, {WEIGHTS}",
            "llama_cpp_configuration": str(config),
            "prompts": num_prompts,
            "max_tokens": max_tokens,
            "rounds": rounds,
        },
        peers=("llama-cpp-python",),
    )
    with context_of(config) as context:
        contestants: dict[str, Ours | Theirs] = {
            "parallel_decode": Ours(engine, costs, None),
            "parallel_decode, suffix": Ours(engine, costs, SuffixDrafter),
            "parallel_decode, n-gram": Ours(engine, costs, NGramDrafter),
            "llama.cpp": Theirs(context, 0, ends),
            **{f"llama.cpp, lookup of {n}": Theirs(context, n, ends) for n in NUM_PREDICTED},
        }
        for work in track(works, "categories", transient=True):
            add_rows(report, contestants, work, rounds)
            report.save(args.json)
    report.finish(args.json)


if __name__ == "__main__":
    main()
