"""What flash-attn is handed for a prompt, with plain attention in its place."""

import math

import pytest
import torch

from parallel_decode.kernels import ReferenceOps
from parallel_decode.kernels.flash_prefill import FlashPrefill
from tests.forest import Forest


def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, softmax_scale, causal, window_size):
    """`flash_attn_varlen_func` by its documentation: rows are the last ones of their keys."""
    assert causal and q.is_contiguous()
    outs = []
    bounds = zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True)
    bounds = list(bounds)
    for (q0, k0), (q1, k1) in zip(bounds, bounds[1:]):
        rows, keys = q1 - q0, k1 - k0
        assert rows <= max_q and keys <= max_k
        group = q.shape[1] // k.shape[1]
        kk, vv = (x[k0:k1].repeat_interleave(group, 1).float() for x in (k, v))
        scores = torch.einsum("rhd,khd->hrk", q[q0:q1].float(), kk) * softmax_scale
        distance = torch.arange(keys - rows, keys)[:, None] - torch.arange(keys)
        left = math.inf if window_size[0] < 0 else window_size[0]
        scores.masked_fill_((distance < 0) | (distance > left), -torch.inf)
        outs.append(torch.einsum("hrk,khd->rhd", scores.softmax(-1), vv))
    return torch.cat(outs).to(q.dtype)


@pytest.mark.parametrize("window", [None, 50])
def test_prompts_and_chunks(window):
    forest = Forest(2, 32, 100, torch.float16, head_dim_innermost=True, poisoned=True)
    shared = forest.root(40)
    tables = [forest.root(200), forest.grow(shared.fork(), 150), forest.grow(shared, 140)]
    plan = forest.plan(tables, [200, 130, 140])
    flash = FlashPrefill(torch.device("cpu"), varlen)
    qkv = torch.randn(470, 8, 32).half()
    q = qkv[:, :4]
    assert flash.takes(q, forest.k, plan)
    out = flash(q, forest.k, forest.v, plan, 0.2, window)
    expected = ReferenceOps().branch_attention(q.float(), forest.k, forest.v, plan, 0.2, window)
    torch.testing.assert_close(out.float(), expected, rtol=2e-3, atol=2e-3)


def test_what_is_left_to_the_other_kernel():
    forest = Forest(2, 32, 100, torch.float16, head_dim_innermost=True)
    table, q = forest.root(200), torch.randn(200, 4, 32).half()
    flash = FlashPrefill(torch.device("cpu"), varlen)
    assert not flash.takes(q[:1], forest.k, forest.plan([table], [1]))
    assert not flash.takes(q.float(), forest.k, forest.plan([table], [200]))
    assert not flash.takes(q, forest.k.to(torch.float8_e4m3fn), forest.plan([table], [200]))
    assert FlashPrefill.installed(torch.device("cpu")) is None
