"""What voting gains on the bundled reasoner: pass@1, maj@16 and pass@16 on held-out problems.

`python -m benchmarks.eval [--quick] [--json PATH]`: the figures of `parallel-decode eval`.
"""

from benchmarks.report import Report, argument_parser
from parallel_decode.cli.evaluate import run_evaluation
from parallel_decode.cli.session import Session
from parallel_decode.engine import Engine, SamplingParams
from parallel_decode.questions import load_questions
from parallel_decode.reasoning import SelfConsistency

SAMPLES = 16


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    questions = load_questions("test", 60 if args.quick else 500)
    engine = Engine.from_pretrained("reasoner", threads=args.threads)
    params = SamplingParams(max_tokens=320)
    result = run_evaluation(
        Session(), engine, questions, lambda extract: SelfConsistency(SAMPLES, params, extract)
    )
    report = Report(
        "eval",
        {
            "model": "reasoner",
            "threads": args.threads,
            "quick": args.quick,
            "branches": SAMPLES,
            "temperature": params.temperature,
            "interval": "95 %, paired bootstrap over questions",
            "generated_tokens": result.generated_tokens,
            "tokens_per_s": result.tokens_per_s,
            "peak_kv_tokens_stored": result.peak_kv_tokens_stored,
            "peak_kv_tokens_logical": result.peak_kv_tokens_logical,
        },
    )
    for task, row in result.by_kind.items():
        report.add(
            problems=task,
            questions=int(row["questions"]),
            accuracy=row["accuracy"],
            pass_at_1=row["pass_at_1"],
            maj_at_16=row["maj_at_n"],
            pass_at_16=row["pass_at_n"],
        )
    report.add(
        problems="all",
        questions=result.questions,
        accuracy=result.accuracy,
        pass_at_1=result.pass_at_1,
        maj_at_16=result.maj_at_n,
        pass_at_16=result.pass_at_n,
        gain=result.gain,
        gain_low=result.gain_low,
        gain_high=result.gain_high,
    )
    report.finish(args.json)


if __name__ == "__main__":
    main()
