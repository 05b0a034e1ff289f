"""The tolerance rule of all floating kernels: as accurate as plain PyTorch in the same dtype."""

import torch

TORCH_ERROR_MULTIPLE = 2
ABSOLUTE_SLACK = 1e-5


def _errors(out: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """|out - ref| in fp64; equal infinities differ by 0, a NaN from anything by infinity."""
    out, ref = out.detach().cpu().double(), ref.detach().cpu().double()
    errors = torch.where(out == ref, 0.0, (out - ref).abs())
    return errors.nan_to_num(nan=float("inf"), posinf=float("inf"))


def assert_as_accurate_as_torch(
    out: torch.Tensor, ref: torch.Tensor, same_dtype: torch.Tensor
) -> None:
    """max|out - ref| <= 2 max|same_dtype - ref| + 1e-5.

    out: the result under test, any shape.
    ref: the same computed in fp32 or fp64 from the same (already rounded) inputs.
    same_dtype: the same computed by plain PyTorch in the dtype of `out`.
    """
    assert out.shape == ref.shape == same_dtype.shape, (
        f"shapes differ: out {tuple(out.shape)}, ref {tuple(ref.shape)}, "
        f"same_dtype {tuple(same_dtype.shape)}"
    )
    assert not ref.isnan().any(), "the reference has NaN"
    if out.numel() == 0:
        return
    torch_error = _errors(same_dtype, ref).max().item()
    assert torch_error < float("inf"), "plain PyTorch overflows here: the rule would allow anything"
    tolerance = TORCH_ERROR_MULTIPLE * torch_error + ABSOLUTE_SLACK
    errors = _errors(out, ref)
    bad = errors > tolerance
    if not bad.any():
        return
    index = tuple(bad.nonzero()[0].tolist())
    raise AssertionError(
        f"{int(bad.sum())} of {out.numel()} elements of {tuple(out.shape)} {out.dtype} are off by "
        f"more than {tolerance:.3g} (plain PyTorch: {torch_error:.3g}, worst: "
        f"{errors.max().item():.3g}); first at {index}: {out[index].item():.8g}, "
        f"reference {ref[index].item():.8g}, plain PyTorch {same_dtype[index].item():.8g}"
    )
