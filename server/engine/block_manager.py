"""BlockManager: which blocks of the KV cache are free and which sequence owns the others. Integers only."""

from __future__ import annotations

from collections.abc import Iterable


class BlockManager:
    """Every block is either free or in exactly one block table."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: block 0 goes out first

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence owns."""
        return len(self._free)

    def grow(self, block_table: list[int], num_tokens: int) -> bool:
        """Lengthen the table until it holds `num_tokens`. False, and nothing changed, if blocks are short."""
        num_missing = -(-num_tokens // self.block_size) - len(block_table)
        if num_missing > len(self._free):
            return False
        for _ in range(num_missing):
            block_table.append(self._free.pop())
        return True

    def release(self, block_table: list[int]) -> None:
        """Take all blocks of the table back; the table is empty afterwards."""
        self._free.extend(reversed(block_table))
        block_table.clear()

    def check_integrity(self, block_tables: Iterable[list[int]]) -> None:
        """Raise `AssertionError` unless each block is free or in exactly one of these tables."""
        held = [*self._free, *(block for table in block_tables for block in table)]
        if sorted(held) != list(range(self.num_blocks)):
            raise AssertionError(f"blocks lost, doubled or foreign: {len(held)} held of {self.num_blocks}")
