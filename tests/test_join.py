"""Joins against a dense model with an explicit mask and explicit positions."""

import random
from collections.abc import Sequence

import pytest
import torch

from parallel_decode.engine import (
    Branch,
    Engine,
    Fork,
    Join,
    PoolExhausted,
    Prefill,
    SamplingParams,
)
from parallel_decode.kernels import BLOCK_SIZE
from tests.dense_text import Text, moved
from tests.tiny_model import TEXT, next_logits, plain_logits, tiny_checkpoint, tiny_engine

CHECKPOINT = tiny_checkpoint()
SAMPLED = SamplingParams(max_tokens=6, ignore_eos=True)


def token_ids(n: int, seed: int = 0) -> list[int]:
    return random.Random(f"{n}/{seed}").choices(range(len(TEXT)), k=n)


@pytest.fixture
def engine() -> Engine:
    return tiny_engine(CHECKPOINT)


def tail_logits(engine: Engine, branch: Branch, tail: Sequence[int]) -> list[torch.Tensor]:
    """Logits after each token of `tail`, appended one at a time."""
    rows = []
    for token in tail:
        engine.extend(branch, tokens=[token])
        rows.append(next_logits(engine, branch))
    return rows


def test_the_dense_model_agrees_on_a_plain_text(engine):
    tokens = token_ids(40)
    text = Text()
    text.append(tokens, 0, {})
    root = engine.prefill(tokens[:1])
    rows = tail_logits(engine, root, tokens[1:])
    text.check(dict(enumerate(rows, 1)), CHECKPOINT)


SHAPES = [
    (20, (5, 9, 1)),
    (BLOCK_SIZE, (BLOCK_SIZE, BLOCK_SIZE - 1, BLOCK_SIZE + 1)),
    (31, (40, 3)),
    (1, (1, 1)),
    (17, (0, 6, 0)),
    (33, (12,)),
]
TAIL = token_ids(20, seed=99)


@pytest.mark.parametrize(("prompt", "lengths"), SHAPES, ids=str)
def test_kv_union_with_a_common_start(engine, prompt, lengths):
    root = engine.prefill(token_ids(prompt))
    kids = engine.fork(root, len(lengths))
    text = Text()
    base = text.append(root.tokens, 0, {})
    union = dict(base)
    for kid, length in zip(kids, lengths, strict=True):
        if length:
            engine.extend(kid, tokens=token_ids(length, seed=length))
        union |= text.append(kid.own_tokens, prompt, base)
    blocks = engine.blocks_in_use
    joined = engine.join(root, kids, "kv_union")
    assert engine.blocks_in_use == blocks
    assert joined.tokens == [*root.tokens, *(t for kid in kids for t in kid.own_tokens)]
    text.append(TAIL, prompt + max(lengths), union)
    rows = tail_logits(engine, joined, TAIL)
    text.check({len(text.tokens) - len(TAIL) + i: row for i, row in enumerate(rows)}, CHECKPOINT)


