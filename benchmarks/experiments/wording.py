"""How texts of others are shown to a model: templates, and whether it was trained for them."""

from __future__ import annotations

import argparse
from pathlib import Path

from parallel_decode.reasoning import Quotation, Template
from parallel_decode.reasoning.synthesis import reasoner_debate, reasoner_quotation

JUDGE = "reasoner-judge"
"""The bundled model that was taught to read the solutions of others, of questions of --data dag."""


def add_wording(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frame", type=Path, help="template around the texts, instead of the package's"
    )
    parser.add_argument("--quote", type=Path, help="template of one text")
    parser.add_argument(
        "--trained", action="store_true", help="the model was trained for these templates"
    )


def worded(args: argparse.Namespace, name: str, model: str, peers: int = 0) -> Quotation:
    """The templates that were given, those that the model was taught, or the package's.

    peers: of an agent of a debate.

    Raises:
        ValueError: a bad template.
    """
    if _taught(args, model):
        return reasoner_debate(peers) if name == "debate" else reasoner_quotation()
    frame = Template.named(name) if args.frame is None else Template(args.frame.read_text("utf-8"))
    quote = (
        Template.named("quote") if args.quote is None else Template(args.quote.read_text("utf-8"))
    )
    return Quotation(frame, quote)


def training(args: argparse.Namespace, model: str) -> str:
    """Whether the figures say anything of a trained format, as a condition of the report."""
    if _taught(args, model):
        return f"{model} was trained for these templates"
    if args.trained:
        return "trained for these templates, as --trained says"
    return (
        f"{model} was not trained for these templates: its figures show the mechanism and its"
        " controls, not what the method can do"
    )


def _taught(args: argparse.Namespace, model: str) -> bool:
    return model == JUDGE and args.frame is None and args.quote is None
