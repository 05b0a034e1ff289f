"""Fork-join by control tokens: the parser, the driver against a dense model, and bad tags."""

import dataclasses
import random

import pytest
import torch

from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Budget
from parallel_decode.reasoning import (
    APAR,
    APR,
    METHODS,
    Multiverse,
    ParaThinker,
    Pasta,
    Tags,
    ThreadWeaver,
)
from parallel_decode.reasoning.fork_join import Closed, Item, Items, Malformed, TagParser
from tests.dense_text import Text, moved
from tests.tiny_model import TEXT, tiny_checkpoint, tiny_engine, tiny_tokenizer

CHECKPOINT = tiny_checkpoint()
TOKENIZER = tiny_tokenizer()
NAMES = {"open": "+", "go": "=", "path": ":", "close": ".", "join": "-"}
TOKENS = Tags.named(TOKENIZER, **NAMES)
OUTLINES = Tags.named(TOKENIZER, **NAMES, item="x", after_path=" ")
PROMISES = Tags.named(TOKENIZER, **NAMES, item="x", length="y")
PARAGRAPHS = Tags.named(TOKENIZER, open="+", path=":", close=".")
QUESTIONS = ["hello", "one and two", "3 4"]
# A random model rarely asks for tags, and rarely stops.
PARAMS = SamplingParams(max_tokens=30, ignore_eos=True, temperature=1.5)
PATHS = SamplingParams(max_tokens=9, ignore_eos=True, temperature=1.5)
BASE = {"params": PARAMS, "path_params": PATHS, "max_items": 3, "extract": lambda t: t[:1] or None}
THOUGHTS = TOKENIZER.encode("abc", add_bos=False)

ALL = {
    "multiverse": Multiverse(tags=TOKENS, **BASE),
    "ranges": Multiverse(tags=OUTLINES, positions="disjoint_ranges", **BASE),
    "rotated": Multiverse(tags=TOKENS, positions="query_rotate", n=2, **BASE),
    "nested": Multiverse(tags=TOKENS, max_depth=2, **BASE),
    "pasta": Pasta(tags=PROMISES, **BASE),
    "thread weaver": ThreadWeaver(tags=OUTLINES, n=2, **BASE),
    "apr": APR(tags=OUTLINES, **BASE),
    "apar": APAR(tags=PARAGRAPHS, **{**BASE, "max_depth": 3}),
    "embedded": ParaThinker(
        tags=TOKENS,
        thoughts=THOUGHTS,
        positions="thought_embed",
        embeddings=torch.linspace(-1, 1, 3 * 2 * 16).view(3, 2, 16),
        **BASE,
    ),
    "thinker": ParaThinker(tags=TOKENS, thoughts=THOUGHTS, **BASE),
}


def ids(text: str) -> list[int]:
    return [TEXT.index(c) for c in text]


@pytest.fixture
def engine() -> Engine:
    return tiny_engine(CHECKPOINT, kv_tokens=1 << 14)


def eager(method):
    """The same method of a model that likes to fork and to close."""
    tags = method.tags
    liked = {tag: 2.0 for tag in (tags.open, tags.go, tags.close, tags.item) if tag is not None}
    if tags.length is not None:
        # Short promises: what follows a digit is an end.
        liked |= {tags.length: 6.0, tags.go: 9.0}

    def biased(params: SamplingParams) -> SamplingParams:
        return dataclasses.replace(params, logit_bias=liked)

    return dataclasses.replace(
        method, params=biased(method.params), path_params=biased(method.path_params)
    )


def scripted(script: dict[str, str], **options) -> Engine:
    """A model whose next token follows from the last one; "$" is the end of sequence."""
    base = tiny_checkpoint(hidden_size=64, tie_word_embeddings=False)
    size = base.config.vocab_size
    tensors = {
        name: torch.zeros_like(t) if name.endswith(("o_proj.weight", "down_proj.weight")) else t
        for name, t in base.tensors.items()
    }
    tensors["model.embed_tokens.weight"] = torch.eye(size, 64)
    table = torch.zeros(size, 64)
    for before, after in script.items():
        table[size - 1 if after == "$" else TEXT.index(after), TEXT.index(before)] = 1.0
    tensors["lm_head.weight"] = table
    return tiny_engine(dataclasses.replace(base, tensors=tensors), kv_tokens=1 << 14, **options)


GREEDY = SamplingParams(temperature=0, max_tokens=20)


def written(path) -> str:
    return "".join(TEXT[t] if t < len(TEXT) else "$" for t in path.tokens)


# ---- the parser ----


