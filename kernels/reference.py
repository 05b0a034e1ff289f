"""Every operation in plain PyTorch: the definition that the other backends are tested against.

Conventions: activations are fp32. `lse` is the natural logarithm of the sum of exponentials, fp32.
A query row that sees no key has `lse = -inf` and `out = 0`.

`k_cache` and `v_cache` lie as `kv_format.py` says, for all backends.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel_decode.kernels import acceptance, kv_format, traversal, typical
from parallel_decode.kernels.group_quantized import GROUP_SIZE, GroupQuantized, quantize_rows
from parallel_decode.kernels.plan import BLOCK_SIZE, BranchPlan

LOG2_E = 1.44269504


@dataclass(frozen=True)
class Linear:
    """weight: [out_features, in_features]; bias: [out_features] fp32 or None."""

    weight: Tensor | GroupQuantized
    bias: Tensor | None

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes


class ReferenceOps:
    """The op table in PyTorch, on any device and in any floating dtype of the activations."""

    name = "reference"
    head_dim_innermost = False
    plans = None

    def pack_linear(self, weight: Tensor | GroupQuantized, bias: Tensor | None) -> Linear:
        """weight: [out_features, in_features], stored as it comes."""
        return Linear(weight, bias)

    def fuse(self, model: object) -> None:
        """A backend may run all layers in one call; this one composes them."""

    def embedding(self, table: Linear, ids: Tensor) -> Tensor:
        """ids: [num_tokens] int64 -> [num_tokens, in_features] fp32."""
        if isinstance(table.weight, GroupQuantized):
            return table.weight.dequantize()[ids]
        return table.weight[ids].to(torch.promote_types(table.weight.dtype, torch.float32))

    def linear(self, x: Tensor, layer: Linear) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, out_features].

        A float weight is multiplied in the dtype of x. For a quantised one x is rounded as well,
        and with w = d q + b
            y[m, n] = sum_g s[m, g] (d[n, g] sum_k q[n, k] x[m, k] + b[n, g] sum_k x[m, k]).
        """
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        if not isinstance(layer.weight, GroupQuantized):
            return F.linear(x, layer.weight.to(x.dtype), bias)
        w = layer.weight
        values, scale = quantize_rows(x)
        q = w.values.to(x.dtype).view(w.shape[0], -1, GROUP_SIZE)
        y = torch.einsum("mgk,ngk,mg,ng->mn", values, q, scale, w.scale.to(x.dtype))
        if w.minimum is not None:
            y += (values.sum(-1) * scale) @ w.minimum.to(x.dtype).T
        return y if bias is None else y + bias

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.to(x.dtype)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(residual + x), residual + x); the caller no longer uses `residual` itself."""
        residual = residual + x
        return self.rms_norm(residual, weight, eps), residual

    def rope(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Half-split rotary embedding, (a, b) -> (a cos - b sin, b cos + a sin).

        q: [num_tokens, num_heads, head_dim], k: [num_tokens, num_kv_heads, head_dim]; cos, sin:
        [max_seq_len, head_dim / 2]; positions: [num_tokens] int32. May write into q and k.
        """
        c, s = cos[positions.long()].unsqueeze(1), sin[positions.long()].unsqueeze(1)
        return _rotate(q, c.to(q.dtype), s.to(q.dtype)), _rotate(k, c.to(k.dtype), s.to(k.dtype))

    def kv_store(
        self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """k, v: [num_tokens, num_kv_heads, head_dim] into the slots (block * BLOCK_SIZE + lane)."""
        for row, slot in enumerate(slot_mapping.tolist()):
            block, lane = divmod(slot, BLOCK_SIZE)
            kv_format.write_token(k[row], v[row], k_cache, v_cache, block, lane)

    def branch_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: BranchPlan,
        softmax_scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
    ) -> Tensor:
        """q: [num_rows, num_heads, head_dim] -> the same shape. See `BranchPlan`.

        softcap: scores s become softcap tanh(s / softcap). k_scale, v_scale: [num_kv_heads], what
        the numbers of an fp8 cache are multiplied by.
        """
        return self.branch_attention_lse(
            q, k_cache, v_cache, plan, softmax_scale, sliding_window, softcap, k_scale, v_scale
        )[0]

    def branch_attention_lse(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: BranchPlan,
        softmax_scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `branch_attention`, with lse: [num_rows, num_heads] fp32."""
        outs, lses, first_row = [], [], 0
        for table, num_rows in zip(plan.tables, plan.rows.tolist(), strict=True):
            rows = slice(first_row, first_row + num_rows)
            first_row += num_rows
            scores, values = self._scores(q[rows], k_cache, v_cache, table, plan, softmax_scale)
            group = q.shape[1] // k_cache.shape[1]
            if k_scale is not None:
                scores = scores * k_scale.to(q.dtype).repeat_interleave(group).view(1, -1, 1)
            if v_scale is not None:
                values = values * v_scale.to(q.dtype).repeat_interleave(group).view(1, -1, 1)
            num_keys = values.shape[0]
            # Row i of n sees all keys but the last n - 1 - i.
            visible = torch.arange(num_keys) <= torch.arange(
                num_keys - num_rows, num_keys
            ).unsqueeze(1)
            if plan.draft_masks is not None:
                for row, mask in enumerate(plan.draft_masks[rows].tolist()):
                    if mask:
                        sees = torch.tensor([bool(mask >> j & 1) for j in range(num_rows)])
                        visible[row, num_keys - num_rows :] = sees
            if sliding_window is not None:
                distance = torch.from_numpy(plan.positions[rows]).unsqueeze(1) - _positions(table)
                visible &= distance < sliding_window
            scores = scores * softmax_scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            scores.masked_fill_(~visible.unsqueeze(1).to(scores.device), -torch.inf)
            lse = scores.logsumexp(-1)
            weights = torch.exp(scores - lse.unsqueeze(-1)).nan_to_num(0.0)
            outs.append(torch.einsum("rhk,khd->rhd", weights, values))
            lses.append(lse)
        return torch.cat(outs), torch.cat(lses)

    def merge_states(self, outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
        """Attention over disjoint sets of keys -> over all of them.

        outs: [num_states, num_rows, num_heads, head_dim]; lses: [num_states, num_rows, num_heads]
        -> out [num_rows, num_heads, head_dim], lse [num_rows, num_heads].
        """
        lse = lses.logsumexp(0)
        weights = torch.exp(lses - lse).nan_to_num(0.0)
        return (weights.unsqueeze(-1) * outs).sum(0), lse

    def _scores(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        table: object,
        plan: BranchPlan,
        softmax_scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Unscaled scores [rows, num_heads, keys] and values [keys, num_heads, head_dim].

        Against keys of eight bits queries are rounded as well, as the activations of products are.
        """
        group, head_dim = q.shape[1] // k_cache.shape[1], q.shape[2]
        keys, values, offsets = [], [], []
        for block, start, stop, offset, _ in table.entries().tolist():  # type: ignore[attr-defined]
            key, value = (
                kv_format.read_keys(k_cache, block, head_dim),
                kv_format.read_values(v_cache, block, head_dim),
            )
            keys.append(key[:, :, start:stop].permute(2, 0, 1))
            values.append(value[:, start:stop].permute(1, 0, 2))
            offsets += [offset] * (stop - start)
        k = torch.cat(keys).to(q.dtype).repeat_interleave(group, dim=1)
        v = torch.cat(values).to(q.dtype).repeat_interleave(group, dim=1)
        scores = q.new_empty(q.shape[0], q.shape[1], k.shape[0])
        for offset in set(offsets):
            chosen = torch.tensor([o == offset for o in offsets])
            turned = _turn(q, -offset, plan.inverse_frequencies)
            if k_cache.dtype == torch.int8:
                values8, scale = quantize_rows((turned * softmax_scale * LOG2_E).flatten(0, 1))
                rounded = (values8 * scale.unsqueeze(-1)).flatten(1)[:, :head_dim].view_as(q)
                turned = rounded / softmax_scale / LOG2_E
            scores[:, :, chosen] = torch.einsum("rhd,khd->rhk", turned, k[chosen])
        return scores, v

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """gate_up: [num_tokens, 2 * n] -> silu(gate) * up, [num_tokens, n]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def copy_blocks(self, storage: Tensor, copies: list[tuple[int, int]]) -> None:
        """storage: [num_layers, 2, num_blocks, ...]; whole blocks, (from, to), in every layer."""
        for source, target in copies:
            storage[:, :, target] = storage[:, :, source]

    # ---- drafts: defined in files of their own ----

    verify_greedy = staticmethod(acceptance.verify_greedy)
    verify_tree = staticmethod(acceptance.verify_tree)
    verify_traversal = staticmethod(traversal.verify_traversal)
    verify_typical = staticmethod(typical.verify_typical)

    def compact_kv(
        self,
        storage: Tensor,
        num_kv_heads: int,
        head_dim: int,
        source_slots: Tensor,
        target_slots: Tensor,
    ) -> None:
        """Moves the keys and values of accepted tokens, in every layer, right behind their branch's
        prefix.

        storage: [num_layers, 2, num_blocks, num_kv_heads * block_items]; source_slots,
        target_slots: [num_branches, max_moves] int64, -1 in both where a branch has fewer moves,
        see `acceptance.compact_kv`.
        """
        kv_format.move_tokens(storage, num_kv_heads, head_dim, source_slots, target_slots)

    # ---- logits ----

    def logit_stats(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """logits: [num_rows, vocab_size] -> (lse, entropy in nats, mean logit), [num_rows] each."""
        lse = logits.logsumexp(-1)
        terms = torch.softmax(logits, -1) * logits.masked_fill(logits == -torch.inf, 0.0)
        return lse.numpy(), (lse - terms.sum(-1)).numpy(), logits.mean(-1).numpy()

    def top_logits(self, logits: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k highest logits of each row, the highest first -> (values, tokens int64), [num_rows,
        k] each. Equal values come in any order; a row that holds a NaN gives any tokens."""
        values, tokens = logits.topk(k)
        return values.numpy(), tokens.numpy()

    def mask_logits(self, logits: Tensor, words: np.ndarray) -> Tensor:
        """Logits of the allowed tokens, -inf for the others, in new memory.

        words: [num_rows, ceil(vocab_size / 32)] int32; bit t % 32 of word t // 32, counted from the
            lowest, is set where token t is allowed.
        """
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
        allowed = torch.from_numpy(bits[:, : logits.shape[1]].astype(bool))
        return logits.where(allowed.to(logits.device), -torch.inf)

    def sample(
        self,
        logits: Tensor,
        temperature: np.ndarray,
        top_k: np.ndarray,
        top_p: np.ndarray,
        min_p: np.ndarray,
        uniform: np.ndarray,
    ) -> np.ndarray:
        """One token a row, [num_rows] int64; -1 where the row holds a NaN or no finite value.

        Temperature (0 is greedy, lowest id first), top-k (0 is off), top-p (1 is off) over what
        top-k left, min-p (0 is off). Filters keep every value that ties with the last one kept. The
        token is the inverse CDF at `uniform` in the order of ids.
        """
        tokens = np.full(len(logits), -1, dtype=np.int64)
        rows = self._kept(logits, temperature, top_k, top_p, min_p)
        for row, p in enumerate(rows):
            if torch.isnan(p).any():
                continue
            beyond = (p.cumsum(0) > float(uniform[row]) * p.sum()) & (p > 0)
            # Rounding may leave `uniform` beyond the last sum.
            kept = beyond if beyond.any() else p > 0
            tokens[row] = int(kept.nonzero()[0 if beyond.any() else -1])
        return tokens

    def probabilities(
        self,
        logits: Tensor,
        temperature: np.ndarray,
        top_k: np.ndarray,
        top_p: np.ndarray,
        min_p: np.ndarray,
    ) -> Tensor:
        """The law that `sample` draws from: [num_rows, vocab_size] fp32 -> the same, rows sum to 1.

        Greedy is 1 at the token that it takes. A row from which `sample` takes none is NaN.
        """
        rows = self._kept(logits, temperature, top_k, top_p, min_p)
        return (rows / rows.sum(-1, keepdim=True)).float().to(logits.device)

    def _kept(
        self,
        logits: Tensor,
        temperature: np.ndarray,
        top_k: np.ndarray,
        top_p: np.ndarray,
        min_p: np.ndarray,
    ) -> Tensor:
        """What the filters leave of each row's softmax, in fp64; NaN where nothing can be drawn."""
        kept = torch.full(logits.shape, torch.nan, dtype=torch.float64)
        for row, x in enumerate(logits.double().cpu()):
            if torch.isnan(x).any() or not torch.isfinite(x.max()):
                continue
            if temperature[row] == 0:
                kept[row] = 0
                kept[row, int((x == x.max()).nonzero()[0])] = 1
                continue
            p = torch.softmax(x / float(temperature[row]), -1)
            cut = float(min_p[row]) * float(p.max())
            if 0 < top_k[row] < len(p):
                k_cut = float(p.topk(int(top_k[row])).values[-1])
                p[p < k_cut] = 0
            if top_p[row] < 1:
                ordered = p.sort(descending=True).values
                reached = ordered.cumsum(0) >= float(top_p[row]) * p.sum()
                cut = max(cut, float(ordered[int(reached.nonzero()[0])]))
            p[p < cut] = 0
            kept[row] = p
        return kept


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _turn(q: Tensor, offset: int, inverse_frequencies: np.ndarray) -> Tensor:
    """q as it would be `offset` positions further on."""
    if offset == 0:
        return q
    angles = torch.from_numpy(inverse_frequencies).double() * offset
    return _rotate(q, angles.cos().to(q.dtype), angles.sin().to(q.dtype))


def _positions(table: object) -> Tensor:
    """Positions at which a table's keys are read: [num_tokens]."""
    runs = [
        torch.arange(position, position + stop - start)
        for _, start, stop, _, position in table.entries().tolist()  # type: ignore[attr-defined]
    ]
    return torch.cat(runs)
