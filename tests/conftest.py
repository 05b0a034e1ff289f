"""What holds in every test: fixed seeds, poisoned allocations, one hypothesis profile."""

import functools
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

# Without a GPU, kernels run in Triton's interpreter. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

hypothesis.settings.register_profile(
    "tests",
    # No deadline: the machine is shared, and a slow example is no wrong example.
    deadline=None,
    max_examples=50,
    # CI says the same thing twice about one commit; a developer's machine keeps looking.
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")

# Tensors are tiny here: on a shared machine threads that wait for each other take 20 times as long.
torch.set_num_threads(1)

# Shells start what runs behind them with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def poison(out: torch.Tensor | np.ndarray) -> None:
    """NaN in floats, the largest number in integers (out of bounds wherever it is an index)."""
    if isinstance(out, np.ndarray):
        if out.dtype.kind in "fc":
            out.fill(np.nan)
        elif out.dtype.kind in "iu":
            out.fill(np.iinfo(out.dtype).max)
        return
    with torch.no_grad():
        if out.is_floating_point() or out.is_complex():
            out.fill_(float("nan"))
        elif out.dtype != torch.bool:
            out.fill_(torch.iinfo(out.dtype).max)


def poisoned(allocate: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(allocate)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        out = allocate(*args, **kwargs)
        if torch.compiler.is_compiling():  # frames are not there to be looked at
            return out
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.split(".")[0] == "parallel_decode":
            poison(out)
        return out

    return wrapper


@pytest.fixture(autouse=True, scope="session")
def poisoned_allocations() -> Iterator[None]:
    """Whatever the package allocates without a value is garbage until a kernel has written it.

    Fresh pages of the operating system are zeros, which hide an element that nobody wrote.
    """
    with pytest.MonkeyPatch.context() as patch:
        for owner, names in [
            (torch, ["empty", "empty_like", "empty_strided"]),
            (torch.Tensor, ["new_empty", "new_empty_strided"]),
            (np, ["empty", "empty_like"]),
        ]:
            for name in names:
                patch.setattr(owner, name, poisoned(getattr(owner, name)))
        yield