def events(tags: Tags, text: str, **options) -> list:
    parser = TagParser(tags, **options)
    found = [event for token in ids(text) if (event := parser.feed(token)) is not None]
    last = parser.finish()
    return found if last is None else [*found, last]


def item(text: str, promise: int | None = None) -> Item:
    return Item(tuple(ids(text)), promise)


@pytest.mark.parametrize(
    ("tags", "text", "expected"),
    [
        (TOKENS, "so +ab= on", Items((item("a"), item("b")))),
        (OUTLINES, "+xabxc= on", Items((item("ab"), item("c")))),
        (PROMISES, "+xaby12xcy7=", Items((item("ab", 12), item("c", 7)))),
        (PARAGRAPHS, "so+", Items(())),
    ],
    ids=["tokens", "outlines", "promises", "paragraphs"],
)
def test_a_list_is_read(tags, text, expected):
    assert events(tags, text) == [expected]


@pytest.mark.parametrize(
    ("tags", "text", "why"),
    [
        (TOKENS, "+=", "empty"),
        (TOKENS, "+ab", "no end"),
        (TOKENS, "+a+b", "stands in a list"),
        (TOKENS, "a=b", "stands in a text"),
        (TOKENS, "a.", "stands in a text"),
        (TOKENS, "+abcd=", "more than 3"),
        (OUTLINES, "+xa xb xc xd=", "more than 3"),
        (OUTLINES, "+ax", "between a list and its first item"),
        (OUTLINES, "+xax=", "an item is empty"),
        (PROMISES, "+xa=", "promises nothing"),
        (PROMISES, "+xay0=", "promises 0"),
        (PROMISES, "+xay=", "promises nothing"),
        (PROMISES, "+xay1z=", "stands in a promise"),
        (PROMISES, "+xay" + "9" * 5000 + "=", "promises 999999"),
        (PROMISES, "+xy3=", "stands in a list"),
    ],
)
def test_tags_that_make_no_sense(tags, text, why):
    found = events(tags, text, max_items=3)
    assert isinstance(found[0], Malformed)
    assert why in found[0].why
    # What follows is text again, in which a new list may stand.
    again = {id(TOKENS): "+a=", id(OUTLINES): "+xa=", id(PROMISES): "+xay5="}[id(tags)]
    parser = TagParser(tags, max_items=3)
    for token in ids(text):
        parser.feed(token)
    parser.finish()
    assert next(e for t in ids(again) if (e := parser.feed(t))) == Items(
        (item("a", 5 if tags is PROMISES else None),)
    )


def test_a_path_ends_with_its_tag_and_forks_only_where_it_may():
    assert events(TOKENS, "ab.", in_path=True) == [Closed()]
    [found] = events(TOKENS, "+", may_fork=False)
    assert isinstance(found, Malformed)


@pytest.mark.parametrize("in_path", [False, True])
@pytest.mark.parametrize("tags", [TOKENS, OUTLINES, PROMISES, PARAGRAPHS])
def test_what_the_grammar_lets_through_is_well_formed(tags, in_path):
    """Random walks over what may come next, and over anything: the second must break."""
    rng = random.Random(0)
    broken = {True: 0, False: 0}
    lists = 0
    for enforced in (True, False):
        for _ in range(300):
            parser = TagParser(tags, in_path, max_items=3)
            for _ in range(60):
                only, never = parser.next
                allowed = only if only is not None else set(range(len(TEXT))) - never
                choice = sorted(allowed) if enforced else range(len(TEXT))
                assert choice, "a grammar that lets nothing come"
                event = parser.feed(rng.choice(list(choice)))
                broken[enforced] += isinstance(event, Malformed)
                lists += enforced and isinstance(event, Items)
                if isinstance(event, Closed):
                    break
    assert broken[True] == 0 and broken[False] > 0 and lists > 0


def test_bad_tags():
    with pytest.raises(ValueError, match="no token '<fork>' for the tag 'open'"):
        Tags.named(TOKENIZER, open="<fork>")
    with pytest.raises(ValueError, match="token of its own"):
        Tags(open=1, go=1)
    with pytest.raises(ValueError, match="'item' needs 'go'"):
        Tags(open=1, item=2)
    with pytest.raises(ValueError, match="'length' needs 'digits'"):
        Tags(open=1, go=2, item=3, length=4)


# ---- the driver, against a dense model with an explicit mask and explicit positions ----


def forks_in(tags: Tags, tokens: list[int]) -> tuple[list[int], list[list[int]], list[int]]:
    """(up to a list's end, its paths, from the join on): read by hand, not by the parser."""
    go, join = tokens.index(tags.go), tokens.index(tags.join)
    paths, rest = [], tokens[go + 1 : join]
    for token in rest:
        if token == tags.path:
            paths.append([])
        paths[-1].append(token)
    return tokens[: go + 1], paths, tokens[join:]


