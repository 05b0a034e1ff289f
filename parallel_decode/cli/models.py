"""`parallel-decode models`: what can be opened by name here."""

import math
from typing import Any

from rich.table import Table

from parallel_decode.cli import options
from parallel_decode.cli.session import Session, errors_on_stderr
from parallel_decode.model.checkpoint import BUNDLED, expected_shapes, open_checkpoint

COLUMNS = (
    "name",
    "parameters",
    "layers",
    "hidden_size",
    "context",
    "kv_bytes_per_token",
)


def models(json: options.AsJson = False) -> None:
    """List the models that can be opened by name, with their sizes."""
    with errors_on_stderr():
        session = Session(json)
        rows: list[dict[str, Any]] = []
        for name in (*BUNDLED, "smollm2"):
            try:
                checkpoint = open_checkpoint(name)
            except ValueError as error:
                rows.append({"name": name, "available": False, "note": str(error)})
                continue
            config = checkpoint.config
            rows.append(
                {
                    "name": name,
                    "available": True,
                    "architecture": config.architecture,
                    "parameters": sum(math.prod(shape) for _, shape in expected_shapes(config)),
                    "layers": config.num_layers,
                    "hidden_size": config.hidden_size,
                    "vocab_size": config.vocab_size,
                    "context": config.max_position_embeddings,
                    "kv_bytes_per_token": 8
                    * config.num_layers
                    * config.num_kv_heads
                    * config.head_dim,
                }
            )
        if not json:
            table = Table()
            for column in COLUMNS:
                left = column == "name"
                table.add_column(
                    column.replace("_", " "), justify="left" if left else "right", no_wrap=left
                )
            for row in rows:
                cells = [str(row["name"])]
                for column in COLUMNS[1:]:
                    cells.append(f"{row[column]:,}" if column in row else "")
                table.add_row(*cells)
            session.out.print(table)
            for row in rows:
                if not row["available"]:
                    session.say(f"{row['name']}: {row['note']}", "yellow")
            session.out.print(
                "Also: a folder with config.json and safetensors, a .gguf file, or a hub id"
                " (owner/name) with --download."
            )
        session.finish({"models": rows})
