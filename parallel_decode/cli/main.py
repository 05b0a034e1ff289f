"""The console script."""

from collections.abc import Callable

import typer

from parallel_decode import __version__
from parallel_decode.cli.demo import demo
from parallel_decode.cli.evaluate import evaluate
from parallel_decode.cli.info import info
from parallel_decode.cli.methods import methods
from parallel_decode.cli.models import models
from parallel_decode.cli.search import search
from parallel_decode.cli.solve import solve

app = typer.Typer(
    help="Parallel reasoning: many branches of one question over one stored prefix.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "solve": solve,
    "search": search,
    "eval": evaluate,
    "methods": methods,
    "models": models,
    "info": info,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="show it and exit"
    ),
) -> None:
    """Parallel reasoning: many branches of one question over one stored prefix."""


def main() -> None:
    app()
