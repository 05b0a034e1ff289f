"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from parallel_decode.speculation.speculate import NAMED
from parallel_decode.tasks import TASKS

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="reasoner, smollm2, a folder, a .gguf file or a hub id"),
]
Data = Annotated[
    str,
    typer.Option(
        help="test: held-out problems of the bundled tasks; one of these,"
        f" {', '.join(TASKS)}; gym:NAME of reasoning-gym; a file of JSON lines with question and"
        " answer"
    ),
]
Samples = Annotated[int, typer.Option("--n", "-n", help="branches of a question")]
Temperature = Annotated[float, typer.Option(help="0 is greedy")]
MaxTokens = Annotated[int, typer.Option(help="tokens of a branch at the most")]
Seed = Annotated[int, typer.Option(help="of all draws")]
Threads = Annotated[int | None, typer.Option(help="of the kernels; one a core if not given")]
Dtype = Annotated[
    str, typer.Option(help="storage of the weights: float32, bfloat16, float16, int8 or int4")
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
HtmlPath = Annotated[Path | None, typer.Option("--html", help="write the tree there as a page")]
Extract = Annotated[
    str | None,
    typer.Option(
        help="what counts as the answer: number, boxed, letter, after:MARKER or regex:EXPRESSION;"
        " the line after 'answer ' for the bundled reasoner, else the last number"
    ),
]
Chat = Annotated[
    bool, typer.Option(help="wrap the question in the model's chat template, where it has one")
]
Draft = Annotated[
    str,
    typer.Option(
        help=f"guess ahead: {', '.join(NAMED)}, or a smaller model of the same vocabulary; auto:"
        " suffix where it may pay; none; changes the time and no token"
    ),
]
MethodName = Annotated[
    str, typer.Option("--method", help="one of those that `parallel-decode methods` lists")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="a field of the method as key=value; repeatable")
]
Download = Annotated[bool, typer.Option(help="let a hub id be fetched")]
