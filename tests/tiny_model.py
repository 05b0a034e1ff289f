"""A random model of a few thousand weights with a readable vocabulary, for tests of the engine."""

import functools
from collections.abc import Sequence

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from parallel_decode.engine import Branch, Engine
from parallel_decode.model.checkpoint import Checkpoint
from parallel_decode.model.config import ModelConfig
from parallel_decode.model.tokenizer import Tokenizer

TEXT = "abcdefghijklmnopqrstuvwxyz 0123456789\n.:+=-"


def tiny_tokenizer(text: str = TEXT) -> Tokenizer:
    """One token a character of `text`, plus <bos> and <eos>."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte_of = {" ": "Ġ", "\n": "Ċ"}
    vocab = {byte_of.get(c, c): i for i, c in enumerate(text)}
    assert all(token in alphabet for token in vocab)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    return Tokenizer(backend, len(text), (len(text) + 1,), add_bos=True)


def tiny_checkpoint(
    seed: int = 0, scale: float = 0.3, text: str = TEXT, **overrides: object
) -> Checkpoint:
    """Weights are normal with standard deviation `scale`: logits vary from token to token."""
    tokenizer = tiny_tokenizer(text)
    settings: dict = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_ids[0],
        **overrides,
    }
    config = ModelConfig.from_hf(settings)
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    tensors = {
        "model.embed_tokens.weight": weight(config.vocab_size, hidden),
        "model.norm.weight": torch.ones(hidden),
    }
    for i in range(config.num_layers):
        layer = f"model.layers.{i}."
        tensors |= {
            f"{layer}input_layernorm.weight": torch.ones(hidden),
            f"{layer}post_attention_layernorm.weight": torch.ones(hidden),
            f"{layer}self_attn.q_proj.weight": weight(q, hidden),
            f"{layer}self_attn.k_proj.weight": weight(kv, hidden),
            f"{layer}self_attn.v_proj.weight": weight(kv, hidden),
            f"{layer}self_attn.o_proj.weight": weight(hidden, q),
            f"{layer}mlp.gate_proj.weight": weight(inner, hidden),
            f"{layer}mlp.up_proj.weight": weight(inner, hidden),
            f"{layer}mlp.down_proj.weight": weight(hidden, inner),
        }
    return Checkpoint("tiny", config, tensors, tokenizer, None)


def tiny_engine(checkpoint: Checkpoint | None = None, **options: object) -> Engine:
    """An engine over `tiny_checkpoint()` with a pool of 256 blocks, on one thread."""
    settings: dict = {"threads": 1, "kv_tokens": 4096, **options}
    return Engine(checkpoint or tiny_checkpoint(), **settings)


def next_logits(engine: Engine, branch: Branch) -> torch.Tensor:
    """[vocab_size] logits after the branch's last token; pending tokens are computed for it."""
    [child] = engine.fork(branch)
    assert child.logits is not None
    logits = child.logits.clone()
    engine.prune(child)
    return logits


@functools.cache
def _oracle() -> Engine:
    return tiny_engine()


@functools.cache
def _plain_logits(tokens: tuple[int, ...]) -> torch.Tensor:
    engine = _oracle()
    root = engine.prefill(tokens)
    logits = next_logits(engine, root)
    engine.prune(root)
    # Nothing of one text is left for the next: each is computed as a whole.
    engine.clear_prefixes()
    assert engine.cache.num_used == 0
    return logits


def plain_logits(tokens: Sequence[int]) -> torch.Tensor:
    """[vocab_size] logits of `tiny_checkpoint()` after a prefill of these tokens by themselves."""
    return _plain_logits(tuple(tokens))
