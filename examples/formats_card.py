"""The model cards of the formats, measured with the engine and the methods that users run."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from types import ModuleType

import format_candidates
import format_fork_join
import format_peers
import format_tools
import format_workers
from branching_text import BranchingText, encoder
from formats import PLANS
from reasoner_model import Reasoner, Training
from tokenizers import Tokenizer

from parallel_decode import Engine, SamplingParams
from parallel_decode.reasoning import (
    SSA,
    Author,
    BestOfN,
    Method,
    Multiverse,
    SelfConsistency,
    UniversalSelfConsistency,
)
from parallel_decode.reasoning.fork_join import PARALLEL, reasoner_tags
from parallel_decode.reasoning.interaction import PEERS, TEAM, reasoner_peers, reasoner_team
from parallel_decode.reasoning.synthesis import (
    reasoner_quotation,
    reasoner_reading,
    reasoner_verdict,
)
from parallel_decode.reasoning.synthesis.reasoner_format import MOST_CANDIDATES
from parallel_decode.reasoning.tools import (
    reasoner_async,
    reasoner_plan,
    reasoner_toolbox,
    reasoner_turns,
)
from parallel_decode.tasks import TASKS, Problem, load_split

GREEDY = SamplingParams(temperature=0, max_tokens=400)
WORK = SamplingParams(temperature=0, max_tokens=80)
SAMPLED = SamplingParams(temperature=1.0, max_tokens=400)
EXTRACT = TASKS["dag"].extract_answer
CHAIN = SelfConsistency(1, GREEDY, EXTRACT, speculation=None)

Arms = Mapping[str, tuple[str, Method]]
"""Name -> suffix of the question, method."""


def fork_join_table(engine: Engine, num_questions: int) -> list[str]:
    forked = Multiverse(tags=reasoner_tags(engine.tokenizer), params=GREEDY, extract=EXTRACT)
    arms = {"chain": ("", CHAIN), "fork-join": (PARALLEL, forked)}
    kinds = (("chain", 12), ("dag", 3), ("dag", 7), ("dag", 8))
    return table(engine, num_questions, dict.fromkeys(kinds, arms))


def peers_table(engine: Engine, num_questions: int) -> list[str]:
    kinds: dict[tuple[str, int], Arms] = {}
    for difficulty in (3, 5, 7):
        size, _ = TASKS["dag"].shapes[difficulty]
        kinds["dag", difficulty] = {
            "chain": ("", CHAIN),
            "workers": (TEAM, reasoner_team(size, WORK, EXTRACT)),
            "workers, unseen": (TEAM, reasoner_team(size, WORK, EXTRACT, visible=False)),
        }
    for steps in (12, 16):
        kinds["chain", steps] = {
            "chain": ("", CHAIN),
            "4 samples": ("", SelfConsistency(4, SAMPLED, EXTRACT, speculation=None)),
            "4 peers": (PEERS, reasoner_peers(4, 4, steps // 4 + 1, SAMPLED, EXTRACT)),
        }
    return table(engine, num_questions, kinds)


def judge_table(engine: Engine, num_questions: int) -> list[str]:
    """Of 4 candidates; the first table is of the reasoner, whom the judge helps."""
    explorer = Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 17)
    kinds = (("chain", 14), ("chain", 16), ("dag", 5), ("dag", 6))
    written: Arms = {
        "1 sample": ("", SelfConsistency(1, SAMPLED, EXTRACT, speculation=None)),
        "majority of 4": ("", SelfConsistency(4, SAMPLED, EXTRACT, speculation=None)),
        "best of 4, verdicts of the judge": (
            "",
            BestOfN(4, reasoner_verdict(engine), params=SAMPLED, extract=EXTRACT),
        ),
    }
    read: Arms = {
        "chain": ("", CHAIN),
        "synthesis of 4 of the reasoner": (
            "",
            SSA(
                4,
                Author(SAMPLED, explorer),
                Author(GREEDY),
                shown=reasoner_quotation(),
                extract=EXTRACT,
            ),
        ),
        "majority of 4": ("", SelfConsistency(4, SAMPLED, EXTRACT, speculation=None)),
        "one of 4, named by itself": (
            "",
            UniversalSelfConsistency(
                4, reasoner_reading(), GREEDY, params=SAMPLED, extract=EXTRACT
            ),
        ),
    }
    return [
        "The reasoner:",
        "",
        *table(explorer, num_questions, dict.fromkeys(kinds, written)),
        "",
        "This model:",
        "",
        *table(engine, num_questions, dict.fromkeys(kinds, read)),
    ]


def tools_table(engine: Engine, num_questions: int) -> list[str]:
    box, liar = reasoner_toolbox(), reasoner_toolbox(lambda **assignment: 0)
    arms: Arms = {
        "chain": ("", CHAIN),
        "turns of calls": ("", reasoner_turns(box, GREEDY, EXTRACT)),
        "a plan": ("", reasoner_plan(box, GREEDY, EXTRACT)),
        "calls that do not block": ("", reasoner_async(box, GREEDY, EXTRACT)),
        "a plan, all results are 0": ("", reasoner_plan(liar, GREEDY, EXTRACT)),
    }
    kinds = (("chain", 12), ("chain", 16), ("dag", 4), ("dag", 7))
    return table(engine, num_questions, dict.fromkeys(kinds, arms))


def table(engine: Engine, num_questions: int, kinds: Mapping[tuple[str, int], Arms]) -> list[str]:
    """Markdown: one row a kind of question and method."""
    lines = [
        "| task | difficulty | questions | method | right | steps |",
        "|---|---|---|---|---|---|",
    ]
    for (task, difficulty), arms in kinds.items():
        problems = load_split("test", num_questions, 0, {(task, difficulty): 1})
        for name, (suffix, method) in arms.items():
            engine.clear_prefixes()
            solutions = engine.solve_many([p.question + suffix for p in problems], method)
            right = [s.answer == p.answer for s, p in zip(solutions, problems, strict=True)]
            steps = [solution.usage.forward_steps for solution in solutions]
            lines.append(
                f"| {task} | {difficulty} | {len(problems)} | {name} |"
                f" {sum(right) / len(right):.3f} | {sum(steps) / len(steps):.1f} |"
            )
    return lines


def shown(form: ModuleType, tokenizer: Tokenizer, problem: Problem) -> str:
    """A training text; workers, who write at the same time, one after the other."""
    text = BranchingText()
    question = text.append(tokenizer.encode(problem.question).ids, learned=False)
    form.write(text, question, problem, encoder(tokenizer), Random(0))
    if form is not format_workers:
        return tokenizer.decode(text.tokens)
    by_position = sorted(zip(text.positions, text.tokens, strict=True))
    return tokenizer.decode([token for _, token in by_position])


FORK_JOIN = f"""The bundled reasoner, trained further for fork-join: it answers a question in a
chain of steps, or, where `{PARALLEL}` follows it, forks into branches and joins them. Branches of a
fork do not see each other and begin at the same position; the join goes on behind the longest and
sees all: `Multiverse(tags=reasoner_tags(engine.tokenizer))`."""
INTERACTION = f"""The bundled reasoner, trained further for branches that talk. Where `{TEAM}`
follows the question of a DAG, workers split it; each sees what the others write as it comes:
`reasoner_team`, which is Group Think. Where `{PEERS}` follows that of a chain, paths tell each
other now and then which value they have come to, and go on with what most say: `reasoner_peers`,
which is LeaP."""
JUDGE = f"""The bundled reasoner, trained further to read candidates. It writes the solution behind
up to {MOST_CANDIDATES} of them (`reasoner_quotation`, for the methods of synthesis), and says of
one solution whether it is right, behind one of its own (`reasoner_verdict`, a generative verifier).
It was also taught to name the first one with the most frequent answer (`reasoner_reading`, for
universal self-consistency), but has not learnt to count: it nearly always names the first."""
TOOLS = """The bundled reasoner, trained further to call a tool that computes, instead of computing
itself: level by level (`reasoner_turns`), by a plan whose calls run as soon as what they need is
there (`reasoner_plan`, which is LLMCompiler), or while it writes on (`reasoner_async`, which is
AsyncLM)."""
EXAMPLES = {
    format_candidates: ("chain", 4),
    format_fork_join: ("dag", 2),
    format_workers: ("dag", 2),
    format_peers: ("chain", 6),
    format_tools: ("dag", 2),
}
ABOUT: dict[str, tuple[str, Callable[[Engine, int], list[str]]]] = {
    "reasoner-formats": (FORK_JOIN, fork_join_table),
    "reasoner-judge": (JUDGE, judge_table),
    "reasoner-peers": (INTERACTION, peers_table),
    "reasoner-tools": (TOOLS, tools_table),
}


def examples(tokenizer: Tokenizer, forms: Sequence[ModuleType]) -> str:
    parts = []
    for form in forms:
        [problem] = load_split("test", 1, 0, {EXAMPLES[form]: 1})
        parts.append(f"`examples/{form.__name__}.py`:\n```\n{shown(form, tokenizer, problem)}\n```")
    return "\n\n".join(parts)


def card(folder: Path, model: Reasoner, training: Training, args: argparse.Namespace) -> str:
    """Every number in it is measured or read from the training."""
    c, t, plan = model.config, training, PLANS[training.name]
    about, measure = ABOUT[plan.name]
    engine = Engine.from_pretrained(folder, threads=args.threads, kv_tokens=1 << 17)
    figures = "\n".join(measure(engine, args.questions))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    parameters = sum(p.numel() for p in model.parameters())
    return f"""---
