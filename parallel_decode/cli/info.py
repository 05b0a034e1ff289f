"""`parallel-decode info`: this installation and this machine."""

import os
import platform

import torch
from rich.table import Table

from parallel_decode import _C, __version__
from parallel_decode.cli import options
from parallel_decode.cli.session import Session, errors_on_stderr


def info(json: options.AsJson = False) -> None:
    """Show versions, instruction sets, threads and memory."""
    with errors_on_stderr():
        session = Session(json)
        data = {
            "parallel_decode": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "isas": ", ".join(_C.available_isas()),
            "threads": len(os.sched_getaffinity(0)),
            "block_size": _C.BLOCK_SIZE,
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        }
        if not json:
            table = Table(show_header=False)
            for name, value in data.items():
                table.add_row(
                    name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value
                )
            session.out.print(table)
        session.finish(data)
