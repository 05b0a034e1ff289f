"""`TrainingText`: an example of a format of examples/, and what the dense model computes of it."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from parallel_decode.tasks import load_split

ASSETS = Path(__file__).resolve().parent.parent / "parallel_decode" / "assets"


@dataclass(frozen=True)
class TrainingText:
    """The solution of a test problem, as the masked text that a model is trained on."""

    model: Any
    batch: Any
    tokens: list[int]
    positions: list[int]
    prompt: list[int]

    @classmethod
    def of(cls, form: str, model: str, kind: tuple[str, int]) -> "TrainingText":
        """`examples/` must be on the path. form: name of its module; kind: task, difficulty."""
        branching = importlib.import_module("branching_text")
        network, tokenizer, _ = importlib.import_module("reasoner_model").load(ASSETS / model)
        [problem] = load_split("test", 1, 0, {kind: 1})
        text = branching.BranchingText()
        prompt = text.append(tokenizer.encode(problem.question).ids, learned=False)
        encode = branching.encoder(tokenizer)
        importlib.import_module(form).write(text, prompt, problem, encode, Random(0))
        batch = branching.TextBatch.of([text], 0)
        return cls(network, batch, text.tokens, text.positions, text.tokens[: len(prompt)])

    def dense(self, dtype: torch.dtype, mask: torch.Tensor | None = None) -> torch.Tensor:
        """[time, vocab_size] logits; `mask` in place of the text's own."""
        # Turning by tables of the wider type costs no accuracy.
        wide = self.model.to(dtype)
        mask = self.batch.mask if mask is None else mask
        with torch.no_grad():
            return wide.logits(wide.hidden(self.batch.tokens, self.batch.positions, mask))[0]

    @property
    def causal(self) -> torch.Tensor:
        """The mask in which all that stands before is seen."""
        size = len(self.tokens)
        return torch.ones(size, size, dtype=torch.bool).tril()[None, None]
