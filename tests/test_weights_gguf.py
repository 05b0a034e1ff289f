"""GGUF: values of every quantisation, names and row order, and damaged files."""

import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_decode.model import ModelConfig, open_checkpoint
from parallel_decode.model.gguf_file import GgufFile
from tests.damage import damaged, peak_bytes
from tests.gguf_model import random_tensors, write_gguf

CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=258,
    hidden_size=32,
    intermediate_size=64,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    eos_ids=(257,),
)


def half(raw: bytes) -> float:
    return struct.unpack("<e", raw)[0]


def q8_0(raw: bytes) -> list[float]:
    return [half(raw[:2]) * q for q in struct.unpack("32b", raw[2:])]


def q4_0(raw: bytes) -> list[float]:
    d, q = half(raw[:2]), raw[2:]
    return [d * ((b & 15) - 8) for b in q] + [d * ((b >> 4) - 8) for b in q]


def q4_1(raw: bytes) -> list[float]:
    d, m, q = half(raw[:2]), half(raw[2:4]), raw[4:]
    return [d * (b & 15) + m for b in q] + [d * (b >> 4) + m for b in q]


def scale_min_k4(j: int, q: bytes) -> tuple[int, int]:
    if j < 4:
        return q[j] & 63, q[j + 4] & 63
    return (q[j + 4] & 15) | (q[j - 4] >> 6) << 4, (q[j + 4] >> 4) | (q[j] >> 6) << 4


