"""Trees of branches on which plans are compared, as block tables."""

from dataclasses import dataclass

import numpy as np

from parallel_decode import _C
from parallel_decode.kernels import BLOCK_SIZE, BranchPlan

FREQUENCIES = np.ones(8, np.float32)


@dataclass(frozen=True)
class Tree:
    """nodes: how many on each level, children of a level's nodes as even as they go; tokens: of a
    node of each level. draft: tokens of a binary draft tree that each leaf verifies, 0 for none."""

    name: str
    nodes: tuple[int, ...]
    tokens: tuple[int, ...]
    draft: int = 0

    def plan(self, share: bool = True) -> tuple[BranchPlan, list[_C.BlockTable]]:
        """The plan of a step in which every leaf has stored its newest tokens."""
        tables = self.tables()
        rows = np.full(len(tables), self.draft or 1, np.int32)
        ends = np.array([table.num_tokens for table in tables], np.int32)
        within = np.tile(np.arange(rows[0], dtype=np.int32), len(tables))
        positions = np.repeat(ends - rows, rows) + within
        masks = np.tile(binary_tree_masks(self.draft), len(tables)) if self.draft else None
        return BranchPlan(tables, rows, positions, FREQUENCIES, masks, share), tables

    def tables(self) -> list[_C.BlockTable]:
        pool = _C.BlockPool(self.max_blocks)
        level = [_C.BlockTable(pool) for _ in range(self.nodes[0])]
        grow(level, self.tokens[0])
        for count, tokens in zip(self.nodes[1:], self.tokens[1:], strict=True):
            level = [level[i * len(level) // count].fork() for i in range(count)]
            grow(level, tokens)
        if self.draft:
            grow(level, self.draft)
        return level

    @property
    def max_blocks(self) -> int:
        """Every fork may copy one block that is not full."""
        return sum(
            count * (-(-tokens // BLOCK_SIZE) + 2)
            for count, tokens in zip(self.nodes, self.tokens, strict=True)
        ) + self.nodes[-1] * (self.draft // BLOCK_SIZE + 2)


def grow(tables: list[_C.BlockTable], count: int) -> None:
    positions = np.array([table.num_tokens for table in tables], np.int32)
    _C.append_tokens(tables, np.full(len(tables), count, np.int32), positions)


def binary_tree_masks(size: int) -> np.ndarray:
    """Each node of a heap sees itself and its ancestors."""
    masks: list[int] = []
    for i in range(size):
        masks.append(1 << i | (masks[(i - 1) // 2] if i else 0))
    return np.array(masks, np.uint64)


def _levels(text: str) -> Tree:
    nodes, tokens = (tuple(map(int, part.split(","))) for part in text.split(" "))
    return Tree(f"{'-'.join(map(str, nodes))} x {'-'.join(map(str, tokens))}", nodes, tokens)


# The trees of FastTree (MLSys 2025): nodes and tokens of each level.
FASTTREE = tuple(
    map(
        _levels,
        (
            "1,2,64 8,256,32",
            "1,4,256 8,256,32",
            "1,4,8,256 8,256,256,32",
            "1,256 256,32",
            "1,1024 2048,32",
            "1,16,64 1024,256,32",
            "1,4,16,512 1024,256,128,32",
            "1,4,16,64,256,1024 256,8,256,64,32,256",
            "1,10 4000,400",
            "1,2,4,8,16,32,64,128,1024 16,16,16,16,16,16,16,16,16",
            "1,2,4,8,16,32,64,128,1024 256,128,64,16,16,16,16,16,16",
            "1,8,16,32,64,128,1024 256,128,64,16,16,16,16",
            "1,8,16,32,64,256,1024 256,128,64,16,16,16,16",
            "1,16,32,64,128,1024 256,128,64,16,16,16",
            "1,16,32,64,256,1024 256,128,64,16,16,16",
        ),
    )
)
# The grid of Bifurcated attention (ICML 2024): one prompt, N samples, here 128 tokens into them.
BIFURCATED = tuple(
    Tree(f"{prefix // 1024}K prefix, N={n}", (1, n), (prefix, 128))
    for prefix in (8192, 16384, 32768)
    for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
# Each of N branches over one prefix verifies a draft tree.
SPECULATIVE = tuple(
    Tree(f"{prefix} prefix, N={n}, draft {draft}", (1, n), (prefix, 128), draft)
    for prefix in (1024, 8192)
    for n in (1, 8, 32)
    for draft in (4, 16, 64)
)
# Where sharing is worth little: two to eight branches over short prefixes, prompts of their own.
BARELY_SHARED = (
    *(
        Tree(f"{prefix} prefix, N={n}, short", (1, n), (prefix, 32))
        for prefix in (16, 64, 512)
        for n in (1, 2, 8, 64)
    ),
    *(Tree(f"{n} prompts", (n,), (1000,)) for n in (1, 8, 64)),
    *(Tree(f"{n} prompts of 4", (n, 4 * n), (300, 50)) for n in (1, 8, 64)),
)
SHAPES = {
    "fasttree": FASTTREE,
    "bifurcated": BIFURCATED,
    "speculative": SPECULATIVE,
    "barely shared": BARELY_SHARED,
}