@pytest.mark.parametrize(
    "method",
    [
        Multiverse(tags=TOKENS, **BASE),
        Multiverse(tags=OUTLINES, positions="disjoint_ranges", **BASE),
        Multiverse(tags=TOKENS, positions="query_rotate", **BASE),
        Pasta(tags=PROMISES, **BASE),
        ThreadWeaver(tags=TOKENS, **BASE),
    ],
    ids=["same start", "ranges", "rotated", "promised", "text"],
)
def test_what_is_drawn_is_what_a_dense_model_says(engine, method):
    """Log-probabilities of all that is drawn, from a text rebuilt from the tokens alone."""
    method = dataclasses.replace(eager(method), max_forks=1)
    compared = 0
    for seed in range(6):
        solution = engine.solve("hello", method, seed=seed)
        [path] = solution.paths
        if TOKENS.join not in path.tokens:
            continue
        head, threads, tail = forks_in(method.tags, path.tokens)
        positions = "text" if isinstance(method, ThreadWeaver) else method.split().positions
        text = Text()
        prompt = [CHECKPOINT.tokenizer.bos_id, *ids("hello")]
        base = text.append([*prompt, *head], 0, {})
        fork = len(prompt) + len(head)
        view, start, end = dict(base), fork, fork
        for number, thread in enumerate(threads):
            if positions == "text":
                view = text.append(thread, end, view)
                end += len(thread)
                continue
            own = text.append(thread, start, base)
            own = {i: p for i, p in own.items() if i not in base}
            if positions == "query_rotate":
                own = moved(own, end - fork)
                end += len(thread)
            elif positions == "same_start_max_join":
                end = max(end, fork + len(thread))
            else:
                start += lengths_of(method, head)[number]
                end = start
            view |= own
        text.append(tail, end, view)
        logits = torch.log_softmax(text.logits(torch.float64, CHECKPOINT), -1)
        for number, logprob in enumerate(path.logprobs):
            if logprob == logprob:  # drawn, not given
                at = len(prompt) + number
                before = at - 1
                if text.tokens[at] == method.tags.path:
                    continue
                expected = logits[before, text.tokens[at]]
                assert logprob == pytest.approx(float(expected), abs=1e-4)
                compared += number >= len(head)
    assert compared > 30


def lengths_of(method, head: list[int]) -> list[int]:
    """Positions of each path, from the list that stands at the end of `head`."""
    written = "".join(TEXT[t] for t in head[len(head) - 1 - head[::-1].index(TOKENS.open) :])
    items = written[1:-1].split("x")[1:]
    if isinstance(method, Pasta):
        return [int(text.rpartition("y")[2]) for text in items]
    # Its tag, its item and the blank behind it, what it may draw, and the tag that ends it.
    return [max(map(len, items)) + 2 + PATHS.max_tokens + 1] * len(items)


@pytest.mark.parametrize("name", ALL)
def test_questions_in_one_batch_give_what_each_gives_alone(engine, name):
    method = eager(ALL[name])
    together = engine.solve_many(QUESTIONS, method, seed=5)
    assert engine.blocks_in_use == 0
    small = tiny_engine(CHECKPOINT, kv_tokens=1 << 14, max_batch_tokens=16)
    for question, solution in zip(QUESTIONS, together, strict=True):
        alone = small.solve(question, method, seed=5)
        assert [p.tokens for p in alone.paths] == [p.tokens for p in solution.paths]
        assert alone.warnings == solution.warnings
        assert alone.usage.generated_tokens == solution.usage.generated_tokens
    assert small.blocks_in_use == 0


@pytest.mark.parametrize("enforce", [True, False], ids=["enforced", "free"])
@pytest.mark.parametrize("name", ALL)
def test_no_text_leaks_or_raises(engine, name, enforce):
    """Tags at random, a context that is too small, a budget that ends in the middle."""
    method = dataclasses.replace(eager(ALL[name]), enforce=enforce)
    malformed = forked = 0
    for seed in range(8):
        solution = engine.solve("hello", method, seed=seed)
        # A list without an end is one that max_tokens has cut.
        malformed += any("stands" in w or "is empty" in w for w in solution.warnings)
        forked += len(list(solution.tree.walk())) > 2 or isinstance(method, APR)
        assert engine.blocks_in_use == 0
    if enforce:
        assert forked and not malformed
    elif name not in ("thinker", "embedded", "apar"):
        assert malformed
    tight = tiny_engine(CHECKPOINT, kv_tokens=1 << 12, max_seq_len=24)
    for seed in range(8):
        tight.solve("hello", method, seed=seed)
        tight.solve("hello", method, seed=seed, budget=Budget(tokens=11))
        assert tight.blocks_in_use == 0


