"""The law that tokens are drawn from: the reference's in every backend, and that of `sample`."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parallel_decode import _C
from parallel_decode.kernels import CpuOps, Ops, ReferenceOps
from parallel_decode.kernels.triton_ops import TritonOps

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REFERENCE, TRITON = ReferenceOps(), TritonOps(DEVICE)
ISAS = _C.available_isas()
BACKENDS: dict[str, Ops] = {"reference": REFERENCE, "triton": TRITON}
BACKENDS |= {f"cpu {isa}": CpuOps(isa) for isa in ISAS}

backends = pytest.mark.parametrize("ops", BACKENDS.values(), ids=BACKENDS)

Filters = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def filters(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, num_rows: int = 1) -> Filters:
    """One number for all rows, or one for each."""
    columns = zip(
        (temperature, top_k, top_p, min_p), (np.float32, np.int32, np.float32, np.float32)
    )
    return tuple(np.broadcast_to(np.asarray(x, t), (num_rows,)).copy() for x, t in columns)


def law(ops: Ops, logits: torch.Tensor, columns: Filters) -> np.ndarray:
    p = ops.probabilities(logits.to(DEVICE) if ops is TRITON else logits, *columns)
    assert p.dtype == torch.float32 and p.shape == logits.shape
    return p.cpu().numpy()


row_filters = st.tuples(
    st.sampled_from([0.0, 0.05, 0.3, 1.0, 2.5]),  # temperature
    st.sampled_from([0, 1, 2, 7, 40, 1000]),  # top_k
    st.sampled_from([1.0, 0.95, 0.5, 0.01]),  # top_p
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),  # min_p
)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    vocab_size=st.integers(1, 200),
    has_ties=st.booleans(),
    banned=st.sampled_from([0.0, 0.3, 0.95]),
    rows=st.lists(row_filters, min_size=1, max_size=5),
)
# One chunk of 64 holds all that does not round to nothing.
@example(seed=0, vocab_size=65, has_ties=False, banned=0.0, rows=[(0.05, 2, 1.0, 0.0)])
def test_it_is_the_references_law_and_that_of_sample(seed, vocab_size, has_ties, banned, rows):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(rows), vocab_size)
    logits = torch.randn(shape, generator=generator) * 4
    if has_ties:  # few distinct values, exact in fp32 and in fp64
        logits = torch.randint(-8, 9, shape, generator=generator).float()
    logits[torch.rand(shape, generator=generator) < banned] = -torch.inf
    columns = filters(*zip(*rows), num_rows=len(rows))
    temperature, top_k, top_p, min_p = columns
    # The kept tokens may differ only where the mass up to a cut agrees to rounding.
    expected = law(REFERENCE, logits, columns)
    nudged = [
        law(REFERENCE, logits, (temperature, top_k, np.minimum(top_p * s, 1), min_p * t))
        for s, t in ((1 - 1e-5, 1), (1 + 1e-5, 1), (1, 1 - 1e-5), (1, 1 + 1e-5))
    ]
    uniform = torch.rand(len(rows), generator=generator, dtype=torch.float64).numpy()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sample", "probabilities"):
            module = importlib.import_module(f"parallel_decode.kernels.{name}")
            patch.setattr(module, "MAX_BLOCK", 128)
        for name, ops in BACKENDS.items():
            p = law(ops, logits, columns)
            tokens = ops.sample(logits.to(DEVICE) if ops is TRITON else logits, *columns, uniform)
            for row, token in enumerate(tokens):
                if (logits[row] == -torch.inf).all():
                    assert np.isnan(p[row]).all() and token == -1
                    continue
                alike = any(agree(p[row], q[row]) for q in (expected, *nudged))
                assert alike, (name, p[row], expected[row])
                # The token is the inverse CDF of that p.
                reached = np.cumsum(p[row].astype(np.float64))
                assert reached[-1] == pytest.approx(1, abs=1e-6)
                assert p[row, token] > 0
                assert reached[token] - p[row, token] - 1e-6 <= uniform[row]
                assert uniform[row] <= reached[token] + 1e-6


def agree(p: np.ndarray, q: np.ndarray) -> bool:
    """The same tokens are kept, but for those that round to nothing, with the same weights."""
    negligible = np.maximum(p, q) < 1e-35
    same_kept = ((p > 0) == (q > 0)) | negligible
    return bool(same_kept.all()) and np.allclose(p, q, rtol=2e-5, atol=1e-35)


@backends
@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        (filters(top_k=1), [1, 5]),
        (filters(top_k=3), [1, 3, 5, 7]),
        (filters(top_p=0.8), [1, 3, 5, 7]),
        (filters(top_k=2, top_p=0.8), [1, 5]),
        (filters(min_p=0.1), [0, 1, 3, 5, 7]),
        (filters(temperature=0), [1]),
    ],
    ids=["top-1", "top-3", "top-p", "top-2 and top-p", "min-p", "greedy"],
)
def test_ties_are_kept_together_and_greedy_takes_the_lowest_id(ops, columns, kept):
    logits = torch.tensor([[1.0, 3.0, -0.0, 2.0, 0.0, 3.0, -torch.inf, 2.0]])
    p = law(ops, logits, columns)[0]
    assert np.flatnonzero(p).tolist() == kept
    weights = np.exp(logits[0, kept].double().numpy())
    np.testing.assert_allclose(p[kept], weights / weights.sum(), rtol=1e-6)


@backends
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_row_without_a_law_is_nan(ops, temperature):
    logits = torch.zeros(4, 20)
    logits[0, 3], logits[1], logits[2, 5] = torch.nan, -torch.inf, torch.inf
    p = law(ops, logits, filters(temperature, 5, 0.9, 0.1, num_rows=4))
    assert np.isnan(p[:3]).all() and p[3].sum() == pytest.approx(1)


def test_every_instruction_set_has_the_same_bits():
    logits = torch.randn(3, 1013) * 3
    for columns in (filters(num_rows=3), filters(0.7, 50, 0.9, 0.01, num_rows=3)):
        expected = law(CpuOps("scalar"), logits, columns)
        for isa in ISAS:
            assert np.array_equal(law(CpuOps(isa), logits, columns), expected)


def test_strided_rows_and_bad_arguments():
    ops, whole = CpuOps(), torch.randn(2, 100)
    part = whole[:, 10:60]
    assert np.array_equal(
        law(ops, part, filters(num_rows=2)), law(ops, part.contiguous(), filters(num_rows=2))
    )
    with pytest.raises(ValueError, match="2 rows of logits, 3 temperatures"):
        ops.probabilities(whole, *filters(num_rows=3))
    with pytest.raises(ValueError, match="one value a row"):
        ops.probabilities(whole, *filters(num_rows=2)[:3], np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="float64"):
        ops.probabilities(whole.double(), *filters(num_rows=2))
    with pytest.raises(ValueError, match="temperature has shape"):
        TRITON.probabilities(whole.to(DEVICE), *filters(num_rows=3))
