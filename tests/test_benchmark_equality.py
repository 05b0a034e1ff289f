"""The matrix of circumstances on a tiny model, and that it sees what is not equal."""

import sys

import pytest
import torch

from benchmarks import equality
from benchmarks.equality import Case, Workload, alone, cases, children, matrix
from benchmarks.formats import FORMATS, Format
from benchmarks.trace import Trace, digest
from parallel_decode.engine import Engine
from tests.tiny_model import tiny_checkpoint, tiny_engine

WORK = Workload(prefix=42, suffix=12, watched=2, crowd=8)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_every_circumstance_gives_the_same_bits(form: Format):
    equal = {case.name: same for case, same in matrix(tiny_checkpoint(), WORK, form)}
    assert list(equal) == [case.name for case in cases(WORK)]
    assert all(equal.values()), equal


def test_a_bit_of_the_logits_is_seen():
    logits = torch.tensor([1.0, 0.0])
    for other in (torch.tensor([1.0, -0.0]), torch.nextafter(logits, torch.tensor(2.0))):
        assert digest(other) != digest(logits)
    nan = torch.full((2,), torch.nan)
    assert digest(nan) == digest(nan.clone())


def trace_of(engine: Engine) -> Trace:
    return Case("children", children).run(engine, WORK)


def test_other_draws_and_other_weights_are_not_equal():
    expected = trace_of(tiny_engine())
    assert trace_of(tiny_engine(max_batch_tokens=5)).equals(expected)
    assert not trace_of(tiny_engine(seed=1)).equals(expected)
    assert not trace_of(tiny_engine(dtype="bfloat16")).equals(expected)
    nudged = tiny_checkpoint()
    nudged.tensors["model.layers.1.mlp.down_proj.weight"][0, 0] *= 1 + 2**-20
    assert not trace_of(tiny_engine(nudged)).equals(expected)


def test_the_same_tokens_after_other_logits_are_not_equal():
    expected, other = trace_of(tiny_engine()), trace_of(tiny_engine())
    assert other.equals(expected)
    other.logits[(1,), WORK.prefix + 3].add(b"of a second visit")
    assert other.tokens() == expected.tokens()
    assert not other.equals(expected)


def test_a_circumstance_that_did_not_come_about_is_an_error():
    roomy = tiny_engine()
    with pytest.raises(AssertionError, match="put out"):
        equality.preempted(roomy, WORK, Trace(roomy))
    short = Workload(prefix=42, suffix=13, watched=2, crowd=8)
    with pytest.raises(AssertionError, match="24 steps"):
        Case("too few", lambda engine, work, trace: alone(engine, WORK, trace)).run(roomy, short)


@pytest.mark.parametrize("equal", [True, False])
def test_exit_status(monkeypatch, capsys, equal: bool):
    def fake_matrix(checkpoint, work, form):
        yield Case("alone", alone), equal or form != FORMATS[-1]

    monkeypatch.setattr(equality, "matrix", fake_matrix)
    monkeypatch.setattr(equality, "open_checkpoint", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["equality", "--quick"])
    if equal:
        equality.main()
    else:
        with pytest.raises(SystemExit, match="unequal"):
            equality.main()
        assert str(FORMATS[-1]).split(",")[0] in capsys.readouterr().out