def q4_or_q5_k(raw: bytes, fifth_bits: bytes, q: bytes) -> list[float]:
    d, dmin, scales = half(raw[:2]), half(raw[2:4]), raw[4:16]
    out = []
    for j in range(8):
        scale, minimum = scale_min_k4(j, scales)
        for i in range(32):
            nibble = q[j // 2 * 32 + i] >> 4 * (j % 2) & 15
            high = fifth_bits[i] >> j & 1 if fifth_bits else 0
            out.append(d * scale * (nibble + 16 * high) - dmin * minimum)
    return out


def q6_k(raw: bytes) -> list[float]:
    d, scales = half(raw[208:]), struct.unpack("16b", raw[192:208])
    out = [0.0] * 256
    for n in range(2):
        ql, qh, sc = raw[64 * n :], raw[128 + 32 * n :], scales[8 * n :]
        for i in range(32):
            for part, low in enumerate((ql[i] & 15, ql[i + 32] & 15, ql[i] >> 4, ql[i + 32] >> 4)):
                q = (low | (qh[i] >> 2 * part & 3) << 4) - 32
                out[128 * n + 32 * part + i] = d * sc[i // 16 + 2 * part] * q
    return out


# Block size, block bytes, where the fp16 scales are, and the formula of ggml-quants.c.
FORMULAS: dict[Kind, tuple[int, int, list[int], Callable[[bytes], list[float]]]] = {
    Kind.F32: (1, 4, [], lambda raw: list(struct.unpack("<f", raw))),
    Kind.F16: (1, 2, [0], lambda raw: [half(raw)]),
    Kind.BF16: (1, 2, [], lambda raw: list(struct.unpack("<f", b"\0\0" + raw))),
    Kind.Q8_0: (32, 34, [0], q8_0),
    Kind.Q4_0: (32, 18, [0], q4_0),
    Kind.Q4_1: (32, 20, [0, 2], q4_1),
    Kind.Q4_K: (256, 144, [0, 2], lambda raw: q4_or_q5_k(raw, b"", raw[16:])),
    Kind.Q5_K: (256, 176, [0, 2], lambda raw: q4_or_q5_k(raw, raw[16:48], raw[48:])),
    Kind.Q6_K: (256, 210, [208], q6_k),
}


@pytest.mark.parametrize("kind", FORMULAS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("num_rows", [1, 16, 33])
def test_values_of_each_quantisation(kind: Kind, num_rows: int, tmp_path: Path) -> None:
    block_size, block_bytes, scales, formula = FORMULAS[kind]
    columns = 2 * block_size
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (num_rows * 2, block_bytes), dtype=np.uint8)
    if kind in (Kind.F32, Kind.BF16):
        floats = rng.standard_normal(num_rows * 2).astype(np.float32)
        raw = np.ascontiguousarray(floats.view(np.uint8).reshape(-1, 4)[:, -block_bytes:])
    for offset in scales:
        random_scale = rng.standard_normal(num_rows * 2).astype("<f2")
        raw[:, offset : offset + 2] = random_scale.view(np.uint8).reshape(-1, 2)
    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    # The writer takes these two as numbers, all others as bytes.
    stored = raw.view({Kind.F32: "<f4", Kind.F16: "<f2"}.get(kind, np.uint8))
    writer.add_tensor("t", stored.reshape(num_rows, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    values = GgufFile(path).read("t")
    expected = [formula(block.tobytes()) for block in raw]
    assert values.shape == (num_rows, columns)
    assert values.dtype == torch.float32
    # One fp32 rounding for each of the products and the sum.
    wanted = torch.tensor(expected, dtype=torch.float64).view(num_rows, columns)
    scale = wanted.abs().max()
    assert (values.double() - wanted).abs().max() <= 2**-22 * scale
    values.add_(1)  # owned memory, not the read-only map


ARCHITECTURES = {
    "llama": {"tie_word_embeddings": True},
    "llama-biased": {"attention_bias": True, "output_bias": True},
    "qwen2": {"architecture": "qwen2", "attention_bias": True},
    "qwen3": {"architecture": "qwen3", "qk_norm": True},
}


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_model_comes_back(changes: dict[str, Any], tmp_path: Path) -> None:
    config = ModelConfig(**{**vars(CONFIG), **changes})
    tensors = random_tensors(config)
    write_gguf(tmp_path / "model.gguf", config, tensors)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert checkpoint.config.rms_norm_eps == pytest.approx(config.rms_norm_eps)
    assert vars(checkpoint.config) | {"rms_norm_eps": 0} == vars(config) | {"rms_norm_eps": 0}
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensors[name], tensor), name
    assert checkpoint.tokenizer.encode("the") == [
        *checkpoint.tokenizer.encode("th"),
        *checkpoint.tokenizer.encode("e"),
    ]
    assert checkpoint.chat_template is not None
    assert checkpoint.chat_template.render([{"role": "user", "content": "hi"}]) == "hi"


@pytest.mark.parametrize(
    "kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1], ids=lambda kind: kind.name
)
def test_a_quantised_model_comes_back(kind: Kind, tmp_path: Path) -> None:
    """Names, shapes and row order, with values as `gguf` itself quantises and reads them."""
    tensors = random_tensors(CONFIG)
    write_gguf(tmp_path / "model.gguf", CONFIG, tensors, kind)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    for name, tensor in tensors.items():
        rounded = tensor.numpy()
        if tensor.dim() == 2:
            rounded = gguf.quants.dequantize(gguf.quants.quantize(rounded, kind), kind)
        # A permutation of rows commutes with a quantisation of each row.
        assert torch.equal(checkpoint.tensors[name], torch.from_numpy(np.array(rounded))), name


def test_rope_factors_and_scaling(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = random_tensors(CONFIG)

    def factors(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.array([1, 2, 4, 8], np.float32))

    write_gguf(path, CONFIG, tensors, extra=factors)
    scaling = open_checkpoint(path).config.rope_scaling
    assert scaling is not None
    assert (scaling.kind, scaling.freq_factors) == ("factors", (1.0, 2.0, 4.0, 8.0))

    def yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)

    path.unlink()
    write_gguf(path, CONFIG, tensors, extra=yarn)
    scaling = open_checkpoint(path).config.rope_scaling
    assert scaling is not None
    assert (scaling.kind, scaling.factor) == ("yarn", 4.0)
    assert scaling.original_max_position_embeddings == 16
    assert scaling.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int, Path]:
    """A whole model, the length of its header, and a folder for its damaged copies."""
    folder = tmp_path_factory.mktemp("gguf")
    path = folder / "small.gguf"
    write_gguf(path, CONFIG, random_tensors(CONFIG), Kind.Q8_0)
    header_bytes = min(info.offset for info in GgufFile(path).infos.values())
    return path.read_bytes(), header_bytes, folder


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for name in checkpoint.tensors:
        checkpoint.tensors[name]
    checkpoint.tokenizer.decode(checkpoint.tokenizer.encode("the end"))


@settings(max_examples=400)
@given(data=st.data())
def test_damaged_files(small: tuple[bytes, int, Path], data: st.DataObject) -> None:
    original, header_bytes, folder = small
    broken = data.draw(damaged(original, header_bytes))
    path = folder / "damaged.gguf"
    path.write_bytes(broken)
    # The vocabulary of 258 tokens and one tensor at a time, whatever the header says.
    assert peak_bytes(lambda: read_all(path)) < 2 << 20


def header(*parts: bytes | str | int) -> bytes:
    """A GGUF header: texts with their length, integers as u64, bytes as they are."""
    out = b"GGUF" + struct.pack("<I", 3)
    for part in parts:
        if isinstance(part, str):
            out += struct.pack("<Q", len(part)) + part.encode()
        else:
            out += part if isinstance(part, bytes) else struct.pack("<Q", part)
    return out


U32 = struct.Struct("<I").pack
LIES = {
    "tensors": header(2**63, 0),
    "fields": header(0, 2**40),
    "key": header(0, 1, 2**60, b"a" * 64),
    "string": header(0, 1, "general.name", U32(8), 2**62, b"a" * 64),
    "array": header(0, 1, "tokens", U32(9), U32(8), 2**50, b"a" * 64),
    "numbers": header(0, 1, "scores", U32(9), U32(6), 2**60, b"a" * 64),
    "nested": header(0, 1, "deep", U32(9), U32(9), 1, U32(9), 2**60, b"a" * 64),
    "type": header(0, 1, "key", U32(77), b"a" * 64),
    "dimensions": header(1, 0, "t", U32(2**32 - 1), b"a" * 64),
    "shape": header(1, 0, "t", U32(2), 2**33, 2**33, U32(0), 0, b"a" * 64),
    "shape that wraps": header(1, 0, "t", U32(2), 2**32, 2**32, U32(0), 0, b"a" * 64),
    "offset": header(1, 0, "t", U32(1), 4, U32(0), 2**63, b"a" * 64),
    "alignment": header(0, 1, "general.alignment", U32(4), U32(0), b"a" * 64),
    "wide alignment": header(0, 1, "general.alignment", U32(4), U32(2**31), b"a" * 64),
    "ggml type": header(1, 0, "t", U32(1), 4, U32(999), 0, b"a" * 64),
    "twice": header(0, 2, "k", U32(4), U32(1), "k", U32(4), U32(1), b"a" * 64),
    "empty": b"",
    "magic": b"GGML" + b"a" * 64,
    "version": b"GGUF" + U32(1) + b"a" * 64,
    "big endian": b"GGUF" + struct.pack(">I", 3) + b"a" * 64,
    "not utf-8": header(0, 1, 4, b"\xff\xfe\xfd\xfc", U32(4), U32(1), b"a" * 64),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_headers(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(LIES[lie])

    def opening() -> None:
        with pytest.raises(ValueError, match=r"lie\.gguf"):
            GgufFile(path)

    assert peak_bytes(opening) < 1 << 20


LIMITED = """
import resource, sys
from pathlib import Path
from parallel_decode.model.gguf_file import GgufFile
from parallel_decode.model.safetensors_file import SafetensorsFile
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (128 << 20),) * 2)
for path in map(Path, sys.argv[1:]):
    try:
        (GgufFile if path.suffix == ".gguf" else SafetensorsFile)(path)
    except ValueError:
        continue
    sys.exit(f"{path} was opened")
print("all refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_lying_headers_within_128_mib(tmp_path: Path) -> None:
    """In a process that may take 128 MiB more, so that an allocation of any kind would fail."""
    paths = []
    for i, lie in enumerate(LIES.values()):
        paths.append(tmp_path / f"{i}.gguf")
        paths[-1].write_bytes(lie)
    for i, size in enumerate((2**30, 2**40, 2**63)):
        paths.append(tmp_path / f"{i}.safetensors")
        paths[-1].write_bytes(struct.pack("<Q", size) + b"{}" * 40)
    shape = (
        b'{"a": {"dtype": "F32", "shape": [1048576, 1048576], "data_offsets": [0, 4398046511104]}}'
    )
    paths.append(tmp_path / "shape.safetensors")
    paths[-1].write_bytes(struct.pack("<Q", len(shape)) + shape)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True
    )
    assert done.stdout == "all refused\n", done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 2}, r"model\.layers\.1.*missing"),
        ({"num_layers": 5000}, "num_layers must be between"),
        ({"hidden_size": 64}, "shape"),
        ({"intermediate_size": 32}, "gate_proj.*shape"),
        ({"num_heads": 8, "num_kv_heads": 8}, "shape"),
        ({"max_position_embeddings": 2**31}, "max_position_embeddings"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_metadata_that_does_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    config = ModelConfig(**vars(CONFIG))
    for name, value in changes.items():
        object.__setattr__(config, name, value)  # past the checks, as a damaged file is
    # Rows stay as they are: the head counts of this metadata need not divide them.
    object.__setattr__(config, "architecture", "qwen2")
    write_gguf(tmp_path / "model.gguf", config, tensors)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / "model.gguf")


def test_unknown_architecture(tmp_path: Path) -> None:
    config = ModelConfig(**vars(CONFIG))
    object.__setattr__(config, "architecture", "mamba")
    write_gguf(tmp_path / "model.gguf", config, random_tensors(CONFIG))
    with pytest.raises(ValueError, match=r"'mamba' is not supported.*'llama'.*'qwen3'"):
        open_checkpoint(tmp_path / "model.gguf")
