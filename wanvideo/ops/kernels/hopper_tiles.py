"""In which order the Hopper kernel visits tiles of keys: those that hold keys of a frame first, and of them whole ones.

Attention does not depend on the order of keys; sums of a frame do, in few bits, on maxima set by keys outside of it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class TileOrder(NamedTuple):
    """steps [tiles] int32: the tile of each step, or None: in their own order. marked_tiles: how many of them hold keys
    of the frame. partial_step: in which step the last keys come. columns, marked: where the frame's keys are not the
    first ones, for each key [tiles * KEYS] its place among the frame's or -1, and the tiles that hold any, int32."""

    steps: Tensor | None
    marked_tiles: int
    partial_step: int
    columns: Tensor | None = None
    marked: Tensor | None = None


@lru_cache(maxsize=32)
def tile_order(spans: tuple[tuple[int, int], ...], num_keys: int, keys_in_tile: int, device: torch.device) -> TileOrder:
    """spans: see FrameRegions, () without a frame. Raises: ValueError for a span beyond the last key."""
    tiles = -(-num_keys // keys_in_tile)
    if not spans:
        return TileOrder(None, 0, tiles - 1)
    if spans[-1][1] > num_keys:
        raise ValueError(f"keys of the frame reach to {spans[-1][1]}, and there are {num_keys}")
    if len(spans) == 1 and spans[0][0] == 0:
        return TileOrder(None, -(-spans[0][1] // keys_in_tile), tiles - 1)
    columns = torch.full((tiles * keys_in_tile,), -1, dtype=torch.int32)
    place = 0
    for start, stop in spans:
        columns[start:stop] = torch.arange(place, place + stop - start, dtype=torch.int32)
        place += stop - start
    in_tile = (columns.view(tiles, keys_in_tile) >= 0).sum(1).tolist()
    # Whole tiles first: maxima of their sums are the frame's own.
    order = sorted(range(tiles), key=lambda tile: (in_tile[tile] == 0, in_tile[tile] < keys_in_tile, tile))
    marked_tiles = sum(count > 0 for count in in_tile)
    steps = torch.tensor(order, dtype=torch.int32, device=device)
    own_order = order == list(range(tiles))
    return TileOrder(
        None if own_order else steps, marked_tiles, order.index(tiles - 1), columns.to(device), steps[:marked_tiles]
    )
