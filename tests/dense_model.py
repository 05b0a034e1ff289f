"""`dense_logits`: the transformer without a cache, with an explicit mask and explicit positions.

Written from the formulas; it shares no code with `kernels/` or `model/transformer.py`. What a
token sees, and at which position it reads each key, are matrices, so any join can be written down.
"""

import torch
from torch import Tensor

from parallel_decode.model.checkpoint import Checkpoint


def dense_logits(
    checkpoint: Checkpoint,
    tokens: list[int],
    visible: Tensor,
    positions: list[int],
    read_positions: Tensor | None = None,
    added: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Logits of every token, [T, vocab_size], of a Llama without biases and rope scaling.

    visible: [T, T] bool, row i sees key j.
    positions: of the tokens, as each was computed.
    read_positions: [T, T], the position at which row i reads key j; None for `positions`.
    added: [T, T, num_kv_heads, head_dim], what row i finds added to key j, before rotation, and to
        value j; None for nothing.
    """
    config = checkpoint.config
    num_tokens, group = len(tokens), config.num_heads // config.num_kv_heads
    tensors = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}
    at = torch.tensor(positions)
    read_at = at.expand(num_tokens, num_tokens) if read_positions is None else read_positions
    exponents = torch.arange(0, config.head_dim, 2, dtype=dtype) / config.head_dim
    frequencies = config.rope_theta**-exponents

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * tensors[name]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ tensors[f"{name}.weight"].T

    def turn(x: Tensor, angles: Tensor) -> Tensor:
        """x: [..., head_dim] by angles [..., head_dim / 2]."""
        a, b = x.chunk(2, -1)
        return torch.cat(
            [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1
        )

    x = tensors["model.embed_tokens.weight"][torch.tensor(tokens)]
    for i in range(config.num_layers):
        layer = f"model.layers.{i}"
        h = norm(x, f"{layer}.input_layernorm.weight")
        q, k, v = (
            linear(h, f"{layer}.self_attn.{name}_proj").view(num_tokens, -1, config.head_dim)
            for name in "qkv"
        )
        q = turn(q, (at[:, None] * frequencies)[:, None, :])
        keys, values = k.expand(num_tokens, *k.shape), v.expand(num_tokens, *v.shape)
        if added is not None:
            keys, values = keys + added.to(dtype), values + added.to(dtype)
        keys = turn(keys, (read_at[:, :, None] * frequencies)[:, :, None, :])
        keys, values = (t.repeat_interleave(group, 2) for t in (keys, values))
        scores = torch.einsum("ihd,ijhd->hij", q, keys) * config.head_dim**-0.5
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        out = torch.einsum("hij,ijhd->ihd", weights, values).reshape(num_tokens, -1)
        x = x + linear(out, f"{layer}.self_attn.o_proj")
        h = norm(x, f"{layer}.post_attention_layernorm.weight")
        gate, up = linear(h, f"{layer}.mlp.gate_proj"), linear(h, f"{layer}.mlp.up_proj")
        x = x + linear(gate * gate.sigmoid() * up, f"{layer}.mlp.down_proj")
    return norm(x, "model.norm.weight") @ tensors["model.embed_tokens.weight"].T
