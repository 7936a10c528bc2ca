import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.corpus.shards import BlockOrder, validation_starts
from llmtrain.spec.errors import ConfigError

SIZES = st.tuples(st.integers(1, 40), st.integers(0, 39), st.integers(1, 300))


def order_of(sizes: tuple[int, int, int], seed: int) -> BlockOrder:
    block_len, rest, n_blocks = sizes
    return BlockOrder(
        n_tokens=n_blocks * block_len + 1 + rest % block_len, block_len=block_len, seed=seed
    )


@settings(max_examples=500)
@given(SIZES, st.integers(0, 2**63), st.integers(0, 5))
def test_every_epoch_reads_every_block_once(
    sizes: tuple[int, int, int], seed: int, epoch: int
) -> None:
    order = order_of(sizes, seed)
    n = order.blocks_per_epoch
    assert n == sizes[2]
    starts = order.starts(epoch * n, n)
    np.testing.assert_array_equal(np.sort(starts), np.arange(n) * sizes[0])


@settings(max_examples=500)
@given(SIZES, st.integers(0, 2**63), st.integers(0, 900), st.integers(0, 900))
def test_any_suffix_is_the_tail_of_the_whole(
    sizes: tuple[int, int, int], seed: int, cut: int, length: int
) -> None:
    whole = order_of(sizes, seed).starts(0, cut + length)
    np.testing.assert_array_equal(order_of(sizes, seed).starts(cut, length), whole[cut:])


def test_a_used_order_answers_like_a_fresh_one_in_any_sequence_of_calls() -> None:
    used = BlockOrder(n_tokens=1001, block_len=10, seed=3)
    for first in (250, 0, 99, 512, 100):
        fresh = BlockOrder(n_tokens=1001, block_len=10, seed=3)
        np.testing.assert_array_equal(used.starts(first, 130), fresh.starts(first, 130))


def test_epochs_and_seeds_differ_and_seed_zero_is_a_seed() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        order = BlockOrder(n_tokens=10_001, block_len=10, seed=seed)
        return order.starts(number * 1000, 1000).tolist()

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(2, 0)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(order != sorted(order) for order in orders)


def test_neighbours_in_the_order_are_not_neighbours_in_the_text() -> None:
    starts = BlockOrder(n_tokens=100_001, block_len=10, seed=0).starts(0, 10_000)
    # Independent uniform draws: |distance| averages a third of the range.
    assert np.abs(np.diff(starts)).mean() == pytest.approx(100_000 / 3, rel=0.03)


def philox(key: tuple[int, int], n: int) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011, Random123), counters from 1 as numpy counts."""
    mask = 2**64 - 1
    drawn: list[int] = []
    for block in range(1, n // 4 + 2):
        counter, (key0, key1) = [block, 0, 0, 0], key
        for _ in range(10):
            low, high = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
            counter = [
                (high >> 64) ^ counter[1] ^ key0,
                high & mask,
                (low >> 64) ^ counter[3] ^ key1,
                low & mask,
            ]
            key0, key1 = (key0 + 0x9E3779B97F4A7C15) & mask, (key1 + 0xBB67AE8584CAA73B) & mask
        drawn += counter
    return drawn[:n]


@pytest.mark.parametrize("seed", [0, 17])
def test_the_order_is_the_argsort_of_philox_as_published(seed: int) -> None:
    order = BlockOrder(n_tokens=81, block_len=8, seed=seed)
    for epoch in (0, 3):
        drawn = philox((seed, epoch), 10)
        expected = [8 * block for block in sorted(range(10), key=drawn.__getitem__)]
        assert order.starts(10 * epoch, 10).tolist() == expected


def test_validation_blocks_are_spread_evenly_and_do_not_overlap() -> None:
    starts = validation_starts(n_tokens=10_001, block_len=100, n_blocks=7)
    assert starts.tolist() == [0, 1400, 2800, 4200, 5700, 7100, 8500]
    every = validation_starts(n_tokens=10_001, block_len=100, n_blocks=100)
    np.testing.assert_array_equal(every, np.arange(100) * 100)


def test_too_short_a_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="100 blocks of 100, but 101"):
        validation_starts(n_tokens=10_001, block_len=100, n_blocks=101)
    with pytest.raises(ConfigError, match="holds no block of 100 tokens"):
        BlockOrder(n_tokens=100, block_len=100, seed=0)
    assert BlockOrder(n_tokens=101, block_len=100, seed=0).blocks_per_epoch == 1
