"""Blocks: found by what they hold, shared while they are held, given up in the right order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.engine.block_manager import BlockManager

BLOCK_SIZE = 4


def fill(blocks: BlockManager, token_ids: range, tenant: int = 0) -> list[int]:
    """A table that holds these tokens, its full blocks sealed."""
    table: list[int] = []
    found = blocks.find(tenant, token_ids, len(token_ids))
    assert blocks.start(table, found, len(token_ids), 0)
    for index in range(len(found), len(token_ids) // BLOCK_SIZE):
        blocks.seal(table, index, tenant, token_ids)
    return table


def test_a_prefix_is_found_in_whole_blocks() -> None:
    blocks = BlockManager(8, BLOCK_SIZE)
    table = fill(blocks, range(10))
    assert blocks.find(0, range(10), 10) == table[:2]
    assert blocks.find(0, range(10), 7) == table[:1]
    assert blocks.find(0, range(3), 3) == []
    assert blocks.find(0, [0, 1, 2, 3, 9, 9, 9, 9], 8) == table[:1]


def test_the_same_tokens_after_another_prefix_are_another_block() -> None:
    blocks = BlockManager(8, BLOCK_SIZE)
    fill(blocks, range(8))
    assert blocks.find(0, range(4, 8), 4) == []


def test_tenants_share_nothing() -> None:
    blocks = BlockManager(8, BLOCK_SIZE)
    table = fill(blocks, range(8), tenant=1)
    assert blocks.find(0, range(8), 8) == []
    assert blocks.find(1, range(8), 8) == table


def test_a_released_prefix_is_found_again_and_shared() -> None:
    blocks = BlockManager(8, BLOCK_SIZE)
    table = fill(blocks, range(9))
    held = list(table)
    blocks.release(table)
    assert (blocks.num_free_blocks, blocks.num_cached_blocks) == (8, 2)
    first, second = fill(blocks, range(9)), fill(blocks, range(9))
    assert first[:2] == second[:2] == held[:2]
    assert first[2] != second[2], "what is not full is nobody else's"
    assert blocks.num_free_blocks == 4
    blocks.check_integrity([first, second])


def test_two_that_fill_the_same_block_end_with_one() -> None:
    blocks = BlockManager(8, BLOCK_SIZE)
    first: list[int] = []
    second: list[int] = []
    for table in (first, second):
        assert blocks.start(table, [], 8, 0)
    for index in range(2):
        for table in (first, second):
            blocks.seal(table, index, 0, range(8))
    assert first == second
    assert blocks.num_free_blocks == 6
    blocks.check_integrity([first, second])


def test_the_least_recently_used_leaf_goes_first() -> None:
    blocks = BlockManager(6, BLOCK_SIZE)
    old, new = fill(blocks, range(12)), fill(blocks, range(100, 112))
    for table in (old, new):
        blocks.release(table)
    blocks.release(fill(blocks, range(8)))  # the old one's first two are used again
    for expected in ([8, 12], [8, 8], [8, 4], [8, 0], [4, 0], [0, 0]):
        table = []
        assert blocks.grow(table, BLOCK_SIZE)
        found = [len(blocks.find(0, range(start, start + 12), 12)) * BLOCK_SIZE for start in (0, 100)]
        assert found == expected
        blocks._free.clear()  # the block is not given back


def test_what_is_not_sound_is_not_found_again() -> None:
    blocks = BlockManager(8, BLOCK_SIZE)
    sound = fill(blocks, range(6))
    spoilt = fill(blocks, range(16))
    assert spoilt[:1] == sound[:1]
    blocks.release(spoilt, is_sound=False)
    assert blocks.find(0, range(16), 16) == sound[:1], "others hold that one"
    blocks.check_integrity([sound])


def test_a_start_that_does_not_fit_changes_nothing() -> None:
    blocks = BlockManager(4, BLOCK_SIZE)
    blocks.release(fill(blocks, range(8)))
    found = blocks.find(0, range(16), 15)
    table: list[int] = []
    assert not blocks.start(table, found, 17, 0)
    assert not blocks.start(table, found, 16, 1)
    assert (table, blocks.num_free_blocks, blocks.num_cached_blocks) == ([], 4, 2)
    assert blocks.start(table, found, 16, 0)
    assert not blocks.grow(table, 17)
    blocks.check_integrity([table])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: b._free.pop(), "lost"),
        (lambda b: b._free.append(0), "doubled"),
        (lambda b: b._num_owners.__setitem__(1, 2), "number of owners"),
        (lambda b: b._block_of.clear(), "do not find each other"),
        (lambda b: b._num_children.__setitem__(2, 3), "another number of followers"),
        (lambda b: b._forget(0), "cannot be found"),
    ],
)
def test_the_integrity_check_sees_a_fault(spoil: Callable[[BlockManager], object], message: str) -> None:
    blocks = BlockManager(8, BLOCK_SIZE)
    table = fill(blocks, range(10))
    blocks.check_integrity([table])
    spoil(blocks)
    with pytest.raises(AssertionError, match=message):
        blocks.check_integrity([table])
