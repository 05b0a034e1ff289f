"""The heads of a model in plain torch, for training only; parameters as in heads.safetensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reasoner_model import rotate
from torch import Tensor, nn

from parallel_decode.model.config import ModelConfig

HIDDEN = -1e9  # finite: the first rows see nothing at all


class SelfAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, q_size = config.hidden_size, config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(hidden, q_size, bias=False)
        self.k_proj = nn.Linear(hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, hidden, bias=False)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x: [batch, time, hidden] -> q, k, v: [batch, num_heads, time, head_dim]."""

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        q, k = rotate(q, *rope), rotate(k, *rope)
        group = q.shape[1] // k.shape[1]
        return q, k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)


class MLP(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Eagle(nn.Module):
    """See `parallel_decode.speculation.eagle.EagleHead`."""

    def __init__(self, config: ModelConfig, inner: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.fusion = nn.Linear(2 * hidden, hidden, bias=False)
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
        self.mlp = MLP(hidden, inner)
        self.norm = nn.RMSNorm(hidden, eps)

    def forward(
        self, features: Tensor, embedded: Tensor, rope: tuple[Tensor, Tensor], depth: int
    ) -> list[Tensor]:
        """What the head says at the 1st, 2nd, ... place of a draft, for drafts from each token on
        whose tokens are right ("training-time test", Li et al. 2025).

        Args:
            features: [batch, time, hidden], the model's own of each token.
            embedded: [batch, time, hidden], the tokens' embeddings.
            rope: cosine and sine, [time, head_dim / 2].
            depth: number of places.

        Returns:
            [batch, time, hidden] each: in row i of entry d, the state that token i + 1 is guessed
            from where the model's features end before token i - d.
        """
        time = features.shape[1]
        behind = torch.arange(time)[:, None] - torch.arange(time)[None]
        keys, values, said = [], [], []
        for place in range(depth):
            # Of the token before: the model's own, then what the head itself has said.
            x = self.fusion(torch.cat((_shifted(features, 1), embedded), dim=-1))
            q, k, v = self.self_attn.project(self.input_layernorm(x), rope)
            keys.append(k)
            values.append(v)
            scale = q.shape[-1] ** -0.5
            # The keys of the model's features, and then those of the draft itself.
            scores = (q @ keys[0].transpose(2, 3)) * scale
            scores = scores.masked_fill(behind < place, HIDDEN)
            own = [
                (q * _shifted(keys[m], place - m)).sum(-1, keepdim=True) * scale
                for m in range(1, place + 1)
            ]
            scores = torch.cat((scores, *own), dim=-1)
            weights = scores.softmax(-1)
            out = weights[..., :time] @ values[0]
            for m in range(1, place + 1):
                out = out + weights[..., time + m - 1, None] * _shifted(values[m], place - m)
            x = x + self.self_attn.o_proj(out.transpose(1, 2).flatten(2))
            x = x + self.mlp(self.post_attention_layernorm(x))
            features = self.norm(x)
            said.append(features)
        return said


def _shifted(x: Tensor, count: int) -> Tensor:
    """Row i of the last but one dimension is row i - count, or zeros."""
    return F.pad(x, (0, 0, count, 0))[..., : x.shape[-2], :] if count else x


class Medusa(nn.Module):
    """See `parallel_decode.speculation.medusa.MedusaDrafter`."""

    def __init__(self, config: ModelConfig, count: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.heads = nn.ModuleList(
            nn.ModuleDict({"linear": nn.Linear(hidden, hidden)}) for _ in range(count)
        )
        for head in self.heads:
            # Each begins as the model's own output, as in the paper.
            nn.init.zeros_(head["linear"].weight)
            nn.init.zeros_(head["linear"].bias)

    def forward(self, features: Tensor) -> list[Tensor]:
        """features: [rows, hidden] -> the same a head."""
        return [features + F.silu(head["linear"](features)) for head in self.heads]