LIST = {"o": "+", "+": "a", "a": "b", "b": "="}
AFTER = {"-": "d", "d": "$"}


def test_a_scripted_thread_forks_and_goes_on():
    engine = scripted({**LIST, " ": "c", "c": ".", **AFTER})
    tags = dataclasses.replace(TOKENS, after_path=tuple(ids(" ")))
    solution = engine.solve("hello", Multiverse(tags=tags, params=GREEDY, extract=str))
    assert written(solution.paths[0]) == "+ab=:a c.:b c.-d$"
    assert solution.warnings == [] and engine.blocks_in_use == 0


def test_a_path_that_forks_is_joined_with_what_it_has_joined():
    engine = scripted({"o": "+", "+": "a", "a": "=", " ": "+", "-": "."})
    tags = dataclasses.replace(TOKENS, after_path=tuple(ids(" ")))
    method = Multiverse(
        tags=tags,
        params=dataclasses.replace(GREEDY, max_tokens=8),
        path_params=dataclasses.replace(GREEDY, max_tokens=4),
        max_depth=2,
        max_forks=1,
        extract=str,
    )
    for positions in ("same_start_max_join", "query_rotate", "text"):
        solution = engine.solve("hello", dataclasses.replace(method, positions=positions))
        # What may not come there, such as a third fork, gives way to the first of the rest.
        assert written(solution.paths[0]) == "+a=:a +a=:a aaaa.-.-aaaaa"
        assert engine.blocks_in_use == 0


def test_paths_that_do_not_end_are_cut_and_closed():
    engine = scripted({**LIST, " ": "c", "c": "c", **AFTER})
    tags = dataclasses.replace(TOKENS, after_path=tuple(ids(" ")))
    method = Multiverse(
        tags=tags,
        params=GREEDY,
        path_params=dataclasses.replace(GREEDY, max_tokens=4),
        extract=str,
    )
    solution = engine.solve("hello", method)
    assert written(solution.paths[0]) == "+ab=:a cccc.:b cccc.-d$"
    assert "2 of 2 paths were stopped before their end" in solution.warnings


@pytest.mark.parametrize("method", [Multiverse, ThreadWeaver, APR])
def test_an_end_of_sequence_in_a_path_ends_the_path_and_is_not_joined(method):
    engine = scripted({**LIST, " ": "c", "c": "$", **AFTER})
    tags = dataclasses.replace(TOKENS, after_path=tuple(ids(" ")))
    solution = engine.solve("hello", method(tags=tags, params=GREEDY, extract=str))
    body = ":c.:c." if method is APR else ":a c.:b c."
    assert written(solution.paths[0]) == f"+ab={body}-d$"
    assert solution.warnings == []


@pytest.mark.parametrize(
    ("digit", "expected"),
    [
        ("7", "+xay7=:a ccc.-d$"),
        ("5", "+xay5=:a c.-d$"),
        ("4", "+xay4===============$"),
        ("1", "+xay1===============$"),
    ],
)
def test_a_promise_is_a_bound(digit, expected):
    """Of all that stands between the fork and the join; one that leaves no room for a single token
    is no promise, and the text goes on."""
    script = {"o": "+", "+": "x", "x": "a", "a": "y", "y": digit, digit: "=", "=": "="}
    engine = scripted({**script, " ": "c", "c": "c", **AFTER})
    tags = dataclasses.replace(PROMISES, after_path=tuple(ids(" ")))
    solution = engine.solve("hello", Pasta(tags=tags, params=GREEDY, extract=str, enforce=False))
    kept = int(digit) > 4
    assert written(solution.paths[0]) == (expected if kept else "+xay" + digit + "=" * 15)
    assert any("too short" in w for w in solution.warnings) != kept
    assert any("stopped before their end" in w for w in solution.warnings) == kept


def test_malformed_tags_stay_in_the_text():
    engine = scripted({"o": "+", "+": "=", "=": ".", ".": "d", "d": "$"})
    free = Multiverse(tags=TOKENS, params=GREEDY, extract=str, enforce=False)
    solution = engine.solve("hello", free)
    assert written(solution.paths[0]) == "+=.d$"
    assert any("a list is empty" in w for w in solution.warnings)
    assert any("stands in a text" in w for w in solution.warnings)
    # A list that is enforced has an item at least.
    enforced = engine.solve("hello", dataclasses.replace(free, enforce=True, max_items=1))
    assert written(enforced.paths[0])[0::2][:2] == "+="