@pytest.mark.parametrize("policy", ["promised", "disjoint_ranges"])
@pytest.mark.parametrize("prompt", [16, 21])
def test_kv_union_of_ranges(engine, prompt, policy):
    """Child i writes at positions of its own; the join goes on behind the last range."""
    ranges = [12, 30, 7] if policy == "promised" else [20]
    root = engine.prefill(token_ids(prompt))
    kids = engine.fork(root, 3, positions=policy, lengths=ranges)
    text = Text()
    base = text.append(root.tokens, 0, {})
    union, start = dict(base), prompt
    rows = {}
    for kid, used, length in zip(kids, (12, 17, 1), ranges * (3 // len(ranges)), strict=True):
        kid_rows = tail_logits(engine, kid, token_ids(used, seed=used))
        first = len(text.tokens)
        union |= text.append(kid.own_tokens, start, base)
        rows |= {first + i: row for i, row in enumerate(kid_rows)}
        start += length
    blocks = engine.blocks_in_use
    joined = engine.join(root, kids, "kv_union", policy)
    assert engine.blocks_in_use == blocks
    first = len(text.tokens)
    text.append(TAIL, start, union)
    rows |= {first + i: row for i, row in enumerate(tail_logits(engine, joined, TAIL))}
    text.check(rows, CHECKPOINT)


@pytest.mark.parametrize("mode", ["kv_union", "kv_concat"])
@pytest.mark.parametrize("window", [5, 20, 37])
def test_a_sliding_window_goes_by_the_positions_at_which_keys_are_read(mode, window):
    checkpoint = tiny_checkpoint(model_type="mistral", sliding_window=window)
    engine = tiny_engine(checkpoint)
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 3)
    text = Text()
    base = text.append(root.tokens, 0, {})
    view, cursor, rows = dict(base), 20, {}
    for kid, length in zip(kids, (9, 18, 2), strict=True):
        first = len(text.tokens)
        kid_rows = tail_logits(engine, kid, token_ids(length, seed=length))
        rows |= {first + i: row for i, row in enumerate(kid_rows)}
        own = text.append(kid.own_tokens, 20, base)
        own = {index: place for index, place in own.items() if index not in base}
        view |= moved(own, cursor - 20 if mode == "kv_concat" else 0)
        cursor += length
    joined = engine.join(root, kids, mode)
    first = len(text.tokens)
    text.append(TAIL, cursor if mode == "kv_concat" else 38, view)
    rows |= {first + i: row for i, row in enumerate(tail_logits(engine, joined, TAIL))}
    text.check(rows, checkpoint)


def test_a_union_of_more_tokens_than_the_context_has_positions():
    engine = tiny_engine(CHECKPOINT, max_seq_len=80)
    root = engine.prefill(token_ids(10))
    kids = engine.fork(root, 5)
    text = Text()
    base = text.append(root.tokens, 0, {})
    union = dict(base)
    for i, kid in enumerate(kids):
        engine.extend(kid, tokens=token_ids(40, seed=i))
        union |= text.append(kid.own_tokens, 10, base)
    joined = engine.join(root, kids, "kv_union")
    assert joined.num_tokens == 210
    first = len(text.tokens)
    text.append(TAIL, 50, union)
    rows = tail_logits(engine, joined, TAIL)
    text.check({first + i: row for i, row in enumerate(rows)}, CHECKPOINT)
    engine.extend(joined, SamplingParams(max_tokens=50, ignore_eos=True))
    assert (joined.num_sampled, joined.finish_reason) == (10, "length")
    with pytest.raises(ValueError, match="context of 80"):
        engine.extend(engine.join(root, kids, "kv_concat"), tokens=[1])


def test_kv_union_of_some_of_the_ranges_goes_on_behind_the_last_joined(engine):
    root = engine.prefill(token_ids(10))
    kids = engine.fork(root, 3, positions="promised", lengths=[5, 6, 7])
    for kid in kids:
        engine.extend(kid, tokens=[1, 2])
    joined = engine.join(root, kids[:2], "kv_union", "promised")
    assert joined.position == 10 + 5 + 6


@pytest.mark.parametrize(("prompt", "lengths"), SHAPES, ids=str)
def test_kv_concat_turns_the_query(engine, prompt, lengths):
    root = engine.prefill(token_ids(prompt))
    kids = engine.fork(root, len(lengths))
    text = Text()
    base = text.append(root.tokens, 0, {})
    view, cursor = dict(base), prompt
    for kid, length in zip(kids, lengths, strict=True):
        if length:
            engine.extend(kid, tokens=token_ids(length, seed=length))
        own = text.append(kid.own_tokens, prompt, base)
        own = {index: place for index, place in own.items() if index not in base}
        view |= moved(own, cursor - prompt)
        cursor += length
    blocks = engine.blocks_in_use
    joined = engine.join(root, kids, "kv_concat")
    assert engine.blocks_in_use == blocks
    first = len(text.tokens)
    text.append(TAIL, cursor, view)
    rows = tail_logits(engine, joined, TAIL)
    text.check({first + i: row for i, row in enumerate(rows)}, CHECKPOINT)


@pytest.mark.parametrize(("prompt", "lengths"), SHAPES, ids=str)
def test_thought_embeddings_are_added_in_copies(engine, prompt, lengths):
    config = CHECKPOINT.config
    embeddings = torch.randn(len(lengths), config.num_kv_heads, config.head_dim)
    root = engine.prefill(token_ids(prompt))
    kids = engine.fork(root, len(lengths))
    text = Text()
    base = text.append(root.tokens, 0, {})
    union = dict(base)
    for kid, length, embedding in zip(kids, lengths, embeddings, strict=True):
        if length:
            engine.extend(kid, tokens=token_ids(length, seed=length))
        own = text.append(kid.own_tokens, prompt, base)
        union |= {i: (place, embedding) for i, (place, _) in own.items() if i not in base}
    before = [next_logits(engine, branch) for branch in (root, *kids)]
    blocks = engine.blocks_in_use
    joined = engine.join(root, kids, "kv_union", "thought_embed", embeddings=embeddings)
    own_entries = sum(len(kid.table.entries()) - prompt // BLOCK_SIZE for kid in kids)
    assert engine.blocks_in_use <= blocks + own_entries
    first = len(text.tokens)
    text.append(TAIL, prompt + max(lengths), union)
    rows = tail_logits(engine, joined, TAIL)
    text.check({first + i: row for i, row in enumerate(rows)}, CHECKPOINT)
    for branch, logits in zip((root, *kids), before, strict=True):
        assert torch.equal(next_logits(engine, branch), logits)


def test_embeddings_on_keys_that_are_read_elsewhere(engine):
    """A branch that holds a kv_concat of its own: its keys are added to where they were stored."""
    config = CHECKPOINT.config
    embedding = torch.randn(1, config.num_kv_heads, config.head_dim)
    root = engine.prefill(token_ids(18))
    [outer] = engine.fork(root)
    engine.extend(outer, tokens=token_ids(3, seed=1))
    inner = engine.fork(outer, 2)
    engine.extend(inner[0], tokens=token_ids(4, seed=2))
    engine.extend(inner[1], tokens=token_ids(6, seed=3))
    inner_joined = engine.join(outer, inner, "kv_concat")
    joined = engine.join(root, [inner_joined], "kv_union", "thought_embed", embeddings=embedding)
    text = Text()
    base = text.append(root.tokens, 0, {})
    view = text.append(outer.own_tokens, 18, base)
    first = text.append(inner[0].own_tokens, 21, view)
    second = text.append(inner[1].own_tokens, 21, view)
    second = {i: (p, None) for i, (p, _) in second.items() if i not in view}
    own = first | moved(second, 4)
    own = {i: (p, embedding[0]) for i, (p, _) in own.items() if i not in base}
    begin = len(text.tokens)
    text.append(TAIL, 18 + 3 + 4 + 6, base | own)
    text.check(
        {begin + i: row for i, row in enumerate(tail_logits(engine, joined, TAIL))}, CHECKPOINT
    )


# ---- nested ----


def test_a_union_inside_a_branch_of_a_union(engine):
    root = engine.prefill(token_ids(19))
    left, right = engine.fork(root, 2)
    engine.extend(left, tokens=token_ids(5, seed=1))
    engine.extend(right, tokens=token_ids(11, seed=2))
    inner = engine.fork(left, 2)
    engine.extend(inner[0], tokens=token_ids(2, seed=3))
    engine.extend(inner[1], tokens=token_ids(9, seed=4))
    left_joined = engine.join(left, inner, "kv_union")
    engine.extend(left_joined, tokens=token_ids(3, seed=5))
    blocks = engine.blocks_in_use
    joined = engine.join(root, [left_joined, right], "kv_union")
    assert engine.blocks_in_use == blocks

    text = Text()
    base = text.append(root.tokens, 0, {})
    left_view = text.append(left.own_tokens, 19, base)
    right_view = text.append(right.own_tokens, 19, base)
    union = text.append(inner[0].own_tokens, 24, left_view)
    union |= text.append(inner[1].own_tokens, 24, left_view)
    union = text.append(token_ids(3, seed=5), 24 + 9, union)
    first = len(text.tokens)
    text.append(TAIL, 24 + 9 + 3, union | right_view)
    text.check(
        {first + i: row for i, row in enumerate(tail_logits(engine, joined, TAIL))}, CHECKPOINT
    )


def test_a_concatenation_of_concatenations(engine):
    root = engine.prefill(token_ids(19))
    left, right = engine.fork(root, 2)
    engine.extend(left, tokens=token_ids(5, seed=1))
    engine.extend(right, tokens=token_ids(11, seed=2))
    inner = engine.fork(right, 2)
    engine.extend(inner[0], tokens=token_ids(2, seed=3))
    engine.extend(inner[1], tokens=token_ids(9, seed=4))
    right_joined = engine.join(right, inner, "kv_concat")
    engine.extend(right_joined, tokens=token_ids(3, seed=5))
    joined = engine.join(root, [left, right_joined], "kv_concat")

    text = Text()
    base = text.append(root.tokens, 0, {})
    left_view = text.append(left.own_tokens, 19, base)
    right_view = text.append(right.own_tokens, 19, base)
    view = text.append(inner[0].own_tokens, 30, right_view)
    second = text.append(inner[1].own_tokens, 30, right_view)
    view |= moved({i: p for i, p in second.items() if i not in right_view}, 2)
    view = text.append(token_ids(3, seed=5), 30 + 11, view)
    own = {i: p for i, p in view.items() if i not in base}
    first = len(text.tokens)
    text.append(TAIL, 19 + 5 + 25, left_view | moved(own, 5))
    text.check(
        {first + i: row for i, row in enumerate(tail_logits(engine, joined, TAIL))}, CHECKPOINT
    )


def test_forks_of_a_join_and_their_join(engine):
    root = engine.prefill(token_ids(13))
    kids = engine.fork(root, 2)
    engine.extend(kids[0], tokens=token_ids(20, seed=1))
    engine.extend(kids[1], tokens=token_ids(4, seed=2))
    joined = engine.join(root, kids, "kv_union")
    engine.extend(joined, tokens=token_ids(5, seed=3))
    again = engine.fork(joined, 2)
    engine.extend(again[0], tokens=token_ids(6, seed=4))
    engine.extend(again[1], tokens=token_ids(7, seed=5))
    last = engine.join(joined, again, "kv_union")

    text = Text()
    base = text.append(root.tokens, 0, {})
    view = text.append(kids[0].own_tokens, 13, base)
    view |= text.append(kids[1].own_tokens, 13, base)
    view = text.append(token_ids(5, seed=3), 33, view)
    union = text.append(again[0].own_tokens, 38, view)
    union |= text.append(again[1].own_tokens, 38, view)
    first = len(text.tokens)
    text.append(TAIL, 38 + 7, union)
    text.check(
        {first + i: row for i, row in enumerate(tail_logits(engine, last, TAIL))}, CHECKPOINT
    )


def test_a_branch_that_has_children_is_joined_as_it_is(engine):
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 2)
    engine.extend(kids, SAMPLED)
    grandchildren = engine.fork(kids[0], 3)
    engine.extend(grandchildren, SAMPLED)
    joined = engine.join(root, kids, "kv_union")
    assert joined.own_tokens == [*kids[0].own_tokens, *kids[1].own_tokens]
    through = engine.join(root, [grandchildren[1], kids[1]], "kv_union")
    assert through.own_tokens == [
        *kids[0].own_tokens,
        *grandchildren[1].own_tokens,
        *kids[1].own_tokens,
    ]
    text = Text()
    base = text.append(root.tokens, 0, {})
    union = text.append([*kids[0].own_tokens, *grandchildren[1].own_tokens], 20, base)
    union |= text.append(kids[1].own_tokens, 20, base)
    first = len(text.tokens)
    text.append(TAIL, 32, union)
    text.check(
        {first + i: row for i, row in enumerate(tail_logits(engine, through, TAIL))}, CHECKPOINT
    )


@pytest.mark.parametrize("mode", ["kv_union", "kv_concat", "text"])
def test_pending_tokens_are_computed_first(engine, mode):
    """After sampling, each branch's last token is pending; the parent's may be, too."""
    roots = []
    for settle in (True, False):
        root = engine.prefill(token_ids(20))
        engine.broadcast(root, [1, 2, 3])
        kids = engine.fork(root, 2)
        engine.extend(kids, SAMPLED)
        assert all(kid.num_pending == 1 for kid in kids)
        if settle:
            for kid in kids:
                next_logits(engine, kid)
        joined = engine.join(root, kids, mode)
        roots.append((joined, tail_logits(engine, joined, [4, 5])))
    assert roots[0][0].tokens == roots[1][0].tokens
    for a, b in zip(roots[0][1], roots[1][1], strict=True):
        assert torch.equal(a, b)


def test_a_join_survives_the_end_of_its_branches(engine):
    """Blocks of pruned branches stay as long as the join sees them, and not longer."""
    outputs = []
    for prune in (False, True):
        root = engine.prefill(token_ids(20))
        kids = engine.fork(root, 3)
        for i, kid in enumerate(kids):
            engine.extend(kid, tokens=token_ids(5 + 10 * i, seed=i))
        joined = engine.join(root, kids, "kv_union")
        if prune:
            engine.prune([*kids, root])
            # The pool is handed to others, who write wherever they are allowed to.
            others = engine.fork(engine.prefill(token_ids(50, seed=8)), 3)
            engine.extend(others, SamplingParams(max_tokens=40, ignore_eos=True))
        engine.extend(joined, tokens=TAIL)
        outputs.append(next_logits(engine, joined))
        if prune:
            engine.prune([joined, others[0].parent, *others])
        else:
            engine.prune([joined, *kids, root])
    assert torch.equal(*outputs)
    assert engine.blocks_in_use == 0


def test_rollback_and_fork_at_the_end_of_a_join(engine):
    """The longest branch is not the last one: the join's position is no key's neighbour."""
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 2)
    engine.extend(kids[0], tokens=token_ids(30, seed=1))
    engine.extend(kids[1], tokens=token_ids(3, seed=2))
    joined = engine.join(root, kids, "kv_union")
    end = joined.num_tokens
    engine.extend(joined, tokens=TAIL)
    expected = next_logits(engine, joined)
    [fork] = engine.fork(joined, at=end)
    engine.extend(fork, tokens=TAIL)
    assert torch.equal(next_logits(engine, fork), expected)
    engine.rollback(joined, end + 2)
    engine.rollback(joined, end)
    assert joined.position == 50
    engine.extend(joined, tokens=TAIL)
    assert torch.equal(next_logits(engine, joined), expected)
    with pytest.raises(ValueError, match="inside a join"):
        engine.rollback(joined, end - 1)
    with pytest.raises(ValueError, match="inside a join"):
        engine.fork(joined, at=end - 1)


