"""`Muon`: momentum whose every update is made orthogonal (Jordan et al., 2024)."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

# Of the iteration X <- aX + (bA + cA²)X with A = XXᵀ, chosen for its slope at zero.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
MOMENTUM = 0.95


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose singular values are all the same, near one, by Newton-Schulz
    in the matrix's own type."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class Muon(torch.optim.Optimizer):
    """That of torch with Nesterov momentum and updates of the size of AdamW's, for matrices.

    torch iterates in bfloat16, which takes a CPU without instructions for it eight times as long as
    float32: on such a one most of the training.
    """

    def __init__(self, params: ParamsT, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for matrix in _learned(group["params"]):
                state = self.state[matrix]
                momentum = state.setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonal(matrix.grad.lerp(momentum, MOMENTUM))
                size = 0.2 * max(matrix.shape) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * size)


def _learned(params: Iterable[Tensor]) -> list[Tensor]:
    return [matrix for matrix in params if matrix.grad is not None]
