"""`examples/muon.py`: the updates of torch's Muon, which iterates in bfloat16."""

import importlib
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize("shape", [(48, 160), (160, 48)], ids=["wide", "tall"])
def test_updates_are_those_of_torch(monkeypatch, shape):
    """As far apart as bfloat16 makes them; without momentum or decay they would be further."""
    monkeypatch.syspath_prepend(EXAMPLES)
    muon = importlib.import_module("muon")
    random = torch.Generator().manual_seed(0)
    begun = torch.randn(shape, generator=random)
    ours, theirs = (torch.nn.Parameter(begun.clone()) for _ in range(2))
    rate = {"lr": 0.05, "weight_decay": 0.1}
    optimizers = [
        muon.Muon([ours], **rate),
        torch.optim.Muon([theirs], **rate, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        gradient = torch.randn(shape, generator=random)
        for matrix, optimizer in zip((ours, theirs), optimizers, strict=True):
            matrix.grad = gradient.clone()
            optimizer.step()
    apart = (ours - theirs).norm() / (theirs - begun).norm()
    assert apart < 0.02
