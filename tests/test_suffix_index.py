"""The suffix index answers as the oracle does, which looks at everything, and stays in bounds."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_decode import _C
from tests.suffix_oracle import Draft, SuffixOracle

LENGTHS = (1, 2, 4, 8)


def made(max_tokens=1000, context_lengths=LENGTHS, max_continuations=64) -> _C.SuffixIndex:
    return _C.SuffixIndex(max_tokens, context_lengths, max_continuations)


def stream_of(index: _C.SuffixIndex, tokens) -> int:
    stream = index.open()
    extend(index, stream, tokens)
    return stream


def extend(index: _C.SuffixIndex, stream: int, tokens) -> None:
    [length] = index.num_tokens([stream])
    index.follow([stream], [length + len(tokens)], [tokens])


def truncate(index: _C.SuffixIndex, stream: int, num_tokens: int) -> None:
    index.follow([stream], [num_tokens], [[]])


def draft(index, stream, max_nodes=63, min_prob=0.0, factor=4.0, offset=0.0, unseen=0.0) -> Draft:
    """Without the score, which the index keeps for itself."""
    [found] = index.draft([stream], [max_nodes], min_prob, factor, offset, unseen)
    columns = (found.tokens, found.parents, found.probabilities, found.counts)
    assert {len(column) for column in columns} == {len(found)} and len(found) <= max_nodes
    return Draft(*(column.tolist() for column in columns), found.match_length)


def expected(oracle: SuffixOracle, stream: int, *limits) -> Draft:
    draft = oracle.draft(stream, *limits)
    draft.score = 0.0
    return draft


# ---- against the oracle ----


class Both:
    """The index and the oracle, to which the same things happen."""

    def __init__(self, *arguments) -> None:
        self.index = _C.SuffixIndex(*arguments)
        self.oracle = SuffixOracle(*arguments)

    @property
    def streams(self) -> list[int]:
        return list(self.oracle.streams)

    def num_tokens(self, stream: int) -> int:
        return self.oracle.streams[stream].num_tokens

    def do(self, name: str, *arguments):
        moved = {"extend": extend, "truncate": truncate}.get(name)
        if moved is None:
            done = getattr(self.index, name)(*arguments)
        else:
            done = moved(self.index, *arguments)
        assert done == getattr(self.oracle, name)(*arguments)
        return done

    def check(self, stream: int, *limits) -> Draft:
        answer = draft(self.index, stream, *limits)
        assert answer == expected(self.oracle, stream, *limits)
        return answer

    def check_state(self) -> None:
        assert self.index.num_stored == len(self.oracle.stored)
        assert self.index.num_streams == len(self.streams)
        for stream in self.streams:
            assert self.index.num_tokens([stream]) == [self.num_tokens(stream)]


indexes = st.tuples(
    st.sampled_from([1, 2, 5, 17, 40, 1000]),
    st.sampled_from([(1,), (1, 2, 4), (1, 2, 3, 4, 5), (2, 3, 7)]),
    st.sampled_from([1, 2, 5, 64]),
)
limits = st.tuples(
    st.sampled_from([0, 1, 3, 12, 63]),
    st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 20.0]),
    st.sampled_from([-1.0, 0.0, 0.5, 3.0]),
    st.sampled_from([0.0, 1.0, 1.5]),
)


@settings(max_examples=300)
@given(indexes, st.integers(2, 4), st.data())
def test_same_answers_as_the_oracle(arguments, alphabet, data):
    both = Both(*arguments)
    tokens = st.lists(st.integers(0, alphabet - 1), max_size=12)
    both.do("extend", both.do("open"), data.draw(tokens))
    for _ in range(data.draw(st.integers(1, 25))):
        actions = ["open", "fork", "extend", "extend", "repeat", "truncate", "release"]
        action = data.draw(st.sampled_from(actions)) if both.streams else "open"
        if action == "open":
            both.do("open")
            continue
        stream = data.draw(st.sampled_from(both.streams))
        length = both.num_tokens(stream)
        if action == "fork":
            both.do("fork", stream, length - data.draw(st.integers(0, min(3, length))))
        elif action == "extend":
            both.do("extend", stream, data.draw(tokens))
        elif action == "repeat":
            period = data.draw(st.lists(st.integers(0, alphabet - 1), min_size=1, max_size=3))
            both.do("extend", stream, period * data.draw(st.integers(1, 6)))
        elif action == "truncate":
            both.do("truncate", stream, data.draw(st.integers(0, length)))
        else:
            both.do("release", stream)
        both.check_state()
        if both.streams:
            both.check(data.draw(st.sampled_from(both.streams)), *data.draw(limits))
    for stream in both.streams:
        both.check(stream, 63, 0.0, 4.0, 0.0, 1.0)


@pytest.mark.parametrize("alphabet", [2, 50, 5000])
def test_same_answers_when_the_tables_have_grown(alphabet):
    """Enough contexts to grow every table, and then as many evictions."""
    rng = random.Random(alphabet)
    both = Both(1500, LENGTHS, 64)
    streams = [both.do("open")]
    found = 0
    for _ in range(250):
        stream = rng.choice(streams)
        action = rng.choice(["fork", "truncate", "extend", "extend", "release"])
        if action == "fork":
            length = both.num_tokens(stream)
            streams.append(both.do("fork", stream, length - rng.randint(0, min(20, length))))
        elif action == "truncate":
            length = both.num_tokens(stream)
            both.do("truncate", stream, rng.randint(length // 2, length))
        elif action == "release" and len(streams) > 1:
            both.do("release", stream)
            streams.remove(stream)
        both.do("extend", rng.choice(streams), rng.choices(range(alphabet), k=rng.randint(1, 50)))
        found += len(both.check(rng.choice(streams), 63, 0.0, 4.0, 0.0, 1.0).tokens)
    both.check_state()
    assert found > 100


# ---- what is counted ----


def test_an_index_without_tokens_drafts_nothing():
    index = made()
    stream = index.open()
    assert draft(index, stream) == Draft()
    extend(index, stream, [])
    assert draft(index, stream) == Draft()
    extend(index, stream, [3])
    assert draft(index, stream) == Draft()  # nothing has followed it yet


def test_the_longest_context_is_followed():
    index = made()
    stream_of(index, [1, 2, 3, 4, 5])
    stream_of(index, [9, 2, 6])
    assert draft(index, stream_of(index, [1, 2])) == Draft(
        [3, 4, 5], [-1, 0, 1], [1.0] * 3, [1] * 3, 2
    )


def test_a_shorter_context_is_tried_where_the_longest_gives_little():
    index = made()
    stream_of(index, [7, 8, 1, 2, 3, 4])
    for last in (11, 12, 13):
        stream_of(index, [5, 7, 8, last])
    for _ in range(20):
        stream_of(index, [6, 8, 1, 2, 3, 4])
    long, short = draft(index, stream_of(index, [5, 7, 8]), min_prob=0.5), [1, 2, 3, 4]
    assert (long.tokens, long.match_length) == (short, 1)


def test_probabilities_are_the_frequencies_of_what_followed():
    index = made()
    for tokens in ([1, 2], [1, 3], [1, 3], [1, 3, 4], [1, 3, 5], [1]):
        stream_of(index, tokens)
    assert draft(index, stream_of(index, [1])) == Draft(
        [3, 4, 5, 2], [-1, 0, 0, -1], [4 / 5, 1 / 2, 1 / 2, 1 / 5], [4, 1, 1, 1], 1
    )


def test_the_unseen_has_its_part():
    index = made()
    for tokens in ([1, 2, 3], [1, 2, 3], [1, 5, 6], [9, 4, 1, 7, 8]):
        stream_of(index, tokens)
    tree = draft(index, stream_of(index, [1]), unseen=1.5)
    # 4 continuations with 3 tokens, 2 with one, then 1 with one
    first, second = 4 + 1.5 * 3 / 1**0.5, 1.5 * 1 / 2**0.5
    assert dict(zip(tree.tokens, tree.probabilities)) == {
        2: 2 / first,
        5: 1 / first,
        7: 1 / first,
        3: 2 / (2 + second),
        6: 1 / (1 + second),
        8: 1 / (1 + second),
    }


def test_equal_tokens_stand_in_order():
    index = made()
    for token in (9, 2, 30, 4):
        stream_of(index, [1, token])
    assert draft(index, stream_of(index, [1])).tokens == [2, 4, 9, 30]


def test_a_shared_prefix_counts_once():
    index = made()
    prompt = stream_of(index, [1, 2, 7, 1, 2, 7, 1, 3])
    kids = [index.fork(prompt, 8) for _ in range(10)]
    assert index.num_stored == 8
    for kid in kids:
        extend(index, kid, [1])
    tree = draft(index, kids[0], factor=1.0)
    assert (tree.tokens, tree.counts, tree.match_length) == ([2, 3], [2, 1], 1)
    extend(index, prompt, [1])  # ten siblings have gone on from its end
    truncate(index, prompt, 8)
    assert draft(index, prompt, factor=0.0, offset=1.0) == Draft([1], [-1], [1.0], [10], 8)


def test_siblings_count_one_by_one_after_the_fork():
    index = made()
    prompt = stream_of(index, [1, 2])
    kids = [index.fork(prompt, 2) for _ in range(3)]
    for kid, token in zip(kids, [5, 5, 6]):
        extend(index, kid, [token, 8])
    assert draft(index, prompt).counts[:2] == [2, 2]
    assert draft(index, index.fork(kids[0], 2)) == draft(index, prompt)


def test_drafts_end_where_a_sequence_ends():
    index = made()
    for _ in range(2):
        index.release(stream_of(index, [1, 2, 3]))
        stream_of(index, [5, 6])
    assert draft(index, stream_of(index, [1])).tokens == [2, 3]


def test_the_newest_continuations_are_counted():
    index = made(max_continuations=3)
    for token in (7, 7, 7, 7, 8, 9, 8):
        stream_of(index, [1, token])
    tree = draft(index, stream_of(index, [1]))
    assert (tree.tokens, tree.counts) == ([8, 9], [2, 1])


# ---- the tree's limits ----


def test_limits_of_a_tree():
    index = made()
    for tokens in ([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6, 6], [1, 7, 8, 9]):
        stream_of(index, tokens)
    stream = stream_of(index, [1])
    whole = draft(index, stream)
    assert whole.tokens == [2, 3, 7, 6, 4, 5, 8, 6, 9]
    for max_nodes in range(10):
        assert draft(index, stream, max_nodes=max_nodes).tokens == whole.tokens[:max_nodes]
    assert draft(index, stream, min_prob=0.5).tokens == [2, 3]
    assert draft(index, stream, min_prob=0.51).tokens == [2]
    assert draft(index, stream, min_prob=1.0).tokens == []
    assert draft(index, stream, factor=1.0).tokens == [2, 7]
    assert draft(index, stream, factor=1.0, offset=1.0).tokens == [2, 3, 7, 6, 8]
    assert draft(index, stream, factor=0.9).tokens == []
    assert draft(index, stream, offset=-9.0).tokens == []


@pytest.mark.parametrize("period", [1, 2, 3, 50])
def test_periodic_streams(period):
    index = made(20_000)
    tokens = list(range(period)) * (20_000 // period)
    stream = stream_of(index, tokens)
    wanted = [(tokens[-1] + i) % period for i in range(1, 33)]
    tree = draft(index, stream)
    assert (tree.tokens, tree.match_length) == (wanted, 8)
    assert tree.parents == list(range(-1, 31)) and set(tree.probabilities) == {1.0}


# ---- rolled back, released, evicted ----


def test_rolled_back_tokens_are_not_counted():
    index = made()
    stream = stream_of(index, [1, 2, 3, 4, 1, 5, 6])
    truncate(index, stream, 5)
    assert draft(index, stream).tokens == [2, 3, 4, 1]
    truncate(index, stream, 1)
    assert (index.num_stored, index.num_tokens([stream]), draft(index, stream)) == (1, [1], Draft())


def test_a_rollback_leaves_what_others_have():
    index = made()
    stream = stream_of(index, [1, 2, 3, 4])
    child = index.fork(stream, 3)
    truncate(index, stream, 1)
    assert (index.num_stored, draft(index, stream).tokens) == (3, [2, 3])
    index.release(child)  # released tokens are remembered ...
    assert draft(index, stream).tokens == [2, 3]
    truncate(index, index.fork(stream, 0), 0)
    whole = stream_of(index, [8, 9])
    truncate(index, whole, 0)  # ... unless they were taken back before
    index.release(whole)
    assert draft(index, stream_of(index, [8])) == Draft()


def test_the_oldest_tokens_go_first():
    index = made(8)
    for first in (10, 20, 30):
        index.release(stream_of(index, [first, first + 1]))
    left = []
    for first in (10, 20, 30):  # each fills one more place
        left.append(draft(index, stream_of(index, [first])).tokens)
    assert (left, index.num_stored) == ([[11], [21], [31]], 8)
    assert draft(index, stream_of(index, [20])).tokens == [21]
    assert draft(index, stream_of(index, [20])).tokens == []
    assert draft(index, stream_of(index, [30])).tokens == [31]


def test_a_stream_goes_on_when_its_tokens_are_gone():
    index = made(10)
    idle = stream_of(index, [1, 2])
    child = index.fork(idle, 1)
    stream_of(index, [7] * 7 + [1, 2, 5])
    assert draft(index, idle).tokens == [5]  # its context is kept
    assert draft(index, child).tokens == [2, 5]
    extend(index, idle, [6])
    truncate(index, idle, 2)
    assert (index.num_tokens([idle]), draft(index, idle)) == ([2], Draft())
    extend(index, idle, [7])
    assert draft(index, idle).tokens[:1] == [7]


def test_memory_is_bounded():
    rng = random.Random(0)
    index = made(1000, (1, 2, 4), 64)
    sizes = []
    for _ in range(50):
        stream = stream_of(index, [rng.randrange(100) for _ in range(400)])
        truncate(index, index.fork(stream, 300), 100)
        index.release(stream)
        sizes.append(index.num_bytes)
        assert index.num_stored <= 1000
    assert sizes[-1] == sizes[10] < 1000 * 300


def seconds(call, *arguments) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


@pytest.mark.parametrize("alphabet", [1, 2, 1 << 20])
def test_a_call_costs_the_same_in_a_large_index(alphabet):
    """Up to caches and whoever else uses the machine: one that searched would take 100 times."""
    rng = random.Random(alphabet)
    index = made(1 << 18)
    stream = index.open()
    extending, drafting = [], []
    for num_tokens in (1000, 150_000):
        extend(index, stream, rng.choices(range(alphabet), k=num_tokens))
        pieces = [rng.choices(range(alphabet), k=100) for _ in range(20)]
        extending.append(min(seconds(extend, index, stream, piece) for piece in pieces))
        limits = (0.0, 4.0, 0.0, 1.0)
        drafting.append(min(seconds(index.draft, [stream], [63], *limits) for _ in range(20)))
    assert extending[1] < 20 * extending[0]
    assert drafting[1] < 20 * drafting[0]


# ---- bad input ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (1,), 1), "max_tokens must be positive, got 0"),
        ((1, (), 1), "there must be context lengths, got 0"),
        ((1, (0,), 1), "context_lengths must be positive and rise, got 0"),
        ((1, (2, 2), 1), "context_lengths must be positive and rise, got 2"),
        ((1, (1025,), 1), "a context may have 1024 tokens, got 1025"),
        ((1 << 30, (1, 2, 3), 1), "max_tokens is too large .* got 1073741824"),
        ((1, (1,), 0), "max_continuations must be positive, got 0"),
    ],
)
def test_bad_indexes(arguments, message):
    with pytest.raises(ValueError, match=message):
        _C.SuffixIndex(*arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("follow", ([7], [1], [[1]]), "stream 7 is not open"),
        ("draft", ([7], [1], 0.1, 1.0, 0.0, 0.0), "stream 7 is not open"),
        ("num_tokens", ([7],), "stream 7 is not open"),
        ("release", (-1,), "stream -1 is not open"),
        ("follow", ([0], [5], [[1, -5]]), "got -5"),
        ("follow", ([0], [4], [[1 << 31]]), "got 2147483648"),
        ("fork", (0, 4), "stream of 3 tokens has no prefix of 4"),
        ("follow", ([0], [-1], [[]]), "stream of 3 tokens has no prefix of -1"),
        ("follow", ([0], [5], [[1]]), "stream of 3 tokens does not grow to 5 with 1"),
        ("follow", ([0], [4], []), "a number of tokens and the newest of them a stream"),
        ("draft", ([0], [], 0.1, 1.0, 0.0, 0.0), "max_nodes a stream"),
        ("draft", ([0], [64], 0.1, 1.0, 0.0, 0.0), "max_nodes must be from 0 to 63, got 64"),
        ("draft", ([0], [-1], 0.1, 1.0, 0.0, 0.0), "max_nodes .* got -1"),
        ("draft", ([0], [1], 1.5, 1.0, 0.0, 0.0), "min_prob .* got 1.5"),
        ("draft", ([0], [1], float("nan"), 1.0, 0.0, 0.0), "min_prob .* got .?nan"),
        ("draft", ([0], [1], 0.1, -1.0, 0.0, 0.0), "factor .* got -1"),
        ("draft", ([0], [1], 0.1, 1.0, float("inf"), 0.0), "offset .* got inf"),
        ("draft", ([0], [1], 0.1, 1.0, 0.0, -2.0), "unseen .* got -2"),
    ],
)
def test_bad_calls_change_nothing(name, arguments, message):
    index = made()
    stream = stream_of(index, [1, 2, 1])
    with pytest.raises(ValueError, match=message):
        getattr(index, name)(*arguments)
    assert (index.num_stored, index.num_streams, index.num_tokens([stream])) == (3, 1, [3])
    assert draft(index, stream).tokens == [2, 1]
