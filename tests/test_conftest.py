"""The poison itself: code that believes to be the package gets garbage, other code does not."""

import numpy as np
import torch


def allocate(expression: str, module: str) -> torch.Tensor | np.ndarray:
    scope = {"__name__": module, "torch": torch, "np": np}
    exec(f"out = {expression}", scope)
    return scope["out"]


def test_the_package_gets_poisoned_allocations():
    for expression in (
        "torch.empty(3)",
        "torch.empty(3, dtype=torch.bfloat16)",
        "torch.empty(3, requires_grad=True)",
        "torch.empty_like(torch.zeros(3))",
        "torch.zeros(1).new_empty(3)",
    ):
        assert allocate(expression, "parallel_decode.engine").isnan().all(), expression
    assert np.isnan(allocate("np.empty(3, np.float32)", "parallel_decode.kernels.cpu")).all()


def test_poisoned_integers_are_no_index():
    for expression in ("torch.empty(3, dtype=torch.int32)", "np.empty(3, np.int32)"):
        assert (allocate(expression, "parallel_decode.engine") == 2**31 - 1).all(), expression


def test_other_code_is_left_alone():
    for _ in range(8):
        assert not allocate("torch.empty(1000)", "parallel_decode_is_not_a_prefix").isnan().all()
    assert not torch.nn.Linear(3, 3).weight.isnan().any()
