"""How far logits are from those of a reference, token by token, and means with their errors."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


class Reference:
    """What logits are compared with, [n, vocab_size], and what of it is needed again and again.

    In fp64: differences of a millionth of a nat are looked for.
    """

    def __init__(self, logits: Tensor) -> None:
        log_p = logits.double().log_softmax(-1)
        self.best = logits.argmax(-1)
        self.p = log_p.exp()
        self.negative_entropy = torch.linalg.vecdot(self.p, log_p)


@dataclass
class Divergence:
    """Grows window by window; each list has a tensor [scored tokens] fp64 a window.

    Attributes:
        nll: -log q(token), in nats, under the logits that are judged.
        kl: KL(p || q), in nats, p being the reference.
        same_best: whether p and q have the same most likely token.
    """

    nll: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    same_best: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, tokens: Tensor, reference: Reference) -> None:
        """logits: [n, vocab_size]; tokens: [n], what came after each row."""
        rows = logits.double()
        log_sum = rows.logsumexp(-1)
        self.nll.append(log_sum - rows.gather(1, tokens[:, None])[:, 0])
        # The sum of p * log q is that of p * logits, less log_sum.
        cross_entropy = log_sum - torch.linalg.vecdot(reference.p, rows)
        self.kl.append(reference.negative_entropy + cross_entropy)
        self.same_best.append((logits.argmax(-1) == reference.best).double())

    @property
    def tokens(self) -> int:
        return sum(map(len, self.nll))


def mean_and_error(windows: list[Tensor]) -> tuple[float, float | None]:
    """Mean over all tokens and its standard error, windows being the independent samples: tokens of
    one window share their context. None where one window has nothing to be compared with."""
    means = torch.stack([window.mean() for window in windows])
    error = float(means.std() / len(means) ** 0.5) if len(means) > 1 else None
    return float(torch.cat(windows).mean()), error


def difference(one: list[Tensor], other: list[Tensor]) -> tuple[float, float | None]:
    """Mean of one - other over the same tokens, and its standard error."""
    return mean_and_error([a - b for a, b in zip(one, other, strict=True)])
