"""A small Llama in plain torch, for training only; its parameters carry Hugging Face's names."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
WORDS = ("; ", " | ", " mod ", " from ", "chain", "dag", "countdown ", "answer ")


@dataclass(frozen=True)
class ReasonerConfig:
    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_positions: int = 2048


@dataclass
class Training:
    """How a model came about; kept in the header of its weights and told in its card."""

    name: str
    seed: int
    batch_size: int
    learning_rate: float
    precision: str
    threads: int
    torch_version: str
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    ended_by: str = "steps"


class KVCache:
    """Keys and values of every layer: [batch, num_kv_heads, capacity, head_dim]."""

    def __init__(self, config: ReasonerConfig, batch: int, capacity: int) -> None:
        shape = (batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys = [torch.zeros(shape) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape) for _ in range(config.num_layers)]
        self.length = 0

    def take(self, rows: Tensor) -> None:
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in Hugging Face's half-split layout. x: [batch, heads, time, head_dim]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: ReasonerConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        hidden, q_size = config.hidden_size, config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, q_size, bias=False)
        self.k_proj = nn.Linear(hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, hidden, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        batch, time, _ = x.shape
        c = self.config
        q = self.q_proj(x).view(batch, time, c.num_heads, c.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, time, c.num_kv_heads, c.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, time, c.num_kv_heads, c.head_dim).transpose(1, 2)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            end = cache.length + time
            cache.keys[self.layer][:, :, cache.length : end] = k
            cache.values[self.layer][:, :, cache.length : end] = v
            k, v = cache.keys[self.layer][:, :, :end], cache.values[self.layer][:, :, :end]
        if time == 1:
            # The query heads of a group stand as queries of their one kv head: nothing is copied.
            q = q.view(batch, c.num_kv_heads, -1, c.head_dim)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            out = out.reshape(batch, 1, -1)
        else:
            group = c.num_heads // c.num_kv_heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            out = out.transpose(1, 2).reshape(batch, time, -1)
        return self.o_proj(out)


class MLP(nn.Module):
    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: ReasonerConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Reasoner(nn.Module):
    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        half = torch.arange(0, config.head_dim, 2) / config.head_dim
        angles = torch.outer(torch.arange(config.max_positions), config.rope_theta**-half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # The last projections of a block start smaller, so that depth adds no variance.
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 if last else 0.06)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """tokens, positions: [batch, time]; mask: bool, True where visible; causal if None."""
        if positions is None:
            positions = torch.arange(tokens.shape[1])[None]
        rope = self.cos[positions][:, None], self.sin[positions][:, None]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, rope, mask, cache)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight)


def build_tokenizer() -> Tokenizer:
    """Byte-level BPE whose merges are the two-digit numbers and the words of the questions.

    Any text survives encode and decode, and every number of the tasks is one token.
    """
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [PAD, BOS, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    for word in [str(n) for n in range(10, 100)] + [f"0{n}" for n in range(10)] + list(WORDS):
        symbols = level.pre_tokenize_str(word)[0][0]
        for end in range(1, len(symbols)):
            if symbols[: end + 1] not in tokens:
                merges.append((symbols[:end], symbols[end]))
                tokens.append(symbols[: end + 1])
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    tokenizer.pre_tokenizer = level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def save(
    model: Reasoner, tokenizer: Tokenizer, folder: Path, temperature: float, training: Training
) -> None:
    """Write a folder that transformers and this package read."""
    folder.mkdir(parents=True, exist_ok=True)
    c = model.config
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_positions,
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.rms_norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": c.max_positions,
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
    }
    generation_config = {
        "do_sample": True,
        "temperature": temperature,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation_config),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(
        weights,
        folder / "model.safetensors",
        metadata={"format": "pt", "training": json.dumps(asdict(training))},
    )
    # The library writes it for its owner alone; a package is for everybody.
    (folder / "model.safetensors").chmod(0o644)


def load(folder: Path) -> tuple[Reasoner, Tokenizer, Training]:
    """Read back what `save` wrote."""
    c = json.loads((folder / "config.json").read_text())
    config = ReasonerConfig(
        vocab_size=c["vocab_size"],
        hidden_size=c["hidden_size"],
        intermediate_size=c["intermediate_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"],
        head_dim=c["head_dim"],
    )
    model = Reasoner(config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    with safe_open(folder / "model.safetensors", "pt") as file:
        training = Training(**json.loads(file.metadata()["training"]))
    return model, Tokenizer.from_file(str(folder / "tokenizer.json")), training
