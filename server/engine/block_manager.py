"""BlockManager: who holds which block of the KV cache, and which full ones can be found again. Integers only.

A block is in one of three places:

    free      in no table, and holds nothing that could be used again
    owned     in the block tables of one or more sequences
    cached    in no table, but full, and found again by its tokens until its place is needed

A full block is found by its key: what comes before it, and its own token ids. What comes before is the block
before it or, at the start of a sequence, the tenant as a negative number. So a key stands for a whole prefix,
and finding it compares token ids, not hashes. Whole blocks only: a block that is shared is never written.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

Key = tuple[int, tuple[int, ...]]


class BlockManager:
    """Gives blocks out and takes them back, and remembers what they hold."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: block 0 goes out first
        self._num_owners = [0] * num_blocks
        self._num_children = [0] * num_blocks  # blocks whose key begins with this one
        self._key_of: list[Key | None] = [None] * num_blocks
        self._block_of: dict[Key, int] = {}
        # The least recently used first. A table is released from its end and a prefix is used whenever what
        # follows it is, so a block never stands behind the one that it follows: the first is always a leaf.
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be had: free or cached."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that nobody owns and that may be found again."""
        return len(self._cached)

    def find(self, tenant: int, token_ids: Sequence[int], num_tokens: int) -> list[int]:
        """The blocks that hold the longest known prefix of `token_ids[:num_tokens]`. Takes nothing."""
        found: list[int] = []
        before = -1 - tenant
        for end in range(self.block_size, num_tokens + 1, self.block_size):
            block = self._block_of.get((before, tuple(token_ids[end - self.block_size : end])))
            if block is None:
                break
            found.append(block)
            before = block
        return found

    def start(self, block_table: list[int], found: Sequence[int], num_tokens: int, num_spare: int) -> bool:
        """Fill an empty table with what was found and new blocks, until it holds `num_tokens`.

        False, and nothing changed, unless `num_spare` blocks could be had beside them.
        """
        num_new = self._num_blocks_of(num_tokens) - len(found)
        num_revived = sum(not self._num_owners[block] for block in found)
        if num_new + num_revived + num_spare > self.num_free_blocks:
            return False
        for block in found:
            self._own(block)
        block_table.extend(found)
        return self.grow(block_table, num_tokens)

    def grow(self, block_table: list[int], num_tokens: int, num_spare: int = 0) -> bool:
        """Lengthen the table until it holds `num_tokens`.

        False, and nothing changed, unless `num_spare` blocks could be had beside those that it lacks.
        """
        num_missing = self._num_blocks_of(num_tokens) - len(block_table)
        if num_missing <= 0:
            return True
        if num_missing + num_spare > self.num_free_blocks:
            return False
        for _ in range(num_missing):
            block = self._free.pop() if self._free else self._evict()
            self._num_owners[block] = 1
            block_table.append(block)
        return True

    def seal(self, block_table: list[int], index: int, tenant: int, token_ids: Sequence[int]) -> None:
        """The table's block at `index` is full: from now on it can be found.

        If the same tokens after the same prefix are known already, that block takes its place in the table:
        it holds the same bits. Blocks of a table are sealed in their order.
        """
        block = block_table[index]
        before = block_table[index - 1] if index else -1 - tenant
        start = index * self.block_size
        key = (before, tuple(token_ids[start : start + self.block_size]))
        known = self._block_of.setdefault(key, block)
        if known == block:
            self._key_of[block] = key
            if before >= 0:
                self._num_children[before] += 1
        else:
            self._own(known)
            block_table[index] = known
            self._num_owners[block] = 0
            self._free.append(block)

    def release(self, block_table: list[int], *, is_sound: bool = True) -> None:
        """Take the table's blocks back; it is empty afterwards. What is not sound is not kept to be found."""
        for block in reversed(block_table):
            self._num_owners[block] -= 1
            if self._num_owners[block]:
                continue
            if self._key_of[block] is None:
                self._free.append(block)
            elif is_sound or self._num_children[block]:
                self._cached[block] = None
            else:
                self._forget(block)
                self._free.append(block)
        block_table.clear()

    def check_integrity(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Raise `AssertionError` unless every block is in one place, and every count and key is right."""
        owned = Counter(block for table in block_tables for block in table)
        held = [*self._free, *self._cached, *owned]
        if sorted(held) != list(range(self.num_blocks)):
            raise AssertionError(f"blocks lost, doubled or foreign: {len(held)} held of {self.num_blocks}")
        if any(self._num_owners[block] != owned[block] for block in range(self.num_blocks)):
            raise AssertionError("a block has another number of owners than it counts")
        keys = {block: key for block, key in enumerate(self._key_of) if key is not None}
        if {key: block for block, key in keys.items()} != self._block_of or len(keys) != len(self._block_of):
            raise AssertionError("a block and its key do not find each other")
        if any(self._key_of[block] is not None for block in self._free):
            raise AssertionError("a free block can be found")
        if any(self._key_of[block] is None for block in self._cached):
            raise AssertionError("a cached block cannot be found")
        parents = Counter(before for before, _ in keys.values() if before >= 0)
        if any(self._num_children[block] != parents[block] for block in range(self.num_blocks)):
            raise AssertionError("a block has another number of followers than it counts")
        if any(self._key_of[before] is None for before in parents):
            raise AssertionError("a block follows one that cannot be found")

    def _num_blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _own(self, block: int) -> None:
        if not self._num_owners[block]:
            del self._cached[block]
        self._num_owners[block] += 1

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        self._forget(block)
        return block

    def _forget(self, block: int) -> None:
        key = self._key_of[block]
        if key is not None:
            del self._block_of[key]
            self._key_of[block] = None
            if key[0] >= 0:
                self._num_children[key[0]] -= 1