# ---- text and answer ----


@pytest.mark.parametrize("prompt", [1, 16, 21])
def test_text_equals_a_plain_prefill(engine, prompt):
    root = engine.prefill(token_ids(prompt))
    kids = engine.fork(root, 3)
    for i, kid in enumerate(kids):
        engine.extend(kid, tokens=token_ids(4 + 9 * i, seed=i))
    separator = engine.tokenizer.encode("\n", add_bos=False)
    joined = engine.join(root, kids, "text", separator="\n")
    expected = list(root.tokens)
    for kid in kids:
        expected += [*kid.own_tokens, *separator]
    assert joined.tokens == expected
    assert torch.equal(next_logits(engine, joined), plain_logits(expected))
    engine.extend(joined, SAMPLED)  # plain text has a last token: it can be sampled from
    assert joined.num_sampled == 6


def test_text_of_ranges_and_of_joins_is_plain_text(engine):
    root = engine.prefill(token_ids(10))
    kids = engine.fork(root, 2, positions="promised", lengths=[20, 20])
    for i, kid in enumerate(kids):
        engine.extend(kid, tokens=token_ids(6, seed=i))
    union = engine.join(root, kids, "kv_union", "promised")
    joined = engine.join(root, [kids[1], union], "text")
    expected = [*root.tokens, *kids[1].own_tokens, *kids[0].own_tokens, *kids[1].own_tokens]
    assert joined.tokens == expected
    assert torch.equal(next_logits(engine, joined), plain_logits(expected))


