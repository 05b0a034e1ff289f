"""What a grammar adds to a decode step: the same branches of SmolLM2 with and without one.

`python -m benchmarks.grammar [--quick] [--json PATH]`. Both decode the same number of tokens from
the same prompt, in turns; a time is that of one step, and the share is what the grammar adds, of
the step with it. The grammars go on for longer than is measured, so that no branch ends early.
"""

from collections.abc import Callable

from benchmarks.report import Report, argument_parser
from benchmarks.timing import time_interleaved
from parallel_decode.engine import Engine, Grammar, SamplingParams

GRAMMARS = {
    "regex": Grammar.regex("([a-z]+ )+ZZZZZZZZ"),
    # A parser that counts is rarely twice in one state: hardly a mask is known already.
    "counting regex": Grammar.regex("([a-z]{2,9} ){400}"),
    "lark": Grammar.lark(
        'start: term ("+" term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]{30,40}/'
    ),
    "json_schema": Grammar.json_schema(
        {
            "type": "array",
            "minItems": 200,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 30},
                    "price": {"type": "integer"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["name", "price", "tags"],
            },
        }
    ),
}
PROMPT = "A list of the goods in the shop, with the price of each, for the annual report:\n"


def decode(engine: Engine, branches: int, params: SamplingParams) -> Callable[[], None]:
    def run() -> None:
        root = engine.prefill(PROMPT)
        kids = engine.extend(engine.fork(root, branches), params)
        short = [kid for kid in kids if kid.num_sampled != params.max_tokens]
        if short:
            raise RuntimeError(f"{short[0]!r} ended before {params.max_tokens} tokens")
        engine.prune([root, *kids])

    return run


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    num_tokens, rounds = (12, 3) if args.quick else (24, 7)
    engine = Engine.from_pretrained("smollm2", dtype="int8", threads=args.threads)
    report = Report(
        "grammar",
        {
            "model": "smollm2",
            "dtype": "int8",
            "threads": args.threads,
            "quick": args.quick,
            "tokens": num_tokens,
        },
        peers=("llguidance",),
    )
    free = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    for branches in (1, 16) if args.quick else (1, 16, 64):
        params = {
            name: SamplingParams(max_tokens=num_tokens, grammar=grammar)
            for name, grammar in GRAMMARS.items()
        }
        calls = {
            name: decode(engine, branches, own) for name, own in {"none": free, **params}.items()
        }
        times = time_interleaved(calls, num_warmup=1, num_calls=rounds)
        plain = times["none"].p50_us / num_tokens
        for name, timing in times.items():
            step = timing.p50_us / num_tokens
            report.add(
                grammar=name,
                branches=branches,
                step_p50_us=step,
                added_us=step - plain,
                share_of_step=1 - plain / step,
            )
    report.finish(args.json)


if __name__ == "__main__":
    main()
