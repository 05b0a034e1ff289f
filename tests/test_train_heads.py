"""The script that trains heads runs end to end, and what it writes can be drafted with."""

import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

from parallel_decode import Engine
from parallel_decode.speculation import EagleDrafter, MedusaDrafter

ROOT = Path(__file__).resolve().parent.parent


def test_quick_run_writes_heads(tmp_path):
    script = ROOT / "examples" / "train_heads.py"
    subprocess.run(
        [sys.executable, script, "--quick", "--out", tmp_path], cwd=ROOT, check=True, timeout=90
    )
    engine = Engine.from_pretrained("reasoner", threads=1, kv_tokens=256)
    assert MedusaDrafter(engine, tmp_path).num_heads == 4
    EagleDrafter(engine, tmp_path)
    with safe_open(tmp_path / "heads.safetensors", "pt") as file:
        assert file.get_slice("eagle.fusion.weight").get_dtype() == "F16"
        assert '"model": "reasoner"' in file.metadata()["training"]
    card = (tmp_path / "README.md").read_text()
    assert "| EAGLE | 1.0 |" in card and "| Medusa | 0.0 |" in card
