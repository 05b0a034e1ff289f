"""Conjugate posteriors of a reward, for Thompson sampling."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class Prior(ABC):
    """A belief about the mean reward of an arm before anything was observed."""

    @abstractmethod
    def draw(self, rewards: Sequence[float], rng: np.random.Generator) -> float:
        """A mean reward from the posterior after `rewards`."""


@dataclass(frozen=True)
class GaussianPrior(Prior):
    """Normal-inverse-χ² (Murphy, 2023): σ² ~ χ⁻²(nu, scale²), mean | σ² ~ N(mean, σ²/kappa).

    The defaults are those of AB-MCTS (Inoue et al., 2025).
    """

    mean: float = 0.0
    kappa: float = 1.0
    nu: float = 1.0
    variance: float = 0.1

    def __post_init__(self) -> None:
        for name in ("kappa", "nu", "variance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def posterior(self, rewards: Sequence[float]) -> "GaussianPrior":
        n = len(rewards)
        if not n:
            return self
        average = math.fsum(rewards) / n
        spread = math.fsum((reward - average) ** 2 for reward in rewards)
        kappa, nu = self.kappa + n, self.nu + n
        shift = n * self.kappa * (self.mean - average) ** 2 / kappa
        variance = (self.nu * self.variance + spread + shift) / nu
        return GaussianPrior((self.kappa * self.mean + n * average) / kappa, kappa, nu, variance)

    def draw(self, rewards: Sequence[float], rng: np.random.Generator) -> float:
        known = self.posterior(rewards)
        variance = known.nu * known.variance / rng.chisquare(known.nu)
        return float(rng.normal(known.mean, math.sqrt(variance / known.kappa)))


@dataclass(frozen=True)
class BetaPrior(Prior):
    """Beta(a, b) with a reward r in [0, 1] counted as r successes and 1 - r failures; the default
    is Jeffreys'."""

    a: float = 0.5
    b: float = 0.5

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def posterior(self, rewards: Sequence[float]) -> "BetaPrior":
        for reward in rewards:
            if not 0 <= reward <= 1:
                raise ValueError(f"a Beta prior needs rewards in [0, 1], got {reward}")
        won = math.fsum(rewards)
        return BetaPrior(self.a + won, self.b + len(rewards) - won)

    def draw(self, rewards: Sequence[float], rng: np.random.Generator) -> float:
        known = self.posterior(rewards)
        return float(rng.beta(known.a, known.b))
