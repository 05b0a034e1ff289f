"""How texts of others are shown to a model: templates, and whether it was trained for them."""

from __future__ import annotations

import argparse
from pathlib import Path

from parallel_decode.reasoning import Quotation, Template


def add_wording(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frame", type=Path, help="template around the texts, instead of the package's"
    )
    parser.add_argument("--quote", type=Path, help="template of one text")
    parser.add_argument(
        "--trained", action="store_true", help="the model was trained for these templates"
    )


def worded(args: argparse.Namespace, name: str) -> Quotation:
    """The package's templates, or those that were given.

    Raises:
        ValueError: a bad template.
    """
    frame = Template.named(name) if args.frame is None else Template(args.frame.read_text("utf-8"))
    quote = (
        Template.named("quote") if args.quote is None else Template(args.quote.read_text("utf-8"))
    )
    return Quotation(frame, quote)


def training(args: argparse.Namespace) -> str:
    """Whether the figures say anything of a trained format, as a condition of the report."""
    if args.trained:
        return "trained for these templates, as --trained says"
    return (
        f"{args.model} was not trained for these templates: its figures show the mechanism and its"
        " controls, not what the method can do"
    )
