"""`parallel-decode models`: what can be opened by name here."""

from rich.table import Table

from parallel_decode.cli import options
from parallel_decode.cli.session import Session, errors_on_stderr
from parallel_decode.model.checkpoint import BUNDLED, open_checkpoint


def models(json: options.AsJson = False) -> None:
    """List the models that can be opened by name, with their sizes."""
    with errors_on_stderr():
        session = Session(json)
        rows = []
        for name in (*BUNDLED, "smollm2"):
            try:
                config = open_checkpoint(name).config
            except ValueError as error:
                rows.append({"name": name, "available": False, "note": str(error)})
                continue
            rows.append(
                {
                    "name": name,
                    "available": True,
                    "architecture": config.architecture,
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
            columns = list(dict.fromkeys(key for row in rows for key in row))
            for column in columns:
                table.add_column(column.replace("_", " "))
            for row in rows:
                table.add_row(*(str(row.get(column, "")) for column in columns))
            session.out.print(table)
            session.out.print(
                "Also: a folder with config.json and safetensors, a .gguf file, or a hub id"
                " (owner/name) with --download."
            )
        session.finish({"models": rows})
