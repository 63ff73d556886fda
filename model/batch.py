"""One step of many sequences, flattened: which rows there are, and which rows meet which keys.

Everything here is integers, laid out once for a step and used by every layer. Knows nothing of the mask.

Attention is cut into *pairs* of a query tile (up to QUERY_TILE consecutive rows of one sequence) and a key
tile (KEY_TILE positions, counted from 0). Every pair has the same shape, so that a row's bits depend neither
on how many rows its sequence brings nor on who else is there. Pairs are ordered by key tile, and within it
by query tile, the tiles with the longest context first; so the query tiles that reach key tile j are a
prefix of those that reach key tile j - 1, and `num_reaching` is all that merging them needs:

    key tile   0          1        2
    pair       a b c d    a b c    a          num_reaching = [4, 3, 1]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    @property
    def num_key_tiles(self) -> int:
        """How many key tiles its last row looks at."""
        return (self.first_position + self.num_rows - 1) // KEY_TILE + 1


@dataclass(frozen=True, slots=True)
class PairGroup:
    """Pairs that are computed in one go."""

    num_reaching: list[int]  # [j]: how many of this group's query tiles reach key tile j
    rows: Tensor  # [num_query_tiles, QUERY_TILE] the batch's row at each place; short tiles repeat their last
    query_positions: Tensor  # [num_query_tiles, QUERY_TILE]
    pair_query: Tensor  # [num_pairs] the query tile of each pair
    pair_start: Tensor  # [num_pairs] the first key position of each pair
    pair_blocks: Tensor  # [num_pairs * BLOCKS_PER_TILE] the blocks of its keys
    out_rows: Tensor  # [num_rows] the batch's rows that this group computes
    out_places: Tensor  # [num_rows] where each of them stands in `rows.flatten()`


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The rows of one step, in the order of its items."""

    token_ids: Tensor  # [num_tokens]
    positions: Tensor  # [num_tokens]
    slots: Tensor  # [num_tokens] where in the cache each row's key and value go
    groups: list[PairGroup]

    @classmethod
    def build(cls, items: Sequence[StepItem], max_pairs: int, device: torch.device) -> ForwardBatch:
        """Lay out a step. A group has at most `max_pairs` pairs, unless one query tile alone has more."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tiles: list[QueryTile] = []
        for item in items:
            tiles.extend(_query_tiles(item, len(token_ids)))
            token_ids.extend(item.token_ids)
            for position in range(item.start, item.start + len(item.token_ids)):
                positions.append(position)
                slots.append(item.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
        tiles.sort(key=lambda tile: -tile.num_key_tiles)
        return cls(
            token_ids=torch.tensor(token_ids, device=device),
            positions=torch.tensor(positions, device=device),
            slots=torch.tensor(slots, device=device),
            groups=[_pair_group(group, device) for group in _grouped(tiles, max_pairs)],
        )


def _query_tiles(item: StepItem, first_row: int) -> Iterator[QueryTile]:
    for offset in range(0, len(item.token_ids), QUERY_TILE):
        num_rows = min(QUERY_TILE, len(item.token_ids) - offset)
        yield QueryTile(first_row + offset, item.start + offset, num_rows, item.block_table)


def _grouped(tiles: list[QueryTile], max_pairs: int) -> Iterator[list[QueryTile]]:
    group: list[QueryTile] = []
    num_pairs = 0
    for tile in tiles:
        if group and num_pairs + tile.num_key_tiles > max_pairs:
            yield group
            group, num_pairs = [], 0
        group.append(tile)
        num_pairs += tile.num_key_tiles
    if group:
        yield group


def _pair_group(tiles: list[QueryTile], device: torch.device) -> PairGroup:
    """Tiles come longest context first."""
    places = [[min(place, tile.num_rows - 1) for place in range(QUERY_TILE)] for tile in tiles]
    num_reaching: list[int] = []
    pair_query: list[int] = []
    pair_start: list[int] = []
    pair_blocks: list[int] = []
    for key_tile in range(tiles[0].num_key_tiles):
        reaching = [tile for tile in tiles if tile.num_key_tiles > key_tile]
        num_reaching.append(len(reaching))
        pair_query.extend(range(len(reaching)))
        pair_start.extend([key_tile * KEY_TILE] * len(reaching))
        for tile in reaching:
            blocks = tile.block_table[key_tile * BLOCKS_PER_TILE : (key_tile + 1) * BLOCKS_PER_TILE]
            pair_blocks.extend(blocks)
            # The table may end within the tile. Any block will do: what lies there is masked.
            pair_blocks.extend([blocks[0]] * (BLOCKS_PER_TILE - len(blocks)))
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
