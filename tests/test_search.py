"""Searches on a random model of four letters, whose solutions can be listed."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from parallel_decode import Budget, SamplingParams, Score
from parallel_decode.engine import Extend, Fork, Prefill, Seed
from parallel_decode.reasoning import (
    ABMCTS,
    DVTS,
    ETS,
    MCTS,
    Forest,
    GraphOfThoughts,
    ParticleFilter,
    Rebase,
    SelfEvalBeam,
    Solution,
    TreeOfThoughts,
    likelihood,
)
from parallel_decode.reasoning.gather import gather
from parallel_decode.reasoning.search.action import RSTAR_ACTIONS, Action
from parallel_decode.reasoning.search.self_evaluation import SelfEvaluation
from parallel_decode.reasoning.search.thought_operation import (
    Aggregate,
    Generate,
    KeepBest,
    Refine,
)
from parallel_decode.reasoning.weighting import best_only
from tests.chi_square import assert_follows
from tests.search_cases import (
    ENDING,
    MAX_STEPS,
    PARAMS,
    QUESTION,
    all_methods,
    constant,
    letters_law,
    searches,
    small_engine,
    whole,
)

NAMES = list(all_methods())


@pytest.fixture(scope="module")
def engine():
    return small_engine()


def solve_often(engine, method, times: int) -> list[Solution]:
    """One solution a seed, all in one batch."""
    programs = [engine.submit(method.program(QUESTION), seed=seed) for seed in range(times)]
    engine.wait(programs)
    for program in programs:
        if program.error is not None:
            raise program.error
    assert engine.blocks_in_use == 0
    return [program.result for program in programs]


# ---- constant values: a search is independent sampling ----


@pytest.mark.parametrize("name", list(searches(PARAMS)))
def test_with_a_constant_value_the_answer_is_a_sample(engine, name):
    """All texts are as long, so that nothing but their words could sway the search."""
    method = searches(PARAMS, scorer=constant, max_steps=2, weigh=best_only)[name]
    answers = [solution.answer for solution in solve_often(engine, method, 400)]
    if isinstance(method, MCTS | ABMCTS):
        answers = [answer[:1] for answer in answers]  # the tree decides how deep it goes
        assert_follows(Counter(answers), letters_law(engine, 1, ends=False))
    else:
        assert_follows(Counter(answers), letters_law(engine, 2, ends=False))


@pytest.mark.parametrize("name", ["rebase", "particle-filter", "dvts", "forest"])
def test_with_a_constant_value_all_lines_are_independent_samples(engine, name):
    """Also where texts end sooner or later: of each search all lines count."""
    method = searches(ENDING, scorer=constant)[name]
    lines = {"rebase": 3, "particle-filter": 3, "dvts": 2, "forest": 4}[name]
    texts, pairs = [], []
    for solution in solve_often(engine, method, 300):
        if name in ("dvts", "forest"):
            ends = list(_first_children(solution))
        else:
            ends = [node for node in solution.tree.walk() if not node.children]
        found = [_text(solution, node.name) for node in ends]
        assert len(found) == lines
        texts += found
        pairs.append((found[0], found[1]))
    law = letters_law(engine, MAX_STEPS, ends=True)
    assert_follows(Counter(texts), law)
    assert_follows(Counter(pairs), {(a, b): p * q for a, p in law.items() for b, q in law.items()})


def test_the_law_is_told_from_another(engine):
    """The same test, of a search that goes by something: it must fail."""
    method = searches(PARAMS, max_steps=2, scorer=likelihood)["step-beam"]
    answers = Counter(solution.answer for solution in solve_often(engine, method, 400))
    with pytest.raises(AssertionError, match="degrees of freedom"):
        assert_follows(answers, letters_law(engine, 2, ends=False))


def _text(solution: Solution, name: str) -> str:
    nodes = {node.name: node for node in solution.tree.walk()}
    steps = name.split(".")
    return "".join(nodes[".".join(steps[: i + 1])].text for i in range(len(steps)))


def _first_children(solution: Solution):
    """Where the lines of DVTS end: the line i of a tree begins with child 2·i of its root."""
    roots = solution.tree.children if len(solution.tree.children) == 2 else [solution.tree]
    for root in roots:
        for start in root.children[::2]:
            node = start
            while node.children:
                node = node.children[0]
            yield node


@pytest.mark.parametrize("target", ["product", "last"])
def test_a_particle_filter_samples_from_its_target(engine, target):
    """Of one particle drawn by weight, the law tends to p(text) times its potentials. With many
    particles the difference is small; without resampling it would be p itself."""
    likes = {"a": 0.0, "b": 1.0, "c": -1.0, "d": 0.5}

    def last_letter(branches):
        return [likes[branch.text[-1]] for branch in branches]

    method = ParticleFilter(
        48, target=target, scorer=last_letter, max_steps=2, params=PARAMS, extract=whole
    )
    law = letters_law(engine, 2, ends=False)
    score = {text: likes[text[1]] + (likes[text[0]] if target == "product" else 0) for text in law}
    total = math.fsum(p * math.exp(score[text]) for text, p in law.items())
    wanted = {text: p * math.exp(score[text]) / total for text, p in law.items()}
    found: Counter[str] = Counter()
    solutions = solve_often(engine, method, 60)
    for solution in solutions:
        for text, weight in solution.votes:
            found[text] += weight / len(solutions)
    assert math.fsum(found.values()) == pytest.approx(1)
    distance = sum(abs(found[text] - p) for text, p in wanted.items()) / 2
    untouched = sum(abs(law[text] - p) for text, p in wanted.items()) / 2
    # 60 · 48 particles: the standard error of the distance is below 0.02.
    assert distance < 0.05 < untouched / 2


# ---- figures, trees ----


@pytest.mark.parametrize("name", NAMES)
def test_every_token_is_counted_and_every_node_shown(engine, name):
    before = engine.usage
    solution = engine.solve(QUESTION, all_methods(scorer=nonnegative)[name])
    rows = solution.as_dict()["tree"]
    json.dumps(rows, allow_nan=False)
    nodes = list(solution.tree.walk())[1:]
    if name != "got":  # whose joins and leads are given, not drawn
        assert solution.usage.generated_tokens == sum(node.num_tokens for node in nodes)
    after = engine.usage
    for field in ("generated_tokens", "computed_tokens", "probes", "forward_steps"):
        spent = getattr(after, field) - getattr(before, field)
        assert spent == getattr(solution.usage, field), field
    if name not in ("got", "stochastic-beam"):
        # The trees of a forest begin with a copy of the question.
        assert all(node.score is not None for node in nodes if node.num_tokens)
    assert solution.answer is not None and solution.usage.peak_blocks > 0
    assert engine.blocks_in_use == 0


def nonnegative(branches):
    """The model's word, by a probe."""
    rows = yield Score(branches, "z")
    return [math.exp(logprob) for [logprob] in rows]


