"""Which tokens are scored, how far logits are from each other, and where the text comes from."""

import math
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import quality
from benchmarks.annual_messages import FILES, annual_messages
from benchmarks.divergence import Divergence, Reference, difference, mean_and_error
from benchmarks.formats import FORMATS, Format
from benchmarks.quality import EngineContestant, compared, judge, measured, targets, windows_of
from parallel_decode.model import open_checkpoint
from tests.tiny_model import TEXT, tiny_checkpoint, tiny_engine

WINDOW = torch.randint(len(TEXT), (40,), generator=torch.Generator().manual_seed(3)).tolist()


def contestant(dtype: str = "float32", **options: bool) -> EngineContestant:
    return EngineContestant(tiny_checkpoint(), Format(dtype), 1, **options)


def test_the_text_is_long_enough_and_plain():
    text = annual_messages()
    assert text.isascii()
    assert text.count("Fellow-Citizens of the Senate and House of Representatives") == len(FILES)
    assert len(open_checkpoint("smollm2").tokenizer.encode(text)) > 40_000


def test_windows_are_whole_and_do_not_overlap():
    assert windows_of(range(11), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows_of(range(8), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows_of(range(3), 4) == []
    assert targets([5, 6, 7, 8, 9, 10]).tolist() == [9, 10]


@pytest.mark.parametrize("window", [WINDOW, WINDOW[:33]], ids=["even", "odd"])
def test_rows_speak_of_the_tokens_that_are_scored(window):
    logits, tokens = contestant().logits(window), targets(window)
    engine = tiny_engine()
    [expected] = engine.score(engine.prefill(window[: -len(tokens)]), window[-len(tokens) :])
    got = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=0, atol=1e-5)


def test_a_window_leaves_nothing_behind():
    one = contestant()
    first = one.logits(WINDOW)
    one.logits(WINDOW[::-1])
    assert torch.equal(one.logits(WINDOW), first)


def test_divergence_of_known_distributions():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    found = Divergence()
    found.add(q.log() + 7, torch.tensor([1]), Reference(p.log()))
    assert float(found.nll[0]) == pytest.approx(math.log(2))
    assert float(found.kl[0]) == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    assert found.same_best[0].tolist() == [0.0]
    found.add(p.log(), torch.tensor([0]), Reference(p.log()))
    assert float(found.kl[1]) == pytest.approx(0, abs=1e-7)
    assert found.same_best[1].tolist() == [1.0]
    assert found.tokens == 2


def test_errors_are_over_windows():
    windows = [torch.tensor(values).double() for values in ([1.0, 3.0], [2.0, 6.0], [0.0, 0.0])]
    mean, error = mean_and_error(windows)
    assert mean == 2
    assert error == pytest.approx(2 / math.sqrt(3))  # the windows' means are 2, 4 and 0
    assert difference(windows, [window - 1 for window in windows]) == (1, 0)
    assert mean_and_error(windows[:1]) == (2, None)


def test_judge_compares_with_the_reference():
    reference, half = contestant(), contestant("bfloat16")
    windows = [WINDOW, WINDOW[::-1], WINDOW[5:] + WINDOW[:5]]
    same, other = judge(reference, [reference, half], windows)
    row = measured(same, same)
    assert (row["ppl_ratio"], row["top1_agrees"]) == (1, 1)
    assert row["kl_p99"] == pytest.approx(0, abs=1e-12)
    row = measured(other, same)
    assert 0 < row["kl_mean"] < row["kl_p99"] < 0.1
    assert row["ppl_ratio"] == pytest.approx(1, abs=0.1)
    assert row["ppl_ratio_se"] > 0
    assert compared(other, other)["kl_minus_peer"] == 0
    assert compared(other, same)["kl_minus_peer"] == pytest.approx(row["kl_mean"])


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_every_format_takes_part(form: Format):
    one = EngineContestant(tiny_checkpoint(), form, 1)
    assert one.columns == {
        "engine": "parallel_decode",
        "weights": form.dtype,
        "kv": form.kv_dtype,
    }
    [found] = judge(contestant(), [one], [WINDOW])
    assert float(found.kl[0].mean()) < 0.5


def test_rounded_weights_do_not_come_from_the_file():
    checkpoint = tiny_checkpoint()
    asked = []

    class Stored(dict):
        def __getitem__(self, name: str) -> torch.Tensor:
            asked.append(name)
            return super().__getitem__(name)

    stored = replace(checkpoint, tensors=Stored(checkpoint.tensors))
    one = EngineContestant(stored, Format("float32"), 1, rounded=True)
    assert one.columns["weights"] == "float32 rounded"
    assert set(asked) == set(checkpoint.tensors)
    assert torch.equal(one.logits(WINDOW), contestant().logits(WINDOW))


def test_main_reports_all(monkeypatch, capsys):
    monkeypatch.setattr(quality, "open_checkpoint", lambda name: tiny_checkpoint())
    monkeypatch.setattr(quality, "annual_messages", lambda: TEXT * 40)
    monkeypatch.setattr(quality.low, "llama_cpp", None)
    monkeypatch.setattr(sys, "argv", ["quality", "--quick", "--threads", "1"])
    quality.main()
    printed = capsys.readouterr().out
    assert "llama_cpp=no" in printed
    assert "scored_tokens=510" in printed
