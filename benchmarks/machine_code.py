"""What a compiled kernel holds: registers, spills, shared memory, tensor-core products, loads."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

from parallel_decode.kernels.launch import H100, Card, card_named

NVIDIA_BIN = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Target:
    """A compilation target, and of its multiprocessor what limits how many programs it holds."""

    name: str
    backend: str
    arch: int | str
    warp_size: int
    registers: int
    shared_bytes: int
    shared_reserved: int
    """Bytes that the runtime takes of each program's share."""
    max_warps: int
    card: Card

    @property
    def gpu(self) -> GPUTarget:
        return GPUTarget(self.backend, self.arch, self.warp_size)


TARGETS = {
    "sm_80": Target("sm_80", "cuda", 80, 32, 65536, 164 << 10, 1024, 64, card_named("NVIDIA A100")),
    "sm_90": Target("sm_90", "cuda", 90, 32, 65536, 228 << 10, 1024, 64, H100),
    "sm_100": Target(
        "sm_100", "cuda", 100, 32, 65536, 228 << 10, 1024, 64, card_named("NVIDIA B200")
    ),
    "gfx942": Target(
        "gfx942",
        "hip",
        "gfx942",
        64,
        4 * 64 * 512,
        64 << 10,
        0,
        32,
        card_named("AMD Instinct MI300X"),
    ),
}


@dataclass(frozen=True)
class MachineCode:
    registers: int
    """Of a thread."""
    spill_bytes: int
    shared_bytes: int
    tensor_core: str
    """The matrix instructions that it uses, or an empty text."""
    load_bits: int
    """Width of the widest load from global memory."""
    occupancy: float
    """Part of the multiprocessor's warps that registers and shared memory leave room for."""


def read(compiled: object, target: Target, num_warps: int) -> MachineCode:
    """compiled: what `triton.compile` returns."""
    asm: dict[str, str | bytes] = compiled.asm  # type: ignore[attr-defined]
    shared = int(compiled.metadata.shared)  # type: ignore[attr-defined]
    parts = _amd(str(asm["amdgcn"])) if target.backend == "hip" else _nvidia(asm)
    registers, spills, tensor_core, load_bits = parts
    return MachineCode(
        registers,
        spills,
        shared,
        tensor_core,
        load_bits,
        _occupancy(registers, shared, num_warps, target),
    )


def _occupancy(registers: int, shared: int, num_warps: int, target: Target) -> float:
    # Registers are given to warps in units of 256.
    of_warp = -(-registers * target.warp_size // 256) * 256
    programs = min(
        target.registers // (of_warp * num_warps),
        target.max_warps // num_warps,
        target.shared_bytes // (shared + target.shared_reserved) if shared else target.max_warps,
    )
    return programs * num_warps / target.max_warps


def _nvidia(asm: dict[str, str | bytes]) -> tuple[int, int, str, int]:
    cubin, ptx = asm["cubin"], str(asm["ptx"])
    assert isinstance(cubin, bytes)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        sass = _output("cuobjdump", "-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of registers: {usage!r}")
    registers, stack, local = map(int, found.groups())
    # A spill is a store to the thread's own memory and a load from it.
    spills = max(stack, local) if re.search(r"\b(STL|LDL)\b", sass) else 0
    names = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
    tensor_core = " ".join(name for name in names if name in ptx)
    return registers, spills, tensor_core, _nvidia_load_bits(ptx)


def _nvidia_load_bits(ptx: str) -> int:
    widths = [0]
    for vector, bits in re.findall(r"ld\.global(?:\.[a-zA-Z0-9:_]+)*?(\.v\d)?\.b(\d+)", ptx):
        widths.append(int(vector[2:] or 1) * int(bits))
    widths += [
        8 * int(size, 16) for size in re.findall(r"cp\.async\.c[ag]\.[^;]*?, 0x([0-9a-f]+)", ptx)
    ]
    return max(widths)


def _amd(code: str) -> tuple[int, int, str, int]:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", code)
        if found is None:
            raise ValueError(f"the code object says nothing of {name}")
        return int(found.group(1))

    # Scalar registers spill into lanes of vector registers and not to memory.
    spills = number("private_segment_fixed_size")
    tensor_core = " ".join(sorted(set(re.findall(r"v_mfma_\w+?x\w+?(?=_)", code)))[:1])
    loads = re.findall(r"(?:global|buffer)_load_(dword|b)(x?\d*)", code)
    widths = [0]
    for unit, count in loads:
        digits = int(count.lstrip("x") or 1)
        widths.append(32 * digits if unit == "dword" else digits)
    return number("vgpr_count"), spills, tensor_core, max(widths)


def _output(tool: str, *args: str) -> str:
    done = subprocess.run(
        [str(NVIDIA_BIN / tool), *args], capture_output=True, text=True, check=True
    )
    return done.stdout