def test_probes_are_counted(engine):
    usage = engine.solve(QUESTION, Rebase(3, **common(scorer=SelfEvaluation()))).usage
    assert usage.probes == 2 * 3 * usage.generated_tokens / 3
    # Two probes a node, each over the question put to it and the answer.
    assert usage.computed_tokens > usage.probes * len("\nIs this correct so far? ")


def common(**settings):
    return {"params": PARAMS, "max_steps": MAX_STEPS, "extract": whole, **settings}


def test_what_a_search_drops_is_free_at_once(engine):
    """Peak blocks are those of what is alive, not of all that was ever tried."""
    long = SamplingParams(max_tokens=16, ignore_eos=True)
    settings = {"params": long, "step": "no such step", "max_steps": 8, "extract": whole}
    wide = engine.solve(QUESTION, DVTS(2, 4, **settings)).usage
    assert wide.generated_tokens == 8 * 8 * 16
    # Two lines of eight blocks, and four times two last steps that are chosen from.
    assert wide.peak_blocks <= 2 * 9 + 2 * 4 * 2


def test_a_taken_up_node_is_not_computed_again(engine):
    """Depth first: a good root, a bad first child. What it turns back to still has its keys."""

    def by_name(branches):
        return [
            0.1 if len(b.path) > 1 and b.path[0] == 0 else 0.9 - b.path[-1] / 10 for b in branches
        ]

    method = TreeOfThoughts("dfs", 2, threshold=0.5, **common(scorer=by_name))
    solution = engine.solve(QUESTION, method)
    names = [node.name for node in solution.tree.walk()]
    assert names[1:] == ["0", "0.0", "0.1", "1", "1.0", "1.0.0", "1.0.1", "1.1", "1.1.0", "1.1.1"]
    assert solution.paths[0].text == _text(solution, "1.0.0")
    tokens = len(engine.tokenizer.encode(QUESTION)) + solution.usage.generated_tokens
    assert solution.usage.computed_tokens <= tokens


