import pytest
import torch

from tests.accuracy import assert_as_accurate_as_torch

INF, NAN = float("inf"), float("nan")


def test_allows_twice_the_error_of_torch():
    ref = torch.zeros(4)
    same_dtype = torch.tensor([0.0, 0.01, 0.0, 0.0])
    assert_as_accurate_as_torch(torch.tensor([0.02, 0.0, -0.02, 0.0]), ref, same_dtype)
    with pytest.raises(AssertionError, match=r"1 of 4 .*first at \(3,\)"):
        assert_as_accurate_as_torch(torch.tensor([0.02, 0.0, 0.0, 0.0201]), ref, same_dtype)


def test_an_exact_torch_leaves_the_slack_only():
    ref = torch.ones(2, 2)
    assert_as_accurate_as_torch(ref + 5e-6, ref, ref)
    with pytest.raises(AssertionError, match=r"4 of 4"):
        assert_as_accurate_as_torch(ref + 2e-5, ref, ref)


def test_an_empty_set_has_lse_of_minus_infinity():
    ref = torch.tensor([-INF, 1.0])
    assert_as_accurate_as_torch(ref.clone(), ref, ref)
    for wrong in ([INF, 1.0], [-1e30, 1.0], [NAN, 1.0], [-INF, -INF]):
        with pytest.raises(AssertionError):
            assert_as_accurate_as_torch(torch.tensor(wrong), ref, ref)


def test_nan_is_never_accurate():
    ref = torch.zeros(3)
    with pytest.raises(AssertionError, match="nan"):
        assert_as_accurate_as_torch(torch.tensor([0.0, NAN, 0.0]), ref, ref)
    with pytest.raises(AssertionError, match="reference has NaN"):
        assert_as_accurate_as_torch(ref, torch.tensor([0.0, NAN, 0.0]), ref)
    with pytest.raises(AssertionError, match="overflows"):
        assert_as_accurate_as_torch(ref, ref, torch.tensor([0.0, INF, 0.0]))


def test_shapes_must_agree_without_broadcasting():
    with pytest.raises(AssertionError, match="shapes differ"):
        assert_as_accurate_as_torch(torch.zeros(1, 3), torch.zeros(3), torch.zeros(3))
    assert_as_accurate_as_torch(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3))