license: apache-2.0
library_name: transformers
---
# {t.name}

{about}

Written by `examples/train_formats.py`, this card included; no number here was typed by hand.

## Model
Llama architecture, {parameters:,} parameters in float32: {c.num_layers} layers, hidden size
{c.hidden_size}, vocabulary {c.vocab_size}: that of the reasoner and control tags of one token each.

## Formats
{examples(tokenizer, plan.formats)}

## Training
From `{plan.base}`, on problems of the train split: DAGs of width {plan.widths[0]} to
{plan.widths[-1]}, {plan.chains:.0%} chains, the chain format besides in {plan.chain_form:.0%} of
the texts, small problems first. {t.steps} steps, {t.tokens:,} tokens with padding; Muon and AdamW,
peak learning rate {t.learning_rate}, {t.precision} matrix products, seed {t.seed}.
{t.seconds / 60:.1f} minutes of CPU time on {t.threads} thread(s) with torch {t.torch_version}. Last
training loss: {t.loss:.4f}. It was not trained on countdown and does not answer it.

## Accuracy
Test problems, `load_split("test", {args.questions}, 0, {{(task, difficulty): 1}})`, greedy but for
several samples and for peers, which are drawn at temperature {SAMPLED.temperature}. Steps are
forward steps of the engine in which a question took part, all questions in one batch.

{figures}
"""
