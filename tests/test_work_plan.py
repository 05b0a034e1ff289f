"""The work items of a launch: every row meets each of its keys once, and items are about equal."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel_decode.kernels import BLOCK_SIZE
from parallel_decode.kernels.device_plan import DevicePlan
from parallel_decode.kernels.launch import H100, AttentionShape, Card
from tests.forest import Forest, tree_masks

SHAPE = AttentionShape(num_heads=4, num_kv_heads=2, head_dim=16, item_bytes=2)
CPU = torch.device("cpu")
# A card on which nothing pays, and one on which everything does.
TINY = Card("tiny", 3, 1.0, 1.0, 1e-3, 64 << 10, start_us=1e-3)


def made(plan, shape=SHAPE, card=H100, joined_pages=1 << 16) -> DevicePlan:
    device_plan = DevicePlan(shape, card, CPU, joined_pages)
    device_plan.make(plan)
    return device_plan


def assert_rows_meet_their_keys(device_plan: DevicePlan, plan, window: int | None = None) -> None:
    """By the masks of the kernel, item after item."""
    tables = [t for t, r in zip(plan.tables, plan.rows, strict=True) for _ in range(r)]
    firsts = np.repeat(np.cumsum(plan.rows) - plan.rows, plan.rows)
    wanted: list[set[tuple[int, int]]] = []
    for row, table in enumerate(tables):
        keys = [
            (block, lane, position + lane - start)
            for block, start, stop, _, position in table.entries().tolist()
            for lane in range(start, stop)
        ]
        of_sequence = int(plan.rows[np.searchsorted(np.cumsum(plan.rows), row, side="right")])
        place = row - int(firsts[row])
        mask = 0 if plan.draft_masks is None else int(plan.draft_masks[row])
        before = len(keys) - of_sequence
        if mask:
            seen = [k for i, k in enumerate(keys) if i < before or mask >> (i - before) & 1]
        else:
            seen = keys[: before + place + 1]
        if window is not None:
            seen = [k for k in seen if plan.positions[row] - k[2] < window]
        wanted.append({k[:2] for k in seen})
        assert len(wanted[-1]) == len(seen)
    met: list[list[tuple[int, int]]] = [[] for _ in tables]
    partials: list[list[int]] = [[] for _ in tables]
    for item in device_plan.tensors.items[: device_plan.numbers.num_items * 8].view(-1, 8).tolist():
        row_begin, num_rows, page_begin, full_end, page_end, partial_begin, _, wide = item
        assert num_rows > 0 and page_begin <= full_end <= page_end and page_begin < page_end
        tile_rows = device_plan.launch.tiles.block_m[wide] // device_plan.shape.group
        assert num_rows <= tile_rows
        for row in range(row_begin, row_begin + num_rows):
            partials[row].append(partial_begin + row - row_begin if partial_begin >= 0 else -1)
            visible = int(device_plan.tensors.num_visible[row])
            for page in range(page_begin, page_end):
                span = int(device_plan.tensors.pages[2, page])
                block = int(device_plan.tensors.pages[0, page])
                mine = range(*device_plan.tensors.pages[4:6, page].tolist())
                if page < full_end:
                    assert span == BLOCK_SIZE << 8 and row in mine
                for lane in range(BLOCK_SIZE):
                    key = int(device_plan.tensors.pages[1, page]) + lane
                    seen = page < full_end or (
                        (span & 255) <= lane < span >> 8 and key < visible and row in mine
                    )
                    if seen and page >= full_end and device_plan.numbers.has_drafts:
                        bit = key - int(device_plan.tensors.draft_begin[row])
                        seen = bit < 0 or bool(int(device_plan.tensors.draft_mask[row]) >> bit & 1)
                    if window is not None:
                        at = int(device_plan.tensors.pages[3, page]) + lane
                        seen = seen and int(device_plan.tensors.positions[row]) - at < window
                    if seen:
                        met[row].append((block, lane))
    all_partials: list[int] = []
    for row in range(len(tables)):
        assert len(met[row]) == len(set(met[row])), "a key is met twice"
        assert set(met[row]) == wanted[row]
        begin, end = device_plan.tensors.merge_indptr[row : row + 2].tolist()
        runs = device_plan.tensors.merge_runs.view(-1, 3)[begin:end].tolist()
        merged = [first + i * stride for first, stride, count in runs for i in range(count)]
        if begin == end:
            assert partials[row] == [-1]
        else:
            assert sorted(merged) == sorted(partials[row])
            all_partials += merged
    assert sorted(all_partials) == list(range(len(all_partials))), "partial results have gaps"


@st.composite
def forests(draw):
    """(forest, tables, rows): trees of random forks, several roots, uneven ends."""
    # 192 leaves at most, under 63 inner tables: 2,700 blocks, with 120 more tokens in each leaf.
    forest = Forest(2, 16, num_blocks=2700)
    tables = []
    for _ in range(draw(st.integers(1, 3))):
        level = [forest.root(draw(st.integers(1, 100)))]
        for _ in range(draw(st.integers(0, 3))):
            below = []
            for parent in level:
                kids = [parent.fork() for _ in range(draw(st.integers(1, 4)))]
                below += [forest.grow(kid, draw(st.integers(1, 40))) for kid in kids]
            level = below
        tables += level
    rows = [draw(st.integers(1, min(t.num_tokens, 40))) for t in tables]
    if draw(st.booleans()):
        rows = [1] * len(tables)
    return forest, tables, rows


@given(
    forests(),
    st.sampled_from([H100, TINY]),
    st.sampled_from([0, 8, 1 << 16]),
    st.sampled_from([1, 2, 7]),
)
def test_every_row_meets_its_keys_once(made_forest, card, joined_pages, group):
    forest, tables, rows = made_forest
    shape = AttentionShape(2 * group, 2, 16, 2)
    plan = forest.plan(tables, rows)
    assert_rows_meet_their_keys(made(plan, shape, card, joined_pages), plan)


@given(
    forests(),
    st.integers(1, 90),
)
def test_pages_before_a_window_are_left_out(made_forest, window):
    forest, tables, rows = made_forest
    plan = forest.plan(tables, rows)
    device_plan = made(plan, AttentionShape(4, 2, 16, 2, window))
    assert_rows_meet_their_keys(device_plan, plan, window)
    pages = device_plan.tensors.pages
    for item in device_plan.tensors.items[: device_plan.numbers.num_items * 8].view(-1, 8).tolist():
        for page in range(item[2], item[4]):
            last = int(pages[3, page]) + (int(pages[2, page]) >> 8) - 1
            of_page = range(
                max(item[0], int(pages[4, page])), min(sum(item[:2]), int(pages[5, page]))
            )
            assert any(int(plan.positions[row]) - last < window for row in of_page)


@given(forests(), st.data())
def test_draft_rows_meet_their_own_path(made_forest, data):
    forest, tables, _ = made_forest
    rows = [data.draw(st.integers(1, min(t.num_tokens, 64))) for t in tables]
    masks: list[int] = []
    for count in rows:
        parents = [data.draw(st.integers(-1, i - 1)) for i in range(count)]
        masks += tree_masks(parents) if data.draw(st.booleans()) else [0] * count
    plan = forest.plan(tables, rows, np.array(masks, np.uint64))
    assert_rows_meet_their_keys(made(plan), plan)


@given(forests(), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_a_plan_follows_tables_that_only_grow(made_forest, growth):
    forest, tables, _ = made_forest
    ones = [1] * len(tables)
    device_plan = made(forest.plan(tables, ones))
    for count in growth:
        for table in tables:
            forest.grow(table, count)
        plan = forest.plan(tables, ones)
        device_plan.make(plan)
        assert_rows_meet_their_keys(device_plan, plan)
        assert device_plan.work.tokens_logical == plan.tokens_logical
        assert device_plan.work.tokens_stored == plan.tokens_stored


def grown(change) -> bool:
    """Whether a plan of four children is kept when `change` has been done to their tables."""
    forest = Forest(2, 16)
    root = forest.root(40)
    tables = [forest.grow(root.fork(), n) for n in (1, 5, 17, 2)]
    device_plan = made(forest.plan(tables, [1] * 4))
    tables = change(forest, tables)
    plan = forest.plan(tables, [1] * len(tables))
    device_plan.make(plan)
    assert_rows_meet_their_keys(device_plan, plan)
    return device_plan.was_kept


def test_a_plan_is_kept_while_the_tree_stands_still():
    assert grown(lambda forest, tables: [forest.grow(t, 1) for t in tables])
    assert grown(lambda forest, tables: [forest.grow(t, 20) for t in tables])


@pytest.mark.parametrize(
    "change",
    [
        lambda forest, tables: [forest.grow(t, 200) for t in tables],
        lambda forest, tables: tables[::-1],
        lambda forest, tables: tables[:3],
        lambda forest, tables: [*tables, forest.root(3)],
        lambda forest, tables: [t for t in tables if t.truncate(t.num_tokens - 1) is None],
        lambda forest, tables: [forest.grow(t.fork(), 1) for t in tables],
    ],
    ids=["outgrown", "reordered", "pruned", "joined", "rolled-back", "forked"],
)
def test_a_stale_plan_is_made_anew(change):
    assert not grown(change)


def test_a_table_with_fewer_rows_than_before_makes_the_plan_anew():
    forest = Forest(2, 16)
    table = forest.root(20)
    device_plan = made(forest.plan([table], [2]))
    plan = forest.plan([forest.grow(table, 1)], [1])
    device_plan.make(plan)
    assert_rows_meet_their_keys(device_plan, plan)
    assert not device_plan.was_kept


def test_a_forked_table_that_grows_in_place_makes_the_plan_anew():
    def change(forest, tables):
        child = tables[2].fork()  # takes the last block's privacy
        forest.grow(tables[2], 1)
        forest.grow(child, 1)
        return tables

    assert not grown(change)


def test_views_at_other_positions_are_items_of_their_own():
    forest = Forest(2, 16)
    one, other = forest.root(40), forest.root(50)
    joined = one.fork()
    joined.append_view(other, 5, 45, 35)
    forest.grow(joined, 3, 80)
    plan = forest.plan([joined, one], [1, 1])
    device_plan = made(plan)
    assert_rows_meet_their_keys(device_plan, plan)
    items = device_plan.tensors.items[: device_plan.numbers.num_items * 8].view(-1, 8)
    assert device_plan.numbers.has_rotations and set(items[:, 6].tolist()) == {0, 1}


def branches(forest: Forest, prefix: int, count: int, joined_pages: int = 1 << 16) -> DevicePlan:
    root = forest.root(prefix)
    tables = [forest.grow(root.fork(), 3) for _ in range(count)]
    return made(forest.plan(tables, [1] * count), joined_pages=joined_pages)


def test_few_rows_and_all_their_pages_are_one_item():
    few = branches(Forest(2, 16), 16, 2, joined_pages=0)
    assert (few.numbers.num_items, few.num_launches, few.work.pages_read) == (1, 1, 3)
    apart = branches(Forest(2, 16), 16, 2)  # where the card has room for more programs
    assert (apart.numbers.num_items, apart.num_launches, apart.work.pages_read) == (2, 1, 4)


def test_a_prefix_is_read_once_by_each_tile():
    """64 rows of two query heads fill a tile: 200 rows take four."""
    long = branches(Forest(2, 16, 900), 16 * 256, 200)
    assert long.work.pages_read == 200 + 4 * 256
    pages = long.tensors.pages[:, : long.work.num_pages]
    blocks = pages[0, pages[2] > 0].tolist()  # without the room to grow
    assert max(map(blocks.count, blocks)) == 4  # listed by each tile in front of what is its own


def test_a_prefix_of_one_page_is_read_by_each_row():
    """What the card has room for ends sooner alone than in a tile of rows that wait for others."""
    short = branches(Forest(2, 16), 16, 200)
    assert (short.work.num_items, short.num_launches, short.work.pages_read) == (200, 1, 400)


def test_long_items_are_cut_until_the_card_is_full():
    forest = Forest(8, 128, 1200)
    table = forest.root(16 * 1024)
    device_plan = made(forest.plan([table], [1]), AttentionShape(32, 8, 128, 2))
    items = device_plan.tensors.items[: device_plan.numbers.num_items * 8].view(-1, 8)
    pages = items[:, 4] - items[:, 2]
    assert len(items) * 8 >= H100.num_sms
    assert pages.max() <= 1.25 * pages.float().mean() + 4