def test_the_first_that_finishes_ends_all(engine):
    likes_to_close = dataclasses.replace(PATHS, max_tokens=40, logit_bias={TOKENS.close: 2.0})
    method = dataclasses.replace(ALL["thinker"], path_params=likes_to_close)
    patient = dataclasses.replace(method, first_finish=False)
    shorter = 0
    for seed in range(6):
        first, every = (engine.solve("hello", m, seed=seed).tree for m in (method, patient))
        [copy] = first.children
        [copy_of_all] = every.children
        # The last child is the join.
        drawn = [node.num_tokens for node in copy.children[:-1]]
        wanted = [node.num_tokens for node in copy_of_all.children[:-1]]
        assert len(drawn) == len(THOUGHTS)
        assert max(drawn) <= min(wanted) + 1  # the tag that is given to those who are cut
        shorter += sum(drawn) < sum(wanted)
    assert shorter >= 4


def test_a_path_that_fails_is_left_out(engine):
    logits = engine.model.logits
    broken = []

    def poisoned(hidden):
        rows = logits(hidden)
        if len(rows) == 3 and not broken:
            broken.append(1)
            rows[1] = torch.nan
        return rows

    engine.model.logits = poisoned
    method = dataclasses.replace(ALL["thinker"], first_finish=False)
    solution = engine.solve("hello", method)
    assert broken and any("branches failed" in w for w in solution.warnings)
    [path] = solution.paths
    assert path.tokens.count(TOKENS.join) == 1 and path.error is None
    assert path.tokens.count(TOKENS.path) == len(THOUGHTS) - 1
    assert engine.blocks_in_use == 0


def test_a_child_of_apr_knows_its_message_and_nothing_else(engine):
    """What it draws is what the same tokens draw as a question of their own."""
    root = (CHECKPOINT.tokenizer.bos_id,)
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    method = dataclasses.replace(
        eager(ALL["apr"]), root=root, path_params=greedy, max_forks=1, extract=str
    )
    compared = 0
    for seed in range(8):
        [path] = engine.solve("hello", method, seed=seed).paths
        text = written(path)
        if "-" not in text:
            continue
        items = text[text.index("+") + 1 : text.index("=")].split("x")[1:]
        told = text[text.index("=") + 1 : text.index("-")].split(":")[1:]
        assert len(items) == len(told)
        for message, said in zip(items, told, strict=True):
            alone = engine.prefill([*root, *OUTLINES.header(tuple(ids(message)))])
            never = dict.fromkeys(OUTLINES.ids - {OUTLINES.close}, -1e9)
            stop = (OUTLINES.close,)
            params = dataclasses.replace(greedy, logit_bias=never, stop_tokens=stop)
            engine.extend(alone, params)
            drawn = "".join(TEXT[t] if t < len(TEXT) else "$" for t in alone.output_tokens)
            assert said.removesuffix(".") == drawn.removesuffix(".")
            engine.prune(alone)
            compared += 1
    assert compared > 3


def test_apar_reads_details_before_what_follows(engine):
    method = eager(ALL["apar"])
    forked = 0
    for seed in range(6):
        solution = engine.solve("hello", method, seed=seed)
        [path] = solution.paths
        texts = [node.text for node in solution.tree.walk()][1:]
        assert path.text == "".join(texts)
        assert len(path.tokens) == len(path.logprobs)
        forked += len(texts) > 1
        for fork, details in zip(texts, texts[1:], strict=False):
            if fork.endswith("+"):
                assert details.startswith(":")
    assert forked >= 4


def test_settings_are_checked():
    with pytest.raises(ValueError, match="positions must be one of"):
        Multiverse(tags=TOKENS, positions="nowhere")
    with pytest.raises(ValueError, match="go with positions 'thought_embed'"):
        Multiverse(tags=TOKENS, positions="thought_embed")
    with pytest.raises(ValueError, match="needs a tag `join`"):
        Multiverse(tags=dataclasses.replace(TOKENS, join=None))
    with pytest.raises(ValueError, match="needs the tag 'length'"):
        Pasta(tags=TOKENS)
    with pytest.raises(ValueError, match="'go' must be None"):
        APAR(tags=TOKENS)
    with pytest.raises(ValueError, match="max_depth must be at least 0, got -1"):
        Multiverse(tags=TOKENS, max_depth=-1)
    with pytest.raises(ValueError, match="at least one thought"):
        ParaThinker(tags=TOKENS, thoughts=())


def test_they_are_listed():
    assert {APAR, APR, Multiverse, ParaThinker, Pasta, ThreadWeaver} <= set(METHODS)
