"""The Triton kernels and the configurations in which they are compiled ahead of time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parallel_decode.kernels.branch_attention import branch_attention_kernel
from parallel_decode.kernels.launch import choose_tiles
from parallel_decode.kernels.logit_stats import logit_stats_kernel
from parallel_decode.kernels.merge_states import merge_kernel
from parallel_decode.kernels.plan import BLOCK_SIZE
from parallel_decode.kernels.rms_norm import BLOCK_ITEMS, rms_norm_kernel
from parallel_decode.kernels.rows import num_warps
from parallel_decode.kernels.sample import MAX_BLOCK, sample_kernel
from parallel_decode.kernels.silu_mul import silu_mul_kernel

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
    group = num_heads // num_kv_heads
    tiles = choose_tiles(head_dim, group, widest=1024 if many_rows else 1)
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
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "BLOCK_D": 1 << (head_dim - 1).bit_length(),
            "NARROW_M": tiles.block_m[0],
            "WIDE_M": tiles.block_m[1],
            "NARROW_N": tiles.block_n[0],
            "WIDE_N": tiles.block_n[1],
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


def _rows(kernel: Any, config: str, types: dict[str, str], constexprs: dict[str, Any]) -> Variant:
    """A kernel that goes row by row over `BLOCK` numbers at a time, its strides multiples of 16."""
    items = constexprs.get("BLOCK") or constexprs["BLOCK_ROWS"] * constexprs["BLOCK_COLUMNS"]
    strides = tuple(name for name in types if name.startswith("stride") or name == "num_columns")
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
    )


def gate() -> Variant:
    types = {"gate_up_ptr": "*bf16", "out_ptr": "*bf16", "num_columns": "i32", "stride_row": "i32"}
    return _rows(silu_mul_kernel, "bf16", types, {"BLOCK": 1024})


def stats(vocabulary: str) -> Variant:
    types = {"logits_ptr": TYPES[vocabulary], "out_ptr": "*fp32", "vocab_size": "i32"}
    return _rows(
        logit_stats_kernel, vocabulary, types | {"stride_row": "i32"}, {"BLOCK": MAX_BLOCK}
    )


def draw(vocabulary: str) -> Variant:
    types = {
        "logits_ptr": TYPES[vocabulary],
        **dict.fromkeys(("temperature_ptr", "top_p_ptr", "min_p_ptr"), "*fp32"),
        "top_k_ptr": "*i32",
        "uniform_ptr": "*fp64",
        "tokens_ptr": "*i64",
        **dict.fromkeys(("vocab_size", "stride_row"), "i32"),
    }
    return _rows(sample_kernel, vocabulary, types, {"BLOCK": MAX_BLOCK})


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


VARIANTS = (
    *(
        attention(kv, 32, 8, head_dim, many_rows=many)
        for kv in ("bf16", "fp8")
        for head_dim in (64, 96, 128, 256)
        for many in (False, True)
    ),
    attention("fp16", 32, 8, 128, activations="fp16"),
    attention("bf16", 32, 32, 128),
    attention("bf16", 16, 1, 128),
    attention("bf16", 9, 3, 64),
    attention("bf16", 28, 4, 128, many_rows=False),
    attention("bf16", 32, 8, 128, window=4096),
    attention("bf16", 32, 8, 128, softcap=True),
    attention("bf16", 32, 8, 128, drafts=True),
    attention("bf16", 32, 8, 128, rotations=True),
    attention("bf16", 32, 8, 128, window=4096, softcap=True, drafts=True, rotations=True),
    *(merge(head_dim) for head_dim in (64, 96, 128, 256)),
    *(norm(n, residual) for n in (576, 4096, 8192) for residual in (False, True)),
    norm(128, residual=False),
    gate(),
    *(stats(kind) for kind in ("fp32", "bf16")),
    *(draw(kind) for kind in ("fp32", "bf16")),
)
QUICK_VARIANTS = (
    attention("bf16", 32, 8, 128),
    attention("fp8", 32, 8, 128),
    attention("bf16", 32, 8, 128, drafts=True),
    merge(128),
)
