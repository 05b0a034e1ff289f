"""The Triton kernels and the configurations in which they are compiled ahead of time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parallel_decode.kernels.branch_attention import branch_attention_kernel
from parallel_decode.kernels.compact_kv import MAX_WORDS, compact_kv_kernel
from parallel_decode.kernels.copy_blocks import MAX_BLOCK as MAX_COPY
from parallel_decode.kernels.copy_blocks import copy_blocks_kernel
from parallel_decode.kernels.kv_store import kv_store_kernel
from parallel_decode.kernels.launch import AttentionShape, Card, choose_tiles
from parallel_decode.kernels.logit_stats import MAX_BLOCK as STATS_BLOCK
from parallel_decode.kernels.logit_stats import logit_stats_kernel
from parallel_decode.kernels.merge_states import merge_kernel
from parallel_decode.kernels.plan import BLOCK_SIZE
from parallel_decode.kernels.probabilities import probabilities_kernel
from parallel_decode.kernels.rms_norm import BLOCK_ITEMS, rms_norm_kernel
from parallel_decode.kernels.rope import BLOCK_ITEMS as ROPE_ITEMS
from parallel_decode.kernels.rope import rope_kernel
from parallel_decode.kernels.rows import num_warps
from parallel_decode.kernels.sample import MAX_BLOCK, sample_kernel
from parallel_decode.kernels.silu_mul import silu_mul_kernel
from parallel_decode.kernels.verify import MAX_BLOCK as DRAFT_BLOCK
from parallel_decode.kernels.verify import NUM_WARPS as DRAFT_WARPS
from parallel_decode.kernels.verify import verify_kernel
from parallel_decode.kernels.verify_greedy import NODE_BLOCK, verify_greedy_kernel
from parallel_decode.kernels.verify_traversal import verify_traversal_kernel
from parallel_decode.kernels.verify_typical import verify_typical_kernel

TYPES = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16", "fp8": "*u8"}


@dataclass(frozen=True)
class Variant:
    """A kernel with the types of its arguments and the values of its constants.

    unaligned: pointers that need not begin at a multiple of 16 bytes, and integers that need not
    be one; all other pointers do.
    """

    kernel: Any
    config: str
    types: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    tensor_core: bool = False
    load_bits: int = 128
    aligned_integers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.kernel.__name__.removesuffix("_kernel")

    def is_aligned(self, argument: str) -> bool:
        kind = self.types.get(argument, "")
        return kind.startswith("*") or argument in self.aligned_integers


PLAN_TYPES = dict.fromkeys(
    (*("item_ptr", "page_ptr"), *("num_visible_ptr", "position_ptr", "draft_begin_ptr")), "*i32"
)


def attention(
    card: Card,
    kv: str,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    activations: str = "bf16",
    many_rows: bool = True,
    window: int = 0,
    softcap: bool = False,
    drafts: bool = False,
    rotations: bool = False,
) -> Variant:
    shape = AttentionShape(num_heads, num_kv_heads, head_dim, 1 if kv == "fp8" else 2)
    tiles = choose_tiles(shape, card, widest=1024 if many_rows else 1)
    shrink = 2 if drafts and rotations and softcap else 1  # as branch_attention does
    features = {"window": window, "softcap": softcap, "drafts": drafts, "moved": rotations}
    used = [name for name, on in features.items() if on]
    config = f"{num_heads}/{num_kv_heads}x{head_dim} {kv} tile {tiles.block_m[1]}"
    types = {
        **dict.fromkeys(("q_ptr", "out_ptr"), TYPES[activations]),
        **dict.fromkeys(("k_ptr", "v_ptr"), TYPES[kv]),
        **dict.fromkeys(("partial_out_ptr", "partial_lse_ptr"), "*fp32"),
        **PLAN_TYPES,
        "draft_mask_ptr": "*i64",
        **dict.fromkeys(("rotation_cos_ptr", "rotation_sin_ptr"), "*fp32"),
        **dict.fromkeys(("softmax_scale", "softcap"), "fp32"),
        "stride_q_row": "i32",
        "stride_page": "i32",
    }
    if kv == "fp8":
        types |= dict.fromkeys(("k_scale_ptr", "v_scale_ptr"), "*fp32")
    return Variant(
        branch_attention_kernel,
        " ".join([config, *used]),
        types,
        {
            "NUM_KV_HEADS": num_kv_heads,
            "GROUP": shape.group,
            "HEAD_DIM": head_dim,
            "BLOCK_D": 1 << (head_dim - 1).bit_length(),
            "NARROW_M": tiles.block_m[0],
            "WIDE_M": tiles.block_m[1],
            "NARROW_N": tiles.block_n[0] // shrink,
            "WIDE_N": tiles.block_n[1] // shrink,
            "PAGE": BLOCK_SIZE,
            "WINDOW": window,
            "SOFTCAP": softcap,
            "DRAFTS": drafts,
            "ROTATIONS": rotations,
            "FP8": kv == "fp8",
            "WRITE_LSE": False,
        },
        tiles.num_warps,
        tiles.num_stages,
        tensor_core=True,
        aligned_integers=("stride_q_row", "stride_page"),
    )


def _rows(
    kernel: Any,
    config: str,
    types: dict[str, str],
    constexprs: dict[str, Any],
    items: int,
) -> Variant:
    """A kernel whose programs hold `items` numbers each, widths and strides multiples of 16."""
    widths = ("num_columns", "block_words", "vocab_size")
    strides = tuple(name for name in types if name.startswith("stride") or name in widths)
    return Variant(kernel, config, types, constexprs, num_warps(items), 3, aligned_integers=strides)


def norm(n: int, residual: bool) -> Variant:
    columns = 1 << (n - 1).bit_length()
    return _rows(
        rms_norm_kernel,
        f"{n} bf16{' + residual' if residual else ''}",
        {
            **dict.fromkeys(("x_ptr", "out_ptr"), "*bf16"),
            **({"residual_ptr": "*bf16"} if residual else {}),
            "weight_ptr": "*fp32",
            **dict.fromkeys(("num_rows", "num_heads"), "i32"),
            **dict.fromkeys(("stride_x_token", "stride_x_head", "stride_residual"), "i32"),
            "eps": "fp32",
        },
        {
            "NUM_COLUMNS": n,
            "BLOCK_ROWS": max(1, BLOCK_ITEMS // columns),
            "BLOCK_COLUMNS": columns,
        },
        max(BLOCK_ITEMS, columns),
    )


def gate() -> Variant:
    types = {"gate_up_ptr": "*bf16", "out_ptr": "*bf16", "num_columns": "i32", "stride_row": "i32"}
    return _rows(silu_mul_kernel, "bf16", types, {"BLOCK": 1024}, 1024)


def stats(vocabulary: str) -> Variant:
    types = {"logits_ptr": TYPES[vocabulary], "out_ptr": "*fp32", "vocab_size": "i32"}
    types["stride_row"] = "i32"
    return _rows(logit_stats_kernel, vocabulary, types, {"BLOCK": STATS_BLOCK}, STATS_BLOCK)


FILTER_TYPES = {
    **dict.fromkeys(("temperature_ptr", "top_p_ptr", "min_p_ptr"), "*fp32"),
    "top_k_ptr": "*i32",
    **dict.fromkeys(("vocab_size", "stride_row"), "i32"),
}


def draw(vocabulary: str) -> Variant:
    types = {"logits_ptr": TYPES[vocabulary], "uniform_ptr": "*fp64", "tokens_ptr": "*i64"}
    types |= FILTER_TYPES
    return _rows(sample_kernel, vocabulary, types, {"BLOCK": MAX_BLOCK}, MAX_BLOCK)


def law(vocabulary: str) -> Variant:
    types = {"logits_ptr": TYPES[vocabulary], "p_ptr": "*fp32", **FILTER_TYPES}
    return _rows(probabilities_kernel, vocabulary, types, {"BLOCK": MAX_BLOCK}, MAX_BLOCK)


def rotary(head_dim: int) -> Variant:
    half = head_dim // 2
    block_d = 1 << (half - 1).bit_length()
    block_h = max(1, ROPE_ITEMS // (2 * block_d))
    types = {
        **dict.fromkeys(("q_ptr", "k_ptr"), "*bf16"),
        **dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32"),
        "positions_ptr": "*i32",
        **dict.fromkeys(("stride_q_token", "stride_q_head"), "i32"),
        **dict.fromkeys(("stride_k_token", "stride_k_head"), "i32"),
    }
    constexprs = {
        "NUM_HEADS": 32,
        "NUM_KV_HEADS": 8,
        "HALF": half,
        "BLOCK_H": block_h,
        "BLOCK_D": block_d,
    }
    return _rows(rope_kernel, f"32/8x{head_dim} bf16", types, constexprs, 2 * block_h * block_d)


def store(kv: str, head_dim: int) -> Variant:
    types = {
        **dict.fromkeys(("k_ptr", "v_ptr"), "*bf16"),
        **dict.fromkeys(("k_cache_ptr", "v_cache_ptr"), TYPES[kv]),
        **(dict.fromkeys(("k_scale_ptr", "v_scale_ptr"), "*fp32") if kv == "fp8" else {}),
        "slot_mapping_ptr": "*i64",
        **dict.fromkeys(("stride_k_token", "stride_k_head"), "i32"),
        **dict.fromkeys(("stride_v_token", "stride_v_head"), "i32"),
    }
    block_d = 1 << (head_dim - 1).bit_length()
    constexprs = {
        "NUM_KV_HEADS": 8,
        "HEAD_DIM": head_dim,
        "PAGE": BLOCK_SIZE,
        "BLOCK_H": 8,
        "BLOCK_D": block_d,
    }
    return _rows(kv_store_kernel, f"8x{head_dim} {kv}", types, constexprs, 8 * block_d)


def block_copy() -> Variant:
    types = {
        **dict.fromkeys(("storage_ptr", "copies_ptr"), "*i64"),
        "num_blocks": "i32",
        "block_words": "i32",
    }
    return _rows(copy_blocks_kernel, "", types, {"BLOCK": MAX_COPY}, MAX_COPY)


def compaction(max_moves: int) -> Variant:
    types = {
        **dict.fromkeys(("storage_ptr", "source_ptr", "target_ptr"), "*i64"),
        **dict.fromkeys(("num_blocks", "num_kv_heads", "row_words", "max_moves"), "i32"),
    }
    constexprs = {"PAGE": BLOCK_SIZE, "BLOCK_M": max_moves, "BLOCK_W": MAX_WORDS // max_moves}
    return Variant(
        compact_kv_kernel,
        f"{max_moves} moves",
        types,
        constexprs,
        num_warps=1,
        aligned_integers=("row_words",),
    )


ACCEPTANCE_TYPES = {
    "token_ptr": "*i64",
    "parent_ptr": "*i32",
    "cu_nodes_ptr": "*i32",
    "num_accepted_ptr": "*i32",
    "path_ptr": "*i32",
    "next_token_ptr": "*i64",
    "max_depth": "i32",
}


VERIFY_TYPES = {
    **ACCEPTANCE_TYPES,
    "p_ptr": "*fp32",
    **dict.fromkeys(("key_ptr", "position_ptr"), "*i64"),
    **dict.fromkeys(("vocab_size", "stride_p_row"), "i32"),
}


def _verify(
    kernel: Any, config: str, types: Mapping[str, str], constexprs: Mapping[str, Any]
) -> Variant:
    """Of a vocabulary whose rows begin at multiples of 16 numbers."""
    strides = tuple(name for name in types if name.startswith("stride"))
    return Variant(
        kernel,
        config,
        {**VERIFY_TYPES, **types},
        {"BLOCK": DRAFT_BLOCK, **constexprs},
        num_warps=DRAFT_WARPS,
        aligned_integers=("vocab_size", "stride_p_row", *strides),
    )


REJECTIONS = (
    (True, False, True),
    (True, False, False),
    (True, True, False),
    (False, True, True),
)


def rejection(drawn: bool, deterministic: bool, replacement: bool, levels: int = 0) -> Variant:
    """drawn, deterministic: whether some nodes are; levels: of `verify_traversal`, 0: `verify`."""
    types = {
        **({"q_ptr": "*fp32"} if drawn else {}),
        **({"deterministic_ptr": "*u8"} if drawn and deterministic else {}),
        "stride_q_row": "i32",
    }
    constexprs: dict[str, Any] = {"DETERMINISTIC": deterministic, "REPLACEMENT": replacement}
    config = f"{'with' if replacement else 'without'} replacement"
    if deterministic:
        config += ", some deterministic" if drawn else ", all deterministic"
    if not levels:
        return _verify(verify_kernel, config, types, constexprs)
    constexprs["LEVELS"] = levels
    return _verify(verify_traversal_kernel, f"{config}, {levels} levels", types, constexprs)


def typical() -> Variant:
    types = {"length_ptr": "*i32", "thresholds_ptr": "*fp64"}
    return _verify(verify_typical_kernel, "", types, {})


def greedy() -> Variant:
    """It reads single tokens."""
    types = {**ACCEPTANCE_TYPES, "argmax_ptr": "*i64"}
    return Variant(
        verify_greedy_kernel, "", types, {"BLOCK": NODE_BLOCK}, num_warps=1, load_bits=32
    )


def merge(head_dim: int) -> Variant:
    return Variant(
        merge_kernel,
        f"{head_dim}",
        {
            **dict.fromkeys(("partial_out_ptr", "partial_lse_ptr"), "*fp32"),
            **dict.fromkeys(("indptr_ptr", "runs_ptr"), "*i32"),
            "out_ptr": "*bf16",
        },
        {"HEAD_DIM": head_dim, "BLOCK_D": 1 << (head_dim - 1).bit_length(), "WRITE_LSE": False},
        num_warps=1,
    )


def variants(card: Card) -> tuple[Variant, ...]:
    """All of them, with the tiles that the card takes."""
    found = (
        *(
            attention(card, kv, 32, 8, head_dim, many_rows=many)
            for kv in ("bf16", "fp8")
            for head_dim in (64, 96, 128, 256)
            for many in (False, True)
        ),
        attention(card, "fp16", 32, 8, 128, activations="fp16"),
        attention(card, "bf16", 32, 32, 128),
        attention(card, "bf16", 16, 1, 128),
        attention(card, "bf16", 9, 3, 64),
        attention(card, "bf16", 28, 4, 128, many_rows=False),
        attention(card, "bf16", 32, 8, 128, window=4096),
        attention(card, "bf16", 32, 8, 128, softcap=True),
        attention(card, "bf16", 32, 8, 128, drafts=True),
        attention(card, "bf16", 32, 8, 128, rotations=True),
        attention(card, "bf16", 32, 8, 128, window=4096, softcap=True, drafts=True, rotations=True),
        *(merge(head_dim) for head_dim in (64, 96, 128, 256)),
        *(norm(n, residual) for n in (576, 4096, 8192) for residual in (False, True)),
        norm(128, residual=False),
        gate(),
        *(stats(kind) for kind in ("fp32", "bf16")),
        *(draw(kind) for kind in ("fp32", "bf16")),
        *(law(kind) for kind in ("fp32", "bf16")),
        *(rotary(head_dim) for head_dim in (64, 128)),
        *(store(kv, 128) for kv in ("bf16", "fp8")),
        block_copy(),
        *(compaction(max_moves) for max_moves in (4, 16)),
        greedy(),
        *(rejection(*how) for how in REJECTIONS),
        *(rejection(*how, levels) for how in REJECTIONS for levels in (8, 64)),
        typical(),
    )
    # Tiles for few rows and for many may be the same.
    return tuple({(v.name, v.config): v for v in found}.values())


def quick_variants(card: Card) -> tuple[Variant, ...]:
    return (
        attention(card, "bf16", 32, 8, 128),
        attention(card, "fp8", 32, 8, 128),
        attention(card, "bf16", 32, 8, 128, drafts=True),
        merge(128),
    )