# ---- failures, limits ----


def poison_logits(engine, step: int, rows: slice) -> None:
    """NaN in these rows of the logits from a forward step on, counted from one."""
    model_logits, calls = engine.model.logits, []

    def poisoned(hidden):
        logits = model_logits(hidden)
        calls.append(len(hidden))
        if len(calls) >= step:
            logits[rows] = torch.nan
        return logits

    engine.model.logits = poisoned


@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)], ids=["one", "all"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "stochastic-beam"])
def test_failed_branches_are_reported_and_the_rest_goes_on(name, rows):
    engine = small_engine()
    poison_logits(engine, 2, rows)
    solution = engine.solve(QUESTION, all_methods(scorer=constant)[name])
    assert any("branches failed" in text and "NaN" in text for text in solution.warnings)
    assert engine.blocks_in_use == 0
    json.dumps(solution.as_dict(), allow_nan=False)


def test_a_stochastic_beam_fails_as_a_whole():
    engine = small_engine()
    poison_logits(engine, 2, slice(0, 1))
    with pytest.raises(ValueError, match="NaN"):
        engine.solve(QUESTION, all_methods()["stochastic-beam"])
    assert engine.blocks_in_use == 0


def raising(branches):
    raise RuntimeError("no")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": lambda branches: [math.nan] * len(branches)}, "gave nan"),
        ({"scorer": lambda branches: [1.0] * (len(branches) + 1)}, "scores for"),
        ({"scorer": raising}, "no"),
        ({"extract": raising}, "no"),
    ],
    ids=["nan", "length", "scorer raises", "extractor raises"],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_scorer_or_extractor_fails_its_question_only(engine, name, settings, message):
    if name == "stochastic-beam" and "scorer" in settings:
        pytest.skip("it has no scorer")
    bad = engine.submit(all_methods(**settings)[name].program(QUESTION))
    good = engine.submit(all_methods(scorer=constant)[name].program("other"))
    engine.wait([bad, good])
    assert bad.error is not None and message in str(bad.error)
    assert good.error is None and good.result.answer is not None
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize("name", NAMES)
def test_within_a_budget(engine, name):
    for tokens in (1, 5):
        method = all_methods(scorer=constant)[name]
        solution = engine.solve(QUESTION, method, budget=Budget(tokens=tokens))
        assert solution.usage.generated_tokens == tokens
        assert solution.paths and engine.blocks_in_use == 0


