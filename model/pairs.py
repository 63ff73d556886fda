"""Which rows of a step meet which keys, for attention in plain torch (see attention.py).

Everything here is integers, laid out once for a step and used by every layer. Knows nothing of the mask.

Attention is cut into *pairs* of a query tile (up to QUERY_TILE consecutive rows of one sequence) and a key
tile (KEY_TILE positions, counted from 0). Every pair has the same shape, so that a row's bits depend neither
on how many rows its sequence brings nor on who else is there. Pairs are ordered by key tile, and within it
by query tile, the tiles with the longest context first; so the query tiles that reach key tile j are a
prefix of those that reach key tile j - 1, and `num_reaching` is all that merging them needs:

    key tile   0          1        2
    pair       a b c d    a b c    a          num_reaching = [4, 3, 1]

Where queries see a window of keys only, a query tile's key tiles are counted from the first that any of its
rows sees. Whether a tile that a row sees nothing of is there does not change the row's bits: it adds zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.interface import StepItem
from model.kv_cache import BLOCK_SIZE, KEY_TILE

QUERY_TILE = 4  # rows: the fewest for which batched products were seen to keep a row's bits
BLOCKS_PER_TILE = KEY_TILE // BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class QueryTile:
    """Consecutive rows of one sequence: `first_row` within the batch, `first_position` in the sequence."""

    first_row: int
    first_position: int
    num_rows: int
    block_table: Sequence[int]

    def key_tiles(self, window: int | None) -> range:
        """The key tiles that its rows look at: from the first row's first to the last row's last."""
        first = 0 if window is None else max(0, self.first_position - window + 1)
        last = self.first_position + self.num_rows - 1
        return range(first // KEY_TILE, last // KEY_TILE + 1)


@dataclass(frozen=True, slots=True)
class PairGroup:
    """Pairs that are computed in one go."""

    num_reaching: list[int]  # [j]: how many of this group's query tiles have a j-th key tile
    rows: Tensor  # [num_query_tiles, QUERY_TILE] the batch's row at each place; short tiles repeat their last
    query_positions: Tensor  # [num_query_tiles, QUERY_TILE]
    pair_query: Tensor  # [num_pairs] the query tile of each pair
    pair_start: Tensor  # [num_pairs] the first key position of each pair
    pair_blocks: Tensor  # [num_pairs * BLOCKS_PER_TILE] the blocks of its keys
    out_rows: Tensor  # [num_rows] the batch's rows that this group computes
    out_places: Tensor  # [num_rows] where each of them stands in `rows.flatten()`

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        pairs = (self.pair_query, self.pair_start, self.pair_blocks)
        return self.rows, self.query_positions, *pairs, self.out_rows, self.out_places

    def key_positions(self) -> Tensor:
        """Of each pair: [num_pairs, KEY_TILE]."""
        return self.pair_start[:, None] + torch.arange(KEY_TILE, device=self.pair_start.device)


@dataclass(frozen=True, slots=True)
class PairLayout:
    """Where a step's rows go in the cache, and its pairs."""

    slots: Tensor  # [num_tokens] where in the cache each row's key and value go
    groups: dict[int | None, list[PairGroup]]  # by the window of keys that a query sees
    is_fixed: bool  # whether all shapes are known beforehand

    def tensors(self) -> Iterator[Tensor]:
        """All that depends on the step."""
        yield self.slots
        for groups in self.groups.values():
            for group in groups:
                yield from group.tensors()

    @classmethod
    def build(
        cls,
        items: Sequence[StepItem],
        max_pairs: int,
        device: torch.device,
        windows: Iterable[int | None],
        num_key_tiles: int | None = None,
    ) -> PairLayout:
        """Lay out a step, once for each window that a layer has.

        A group has at most `max_pairs` pairs, unless one query tile alone has more. With `num_key_tiles`,
        each query tile has so many key tiles, if it sees no more: the tensors' shapes depend on the number
        of query tiles alone.
        """
        slots: list[int] = []
        tiles: list[QueryTile] = []
        for item in items:
            tiles.extend(_query_tiles(item, len(slots)))
            for position in range(item.start, item.start + len(item.token_ids)):
                slots.append(item.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
        return cls(
            slots=torch.tensor(slots, device=device),
            groups={
                window: _pair_groups(tiles, window, max_pairs, device, num_key_tiles)
                for window in dict.fromkeys(windows)
            },
            is_fixed=num_key_tiles is not None,
        )


def _query_tiles(item: StepItem, first_row: int) -> Iterator[QueryTile]:
    for offset in range(0, len(item.token_ids), QUERY_TILE):
        num_rows = min(QUERY_TILE, len(item.token_ids) - offset)
        yield QueryTile(first_row + offset, item.start + offset, num_rows, item.block_table)


def _pair_groups(
    tiles: list[QueryTile],
    window: int | None,
    max_pairs: int,
    device: torch.device,
    num_key_tiles: int | None,
) -> list[PairGroup]:
    """The query tiles with their key tiles, those with the most first, in groups."""
    seen = [(tile, tile.key_tiles(window)) for tile in tiles]
    if num_key_tiles is not None:
        seen = [(tile, range(keys.start, keys.start + num_key_tiles)) for tile, keys in seen]
    reaching = sorted(seen, key=lambda pair: -len(pair[1]))
    return [_pair_group(group, device) for group in _grouped(reaching, max_pairs)]


def _grouped(
    reaching: list[tuple[QueryTile, range]], max_pairs: int
) -> Iterator[list[tuple[QueryTile, range]]]:
    group: list[tuple[QueryTile, range]] = []
    num_pairs = 0
    for tile, key_tiles in reaching:
        if group and num_pairs + len(key_tiles) > max_pairs:
            yield group
            group, num_pairs = [], 0
        group.append((tile, key_tiles))
        num_pairs += len(key_tiles)
    if group:
        yield group


def _pair_group(reaching: list[tuple[QueryTile, range]], device: torch.device) -> PairGroup:
    """Query tiles and their key tiles; those that have most come first."""
    tiles = [tile for tile, _ in reaching]
    places = [[min(place, tile.num_rows - 1) for place in range(QUERY_TILE)] for tile in tiles]
    num_reaching: list[int] = []
    pair_query: list[int] = []
    pair_start: list[int] = []
    pair_blocks: list[int] = []
    for j in range(len(reaching[0][1])):
        still = [(tile, key_tiles[j]) for tile, key_tiles in reaching if len(key_tiles) > j]
        num_reaching.append(len(still))
        pair_query.extend(range(len(still)))
        for tile, key_tile in still:
            pair_start.append(key_tile * KEY_TILE)
            blocks = tile.block_table[key_tile * BLOCKS_PER_TILE : (key_tile + 1) * BLOCKS_PER_TILE]
            pair_blocks.extend(blocks)
            # The table may end within the tile, or before it. Any block will do: what lies there is masked.
            pair_blocks.extend([tile.block_table[0]] * (BLOCKS_PER_TILE - len(blocks)))
    return PairGroup(
        num_reaching=num_reaching,
        rows=torch.tensor(
            [[t.first_row + p for p in row] for t, row in zip(tiles, places, strict=True)], device=device
        ),
        query_positions=torch.tensor(
            [[t.first_position + p for p in row] for t, row in zip(tiles, places, strict=True)], device=device
        ),
        pair_query=torch.tensor(pair_query, device=device),
        pair_start=torch.tensor(pair_start, device=device),
        pair_blocks=torch.tensor(pair_blocks, device=device),
        out_rows=torch.tensor([t.first_row + p for t in tiles for p in range(t.num_rows)], device=device),
        out_places=torch.tensor(
            [i * QUERY_TILE + p for i, t in enumerate(tiles) for p in range(t.num_rows)], device=device
        ),
    )