def test_answer_takes_what_extract_gives(engine):
    root = engine.prefill("sum 1 2=")
    kids = engine.fork(root, 2)
    engine.extend(kids[0], tokens="so it is 3")
    engine.extend(kids[1], tokens="no: 4")
    joined = engine.join(
        root, kids, "answer", separator=":", extract=lambda branch: branch.own_text[-1]
    )
    assert joined.text == "3:4:"
    assert torch.equal(next_logits(engine, joined), plain_logits(joined.tokens))
    ids = engine.join(root, kids, "answer", extract=lambda branch: branch.own_tokens[-1:])
    assert ids.text == "34"


def test_text_on_a_joined_parent_reads_its_views(engine):
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 2)
    engine.extend(kids, SAMPLED)
    union = engine.join(root, kids, "kv_union")
    grand = engine.fork(union, 2)
    for i, kid in enumerate(grand):
        engine.extend(kid, tokens=token_ids(4, seed=i))
    joined = engine.join(union, grand, "text")
    [fork] = engine.fork(union)
    engine.extend(fork, tokens=[*grand[0].own_tokens, *grand[1].own_tokens])
    assert torch.equal(next_logits(engine, joined), next_logits(engine, fork))


# ---- what can't be joined ----


def test_joins_that_can_not_be(engine):
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 2)
    early = engine.fork(root, at=10)[0]
    ranged = engine.fork(root, 2, positions="promised", lengths=[4, 4])
    engine.extend([*kids, early, *ranged], tokens=[1, 2, 3])
    other = engine.prefill(token_ids(20, seed=1))
    same_text = engine.fork(engine.prefill(token_ids(20)))[0]
    blocks, children = engine.blocks_in_use, len(root.children)
    cases = {
        "unknown join mode 'x'": (kids, "x", None, {}),
        "join 'kv_union' has positions": (kids, "kv_union", "query_rotate", {}),
        "join 'kv_concat' has positions": (kids, "kv_concat", "promised", {}),
        "was not forked with positions='promised'": (kids, "kv_union", "promised", {}),
        "not a fork of": ([early], "kv_union", None, {}),
        "root: 20 tokens, live> is not a fork": ([root], "kv_union", None, {}),
        "root: 20 tokens, live> is not": ([other], "text", None, {}),
        "0: 20 tokens, live> is not a fork": ([same_text], "kv_union", None, {}),
        "at least one branch": ([], "kv_union", None, {}),
        "named twice": ([kids[0], kids[0]], "kv_union", None, {}),
        "needs extract": (kids, "answer", None, {}),
        "has no tokens to add": (kids, "answer", None, {"extract": lambda branch: ""}),
        "embeddings of shape \\(2, 2, 16\\), got None": (kids, "kv_union", "thought_embed", {}),
        "got \\(3, 2, 16\\)": (
            kids,
            "kv_union",
            "thought_embed",
            {"embeddings": torch.zeros(3, 2, 16)},
        ),
    }
    for message, (branches, mode, positions, options) in cases.items():
        with pytest.raises(ValueError, match=message):
            engine.join(root, branches, mode, positions, **options)
    assert (engine.blocks_in_use, len(root.children)) == (blocks, children)
    engine.extend(ranged, tokens=[4, 5])
    with pytest.raises(ValueError, match="ends at position 25, its promise ended at 24"):
        engine.join(root, ranged, "kv_union", "promised")
    engine.rollback(ranged[0], 24)
    engine.rollback(ranged[1], 24)
    engine.join(root, ranged, "kv_union", "promised")


