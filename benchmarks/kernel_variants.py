"""The Triton kernels and the configurations in which they are compiled ahead of time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parallel_decode.kernels.branch_attention import branch_attention_kernel
from parallel_decode.kernels.launch import choose_tiles
from parallel_decode.kernels.merge_states import merge_kernel
from parallel_decode.kernels.plan import BLOCK_SIZE

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
)
QUICK_VARIANTS = (
    attention("bf16", 32, 8, 128),
    attention("fp8", 32, 8, 128),
    attention("bf16", 32, 8, 128, drafts=True),
    merge(128),
)
