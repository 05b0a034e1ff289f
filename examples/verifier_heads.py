"""The heads: how they are trained, and the files they are kept in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from verifier_data import Trace

from parallel_decode.reasoning.ranking.step_statistics import STATISTICS

LABELS = ("outcome", "process")
WIDTH = 64
ROWS = 1024
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01
NUM_STATISTICS = len(STATISTICS)
VARIANTS = ("hidden", "statistics", "both")


def seen_by(variant: str, inputs: Tensor) -> Tensor:
    """The inputs with what the variant does not see at zero."""
    mask = torch.ones(inputs.shape[1])
    if variant == "hidden":
        mask[-NUM_STATISTICS:] = 0
    if variant == "statistics":
        mask[:-NUM_STATISTICS] = 0
    return inputs * mask


def train(traces: Sequence[Trace], variant: str, epochs: int, seed: int) -> nn.Sequential:
    """One hidden layer, an output for each label; every step of every trace is an example."""
    torch.manual_seed(seed)
    inputs = seen_by(variant, torch.cat([trace.inputs for trace in traces]))
    labels = torch.cat([trace.labels for trace in traces])
    centre, spread = inputs.mean(0), inputs.std(0)
    spread = torch.where(spread > 0, spread, 1.0)
    head = nn.Sequential(
        nn.Linear(inputs.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, len(LABELS))
    )
    optimizer = torch.optim.AdamW(head.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    num_steps = epochs * -(-len(inputs) // ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, num_steps + 1)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(ROWS):
            logits = head((inputs[rows] - centre) / spread)
            loss = F.binary_cross_entropy_with_logits(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        # The file's head reads inputs as they are; what the variant does not see has no weight.
        first = head[0]
        first.weight /= spread
        first.weight *= seen_by(variant, torch.ones(1, inputs.shape[1]))
        first.bias -= first.weight @ centre
    return head.eval()


def log_loss(head: nn.Sequential, traces: Sequence[Trace]) -> list[float]:
    """Mean cross entropy of each label over all steps, in nats."""
    with torch.no_grad():
        logits = head(torch.cat([trace.inputs for trace in traces]))
    labels = torch.cat([trace.labels for trace in traces])
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return losses.mean(0).tolist()


def save(head: nn.Sequential, folder: Path, reduce: str, training: dict[str, Any]) -> None:
    """heads.safetensors and heads.json, which `Verifier.from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"score.{name}": tensor.contiguous() for name, tensor in head.state_dict().items()}
    metadata = {"format": "pt", "training": json.dumps(training)}
    path = folder / "heads.safetensors"
    save_file(weights, path, metadata)
    path.chmod(0o644)  # the library writes it for its owner alone
    about = {
        "architectures": ["HeadsForTokenClassification"],
        "hidden_size": int(head[0].weight.shape[1]) - NUM_STATISTICS,
        "statistics": list(STATISTICS),
        "problem_type": "multi_label_classification",
        "id2label": {str(number): label for number, label in enumerate(LABELS)},
        "reduce": reduce,
    }
    (folder / "heads.json").write_text(json.dumps(about, indent=2) + "\n")