def test_pending_tokens_count_for_a_promise(engine):
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 2, positions="promised", lengths=[4, 4])
    engine.extend(kids, SamplingParams(max_tokens=5, ignore_eos=True))
    assert kids[0].num_pending == 1
    with pytest.raises(ValueError, match="its promise ended at 24"):
        engine.join(root, kids, "kv_union", "promised")


def test_nothing_can_follow_a_join_of_keys_but_tokens(engine):
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 2)
    engine.extend(kids, SAMPLED)
    joined = engine.join(root, kids, "kv_union")
    [fork] = engine.fork(joined)
    for branch in (joined, fork):
        for attempt in (
            lambda branch=branch: engine.extend(branch, SAMPLED),
            lambda branch=branch: engine.score(branch, [1, 2]),
            lambda branch=branch: engine.score(branch, head=lambda hidden: hidden),
        ):
            with pytest.raises(ValueError, match="was joined"):
                attempt()
        assert branch.num_tokens == 32
    engine.extend(joined, SAMPLED, tokens=[1])
    assert joined.num_sampled == 12 + 6
    assert len(engine.score(joined, [1, 2])[0]) == 2
    engine.rollback(joined, 32)
    with pytest.raises(ValueError, match="was joined"):
        engine.extend(joined, SAMPLED)


