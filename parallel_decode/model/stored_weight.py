"""`stored_weight`: tensors of a checkpoint in the form in which the kernels store them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from parallel_decode.kernels import GroupQuantized
from parallel_decode.model.gguf_file import GgufTensors

FLOAT_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
QUANTIZED_BITS = {"int8": 8, "int4": 4}
WEIGHT_DTYPES = (*FLOAT_DTYPES, *QUANTIZED_BITS)


def stored_weight(
    tensors: Mapping[str, Tensor],
    names: Sequence[str],
    dtype: str,
    device: torch.device | str = "cpu",
) -> Tensor | GroupQuantized:
    """The weights called `names`, below each other: [sum of out_features, in_features].

    What a GGUF file holds in blocks of 8 or 4 bits keeps its values: with "int8" the 4 bits have a
    byte each, with "int4" the 8 bits stay. Everything else is rounded.
    """
    if dtype in FLOAT_DTYPES:
        weights = [tensors[name].to(device, FLOAT_DTYPES[dtype]) for name in names]
        # A single weight stays the view of the file that it may be; packing makes the copy.
        return torch.cat(weights) if len(weights) > 1 else weights[0]
    bits = QUANTIZED_BITS[dtype]
    return GroupQuantized.cat([_group_quantized(tensors, name, bits) for name in names], bits)


def _group_quantized(tensors: Mapping[str, Tensor], name: str, bits: int) -> GroupQuantized:
    if isinstance(tensors, GgufTensors):
        stored = tensors.group_quantized(name)
        if stored is not None:
            return stored
        if tensors.bits(name) < 16:  # a file of five or six bits a weight shall not lose them
            bits = 8
    return GroupQuantized.from_float(tensors[name], bits)
