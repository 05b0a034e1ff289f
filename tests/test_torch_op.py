"""The kernels as operators of torch: what their schemas say they write, and compilation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parallel_decode.kernels import BLOCK_SIZE
from parallel_decode.kernels.branch_attention import branch_attention
from parallel_decode.kernels.compact_kv import compact_kv
from parallel_decode.kernels.copy_blocks import copy_blocks
from parallel_decode.kernels.device_plan import DevicePlan
from parallel_decode.kernels.kv_store import kv_store
from parallel_decode.kernels.launch import H100, AttentionShape
from parallel_decode.kernels.logit_stats import logit_stats
from parallel_decode.kernels.merge_states import merge_states
from parallel_decode.kernels.probabilities import probabilities
from parallel_decode.kernels.rms_norm import add_rms_norm, rms_norm
from parallel_decode.kernels.rope import rope
from parallel_decode.kernels.sample import sample
from parallel_decode.kernels.silu_mul import silu_mul
from parallel_decode.kernels.torch_op import NAMESPACE
from parallel_decode.kernels.verify import verify_tree
from parallel_decode.kernels.verify_greedy import verify_greedy
from parallel_decode.kernels.verify_traversal import verify_traversal
from parallel_decode.kernels.verify_typical import verify_typical
from tests.draft_batch import random_batch
from tests.forest import Forest

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


def attention() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    forest = Forest(2, 16, head_dim_innermost=True)
    root = forest.root(70)
    tables = [forest.grow(root.fork(), n) for n in (1, 2, 40)]
    device_plan = DevicePlan(AttentionShape(4, 2, 16, 4), H100, DEVICE)
    device_plan.make(forest.plan(tables, [1, 1, 1]))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return branch_attention(q, k, v, device_plan, 0.25)

    return run, (torch.randn(3, 4, 16, device=DEVICE), forest.k.to(DEVICE), forest.v.to(DEVICE))


def stored() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    forest = Forest(2, 16, num_blocks=4, head_dim_innermost=True)
    k, v = torch.randn(2, 3, 2, 16, device=DEVICE)
    slots = torch.tensor([1, -1, BLOCK_SIZE], device=DEVICE)
    return kv_store, (k, v, forest.k.to(DEVICE), forest.v.to(DEVICE), slots)


def filtered(*more: Tensor) -> tuple[Tensor, ...]:
    columns = [torch.ones(2), torch.full((2,), 9, dtype=torch.int32), torch.ones(2) * 0.9]
    columns += [torch.zeros(2), *more]
    return torch.randn(2, 40, device=DEVICE), *(c.to(DEVICE) for c in columns)


def drafted(rule: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    batch = random_batch(0, [4, 3], 5)
    tokens, parents, cu_nodes, keys, positions, p = (
        x.to(DEVICE)
        for x in (
            batch.draft_tokens,
            batch.parents,
            batch.cu_nodes,
            batch.keys,
            batch.positions,
            batch.p.float(),
        )
    )
    if rule == "greedy":
        return verify_greedy, (p.argmax(1), tokens, parents, cu_nodes, 4)

    if rule == "typical":
        return verify_typical, (p, tokens, parents, cu_nodes, keys, positions, 0.3, 0.3, 4)
    verify = {"tree": verify_tree, "traversal": verify_traversal}[rule]

    def run(p: Tensor, q: Tensor) -> Any:
        return verify(p, q, tokens, parents, cu_nodes, keys, positions, True, max_depth=4)

    return run, (p, batch.q.float().to(DEVICE))


def moved() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    storage = torch.randn(2, 2, 3, 2, BLOCK_SIZE, 8, device=DEVICE)
    slots = torch.tensor([[5, 9, -1], [40, 41, 42]], device=DEVICE)
    return compact_kv, (storage, slots, slots - (slots >= 0).long())


CASES: dict[str, Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    "silu_mul": lambda: (silu_mul, (torch.randn(3, 32, device=DEVICE),)),
    "rms_norm": lambda: (rms_norm, (torch.randn(4, 16, device=DEVICE), _ones(16), 1e-5)),
    "add_rms_norm": lambda: (add_rms_norm, (*torch.randn(2, 4, 16, device=DEVICE), _ones(16), 0.1)),
    "rope": lambda: (
        rope,
        (
            *torch.randn(2, 3, 4, 16, device=DEVICE),
            *torch.randn(2, 9, 8, device=DEVICE),
            torch.tensor([0, 8, 3], dtype=torch.int32, device=DEVICE),
        ),
    ),
    "kv_store": stored,
    "branch_attention": attention,
    "merge_states": lambda: (
        merge_states,
        (torch.randn(3, 2, 4, 16, device=DEVICE), torch.randn(3, 2, 4, device=DEVICE)),
    ),
    "copy_blocks": lambda: (
        lambda storage: copy_blocks(storage, [(0, 2)]),
        (torch.randn(2, 2, 3, 2, 8, device=DEVICE),),
    ),
    "logit_stats": lambda: (logit_stats, (torch.randn(3, 50, device=DEVICE),)),
    "sample": lambda: (sample, filtered(torch.rand(2, dtype=torch.float64))),
    "probabilities": lambda: (probabilities, filtered()),
    "verify_tree": lambda: drafted("tree"),
    "verify_greedy": lambda: drafted("greedy"),
    "verify_traversal": lambda: drafted("traversal"),
    "verify_typical": lambda: drafted("typical"),
    "compact_kv": moved,
}


def _ones(n: int) -> Tensor:
    return torch.ones(n, device=DEVICE)


class Recorder(TorchDispatchMode):
    """Calls of our own operators, as (operator, copies of the arguments)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE:
            copies = torch.utils._pytree.tree_map_only(Tensor, _copy, args)
            self.calls.append((func, copies))
        return func(*args, **(kwargs or {}))


def _copy(x: Tensor) -> Tensor:
    """With its strides."""
    copy = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return copy.copy_(x)


def registered() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {n.partition("::")[2].partition(".")[0] for n in names if n.startswith(NAMESPACE + "::")}


def calls_of(name: str) -> list[tuple[Any, tuple[Any, ...]]]:
    function, arguments = CASES[name]()
    with Recorder() as recorder:
        function(*arguments)
    return recorder.calls


@pytest.mark.parametrize("name", CASES)
def test_the_schema_says_what_is_written(name):
    [(operator, arguments)] = calls_of(name)
    torch.library.opcheck(
        operator,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"),
    )


def test_every_operator_is_tried():
    assert {calls_of(name)[0][0]._opname for name in CASES} == registered()


@pytest.mark.parametrize(
    "name", ["silu_mul", "add_rms_norm", "rope", "kv_store", "sample", "probabilities"]
)
def test_compiled_whole(name):
    """One graph without breaks, the same numbers, also those written into the arguments."""
    function, arguments = CASES[name]()
    twins = tuple(_copy(x) if isinstance(x, Tensor) else x for x in arguments)
    expected = function(*arguments)
    torch._dynamo.reset()
    out = torch.compile(function, backend="aot_eager", fullgraph=True)(*twins)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    for mine, theirs in zip(twins, arguments):
        if isinstance(mine, Tensor):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