def test_records_of_a_join_are_those_of_its_branches(engine):
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 2)
    engine.extend(kids, SAMPLED)
    joined = engine.join(root, kids, "kv_union")
    assert joined.records == [*kids[0].records, *kids[1].records]
    assert joined.num_sampled == 12
    assert joined.fork_length == 20
    early = engine.fork(engine.prefill(token_ids(30)), at=25)[0]
    kids = engine.fork(early, 2)
    engine.extend(kids, SAMPLED)
    assert engine.join(early, kids, "kv_concat").records == [*kids[0].records, *kids[1].records]


def test_embeddings_that_do_not_fit_the_pool_leave_no_trace():
    engine = tiny_engine(CHECKPOINT, kv_tokens=16 * 7)
    root = engine.prefill(token_ids(20))
    kids = engine.fork(root, 2)
    engine.extend(kids, tokens=token_ids(25, seed=1))
    blocks, children = engine.blocks_in_use, len(root.children)
    assert blocks == 6
    embeddings = torch.zeros(2, 2, 16)
    with pytest.raises(PoolExhausted):
        engine.join(root, kids, "kv_union", "thought_embed", embeddings=embeddings)
    assert (engine.blocks_in_use, len(root.children)) == (blocks, children)
    engine.prune(kids[1])
    engine.clear_prefixes()
    engine.join(root, kids[:1], "kv_union", "thought_embed", embeddings=embeddings[:1])


