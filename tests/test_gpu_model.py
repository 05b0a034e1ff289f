"""The model of a card and the other engines' plans that `benchmarks.plan` compares with."""

import numpy as np
import pytest

from benchmarks.gpu_model import Kernel, Read, predict
from benchmarks.plan import add_rows, host_us
from benchmarks.planners import PLANNERS
from benchmarks.report import Report
from benchmarks.tree_shapes import FASTTREE, SHAPES, Tree, binary_tree_masks
from parallel_decode.kernels.launch import H100, AttentionShape, Card

SHAPE = AttentionShape(32, 8, 128, 2)
# A millisecond a page from memory, an eighth of that from L2, no time for anything else.
PAGE_MS = Card("slow", 1, SHAPE.page_bytes / 1e6, 8 * SHAPE.page_bytes / 1e6, 1e9, 1 << 20)
PAGE_MS = Card(**{**PAGE_MS.__dict__, "start_us": 0.0, "launch_us": 0.0})


def pages(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def test_a_page_of_its_own_comes_from_memory_and_a_common_one_half():
    apart = predict([Kernel([Read(pages(0, 1), 16), Read(pages(2, 3), 16)])], SHAPE, PAGE_MS, 16)
    shared = predict([Kernel([Read(pages(0, 1), 16), Read(pages(0, 1), 16)])], SHAPE, PAGE_MS, 16)
    head = SHAPE.num_kv_heads * SHAPE.page_bytes
    assert (apart.kv_bytes, shared.kv_bytes) == (4 * head, 2 * head)
    assert apart.kv_bytes_requested == shared.kv_bytes_requested == 4 * head
    # 16 programs share the bandwidth: two reads of eight heads run at once.
    assert apart.us == pytest.approx(2 * 16 * 1e3)
    assert shared.us == pytest.approx(apart.us / 2)


def test_programs_beyond_the_card_wait():
    one_at_a_time = predict([Kernel([Read(pages(0), 16)])], SHAPE, PAGE_MS, 1)
    assert one_at_a_time.us == pytest.approx(8 * 1e3)
    twice = predict([Kernel([Read(pages(0), 16, times=2)])], SHAPE, PAGE_MS, 1)
    assert twice.kv_bytes == one_at_a_time.kv_bytes
    assert twice.kv_bytes_requested == 2 * one_at_a_time.kv_bytes_requested


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize("tree", [FASTTREE[0], FASTTREE[8]], ids=lambda tree: tree.name)
def test_every_planner_reads_every_page(name, tree):
    _, tables = tree.plan()
    rows = np.ones(len(tables), np.int32)
    kernels = PLANNERS[name](tables, rows, SHAPE, H100)
    read = {int(block) for kernel in kernels for r in kernel.reads for block in r.blocks}
    assert read == {int(block) for table in tables for block in table.entries()[:, 0]}
    asked = sum(len(r.blocks) * r.times for kernel in kernels for r in kernel.reads)
    every = sum(table.num_entries for table in tables)
    assert asked == every if name == "paged decode" else len(read) <= asked < every


def test_trees_have_the_shape_that_their_names_say():
    tree = Tree("", (1, 2, 5), (40, 7, 3))
    tables = tree.tables()
    assert [table.num_tokens for table in tables] == [50] * 5
    firsts = [int(table.entries()[0, 0]) for table in tables]
    assert len(set(firsts)) == 1
    assert len({int(table.entries()[2, 0]) for table in tables}) > 1
    assert all(len({t.name for t in trees}) == len(trees) for trees in SHAPES.values())


def test_a_heap_sees_its_ancestors():
    assert binary_tree_masks(7).tolist() == [1, 3, 5, 11, 19, 37, 69]


def test_rows_name_all_planners_and_never_promise_more_than_alone():
    report = Report("plan", {})
    for kind, tree in (("fasttree", FASTTREE[0]), ("few", Tree("few", (1, 2), (64, 32)))):
        add_rows(report, kind, tree, (32, 8), H100)
        rows = {row["planner"]: row for row in report.rows if row["kind"] == kind}
        assert len(rows) == 2 + len(PLANNERS)
        ours, alone = rows["parallel_decode"], rows["parallel_decode, nothing shared"]
        assert ours["predicted_us"] <= alone["predicted_us"] * 1.0001
        assert ours["kv_bytes_planned"] <= 1.1 * ours["kv_bytes_floor"]
        assert ours["host_us"] > 0 and ours["patch_us"] > 0


def test_the_host_is_timed_on_both_ways():
    made, followed = host_us(Tree("", (1, 40), (200, 30)), SHAPE, H100, 3)
    assert made > 0 and followed > 0