@pytest.mark.parametrize("name", NAMES)
def test_many_questions_equal_each_alone(engine, name):
    method = all_methods(scorer=constant)[name]
    questions = ["one", "two", "three"]
    together = engine.solve_many(questions, method)
    for question, solution in zip(questions, together, strict=True):
        alone = small_engine().solve(question, method)
        assert alone.tree.as_rows() == solution.tree.as_rows()
        assert alone.votes == solution.votes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DVTS(0), "trees must be at least 1"),
        (lambda: DVTS(expand=0), "expand must be at least 1"),
        (lambda: Rebase(0), "width must be at least 1"),
        (lambda: Rebase(temperature=0), "temperature must be positive"),
        (lambda: ETS(cut=-1), "cut must not be negative"),
        (lambda: ETS(exact_below=30), "at most 16"),
        (lambda: TreeOfThoughts("best"), "order must be one of"),  # type: ignore[arg-type]
        (lambda: TreeOfThoughts(solutions=0), "solutions must be at least 1"),
        (lambda: TreeOfThoughts(kv_blocks=0), "kv_blocks must be at least 1"),
        (lambda: MCTS(0), "expansions must be at least 1"),
        (lambda: MCTS(exploration=-1), "exploration must not be negative"),
        (lambda: MCTS(actions=()), "actions must not be empty"),
        (lambda: ABMCTS(batch=0), "batch must be at least 1"),
        (lambda: ParticleFilter(0), "n must be at least 1"),
        (lambda: ParticleFilter(target="first"), "target must be one of"),  # type: ignore[arg-type]
        (lambda: ParticleFilter(threshold=2), r"threshold must be in \[0, 1\]"),
        (lambda: SelfEvalBeam(mix=2), r"mix must be in \[0, 1\]"),
        (lambda: SelfEvalBeam(temperature=-1), "temperature must not be negative"),
        (lambda: SelfEvaluation(yes="x", no="x"), "two texts"),
        (lambda: Forest(trees=0), "n must be at least 1"),
        (lambda: GraphOfThoughts(()), "plan must be"),
        (lambda: Generate(0), "n must be at least 1"),
        (lambda: Aggregate(n=0), "n must be at least 1"),
        (lambda: KeepBest(0), "n must be at least 1"),
        (lambda: Refine(""), "lead must not be empty"),
        (lambda: Rebase(max_steps=0), "max_steps must be at least 1"),
        (lambda: Rebase(step=""), "step must not be empty"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_confidence_outside_its_range_is_refused(engine):
    method = SelfEvalBeam(2, 2, **common(scorer=lambda branches: [2.0] * len(branches)))
    with pytest.raises(ValueError, match=r"confidence in \(0, 1\]"):
        engine.solve(QUESTION, method)
    assert engine.blocks_in_use == 0


# ---- the methods' own ways ----


def test_actions_are_named_and_put_their_lead_in_front(engine):
    actions = (Action("step"), Action("ask", "zz"), Action("whole", whole=True))
    method = MCTS(2, 1, 2, actions=actions, simulate=False, **common(scorer=constant))
    solution = engine.solve(QUESTION, method)
    texts = [node.text for node in solution.tree.children]
    assert [len(text) for text in texts] == [1, 1, 3, 3, MAX_STEPS, MAX_STEPS]
    assert all(text.startswith("zz") for text in texts[2:4])
    assert len({action.name for action in RSTAR_ACTIONS}) == 5


def test_leaves_of_a_batch_differ(engine):
    """Four leaves at once, of a tree whose values are all alike: virtual loss spreads them."""
    method = MCTS(5, 4, 4, simulate=False, **common(scorer=constant))
    solution = engine.solve(QUESTION, method)
    # One expansion of the root, then one of each child, not four of the first.
    assert [len(child.children) for child in solution.tree.children] == [4, 4, 4, 4]
    steps = solution.usage.forward_steps
    one_by_one = engine.solve(QUESTION, replace(method, batch=1)).usage.forward_steps
    assert steps < one_by_one


def test_mcts_goes_where_the_reward_is(engine):
    def likes_a(branches):
        return [float(branch.text.count("a")) for branch in branches]

    settings = {**common(scorer=likes_a), "max_steps": 12}
    method = MCTS(30, 1, 3, exploration=0.1, simulate=False, **settings)
    solution = engine.solve(QUESTION, method)
    mean = {node.name: node.score for node in solution.tree.walk()}
    size = {node.name: len(list(node.walk())) for node in solution.tree.children}
    assert max(size, key=size.get) == max(size, key=mean.get)


def test_ets_drops_what_says_the_same_and_costs_more(engine):
    free = replace(searches(PARAMS, scorer=constant)["ets"], width=6, budget_weight=0.0)
    dear = replace(free, budget_weight=50.0, diversity_weight=0.0)
    held = [engine.solve(QUESTION, m).tree.children for m in (free, dear)]
    going_on = [sum(bool(child.children) for child in children) for children in held]
    assert going_on == [6, 1]


def test_self_evaluation_is_the_share_of_yes(engine):
    branch = engine.prefill(QUESTION)
    [yes] = engine.score(branch, " ok? yes")
    [no] = engine.score(branch, " ok? no")
    p, q = math.exp(math.fsum(yes)), math.exp(math.fsum(no))

    def ask():
        return (yield from SelfEvaluation(" ok? ")([branch]))

    [value] = engine.run_program(ask(), keep=True)
    assert value == pytest.approx(p / (p + q))
    assert branch.tokens == engine.tokenizer.encode(QUESTION)
    engine.prune(branch)


def test_self_eval_beam_without_temperature_keeps_the_best(engine):
    method = SelfEvalBeam(2, 3, mix=1.0, temperature=0.0, **common(scorer=constant))
    solution = engine.solve(QUESTION, method)
    kept = [node.score for node in solution.tree.children if node.children]
    dropped = [node.score for node in solution.tree.children if not node.children]
    assert len(kept) == 2 and min(kept) >= max(dropped)
    for path in solution.paths:  # with λ = 1 the value is the log-probability of the text
        assert path.score == pytest.approx(math.fsum(path.logprobs))


def test_an_aggregate_has_read_all_thoughts(engine):
    plan = (Generate(3), Aggregate(separator=".", lead="="))
    method = GraphOfThoughts(plan, PARAMS, extract=whole)
    solution = engine.solve(QUESTION, method)
    texts = [node.text for node in solution.tree.children[:3]]
    assert solution.paths[0].text[:-1] == ".".join(texts) + ".="
    # Its log-probability is that of a plain prefill of the same text.
    plain = engine.prefill(QUESTION)
    engine.extend(plain, tokens=solution.paths[0].text[:-1])
    [[expected]] = engine.score(plain, solution.paths[0].text[-1])
    assert solution.paths[0].logprobs[-1] == expected
    engine.prune(plain)


def test_a_refinement_that_is_worse_is_dropped(engine):
    plan = (Generate(3), Refine("zz", rounds=2))
    method = GraphOfThoughts(plan, PARAMS, lambda b: [-len(x.text) for x in b], extract=whole)
    assert all(len(path.text) == 1 for path in engine.solve(QUESTION, method).paths)
    longer = replace(method, scorer=lambda b: [len(x.text) for x in b])
    assert all(len(path.text) == 1 + 2 * 3 for path in engine.solve(QUESTION, longer).paths)


def test_a_forest_is_its_trees(engine):
    """Each tree is a search of its own; the answer is the vote of the trees."""
    tree = DVTS(1, 2, **common(scorer=likelihood, extract=lambda text: text[:1]))
    solution = engine.solve(QUESTION, Forest(tree, 5))
    assert len(solution.tree.children) == 5
    assert sum(weight for _, weight in solution.votes) == 5
    answers = [path.answer for path in solution.paths]
    assert Counter(answers).most_common(1)[0][1] == solution.votes[0][1]
    assert (
        len({child.children[0].text + child.children[1].text for child in solution.tree.children})
        > 1
    )


# ---- gather, seeds ----


def test_gather_runs_programs_side_by_side(engine):
    def program(branch, steps):
        for _ in range(steps):
            yield Extend([branch], PARAMS)
        return branch.text

    def both():
        root = yield Prefill(QUESTION)
        kids = yield Fork(root, 2)
        return (yield from gather([program(kids[0], 3), program(kids[1], 7)]))

    before = engine.usage.forward_steps
    texts = engine.run_program(both())
    assert [len(text) for text in texts] == [3, 7]
    assert engine.usage.forward_steps - before <= 1 + 7

    def failing(branch):
        try:
            yield Fork(branch, 0)
        except ValueError:
            return "caught"

    def with_failing():
        root = yield Prefill(QUESTION)
        kids = yield Fork(root, 2)
        return (yield from gather([program(kids[0], 2), failing(kids[1])]))

    assert engine.run_program(with_failing())[1] == "caught"
    assert engine.blocks_in_use == 0


def test_seeds_depend_on_program_and_branch(engine):
    def seeds(question):
        root = yield Prefill(question)
        kids = yield Fork(root, 2)
        return (yield [Seed(root), Seed(kids[0]), Seed(kids[1])])

    first = engine.run_program(seeds("one"), seed=1)
    assert len(set(first)) == 3
    assert engine.run_program(seeds("one"), seed=1) == first
    assert not set(engine.run_program(seeds("one"), seed=2)) & set(first)
    assert not set(engine.run_program(seeds("two"), seed=1)) & set(first)