def test_a_join_whose_branch_is_pruned_meanwhile_fails(engine):
    def program():
        root = yield Prefill(token_ids(20))
        kids = yield Fork(root, 2)
        engine.broadcast(kids, [1, 2, 3])
        join = Join(root, kids, "kv_union")
        observed = engine.observe(lambda stats: engine.prune(kids[1]))
        try:
            yield join
        finally:
            observed()

    with pytest.raises(ValueError, match="ended before it could be joined"):
        engine.run_program(program())
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize("mode", ["kv_union", "kv_concat"])
def test_a_joined_branch_decodes_the_same_in_any_batch(mode):
    outputs = []
    for crowd in (0, 5):
        engine = tiny_engine(CHECKPOINT, max_batch_tokens=64 if crowd else 3)
        root = engine.prefill(token_ids(20))
        kids = engine.fork(root, 3)
        for i, kid in enumerate(kids):
            engine.extend(kid, tokens=token_ids(9 * i + 1, seed=i))
        joined = engine.join(root, kids, mode)
        engine.extend(joined, tokens=[7])
        others = [*engine.fork(joined, 2), *engine.fork(kids[0], crowd)] if crowd else []
        engine.extend([joined, *others], SamplingParams(max_tokens=30, ignore_eos=True))
        outputs.append((joined.tokens, joined.records, next_logits(engine, joined)))
    assert outputs[0][:2] == outputs[1][:2]
    assert torch.equal(outputs[0][2], outputs[1][2])
