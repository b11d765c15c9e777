"""Where people are as a graph writes it: lines of numbers, and an order of voices."""

from __future__ import annotations

import re
from typing import TypeVar

from ..errors import InputError

Region = TypeVar("Region")


def numbers_of(regions: str) -> list[list[int]]:
    """The numbers of each line: four of a box or two of a point, the same in all lines."""
    lines = [line.strip(" ,[]()") for line in regions.splitlines()]
    rows = [re.split(r"[\s,]+", line) for line in lines if line]
    is_whole = all(re.fullmatch(r"[0-9]{1,6}", item) for row in rows for item in row)
    if not is_whole or len({len(row) for row in rows}) > 1 or any(len(row) not in (2, 4) for row in rows):
        raise InputError(
            f"regions {regions!r:.200} are not usable. Write a line for each speaker: a box (row_min, col_min, "
            "row_max, col_max) or a point (row, column); or nothing for from left to right."
        )
    return [[int(item) for item in row] for row in rows]


def order_of(order: str) -> list[int]:
    """Numbers of the regions that voice 1, voice 2 and so on have; empty for their own order."""
    items = [item for item in re.split(r"[\s,]+", order.strip(" ,")) if item]
    numbers = [int(item) if re.fullmatch(r"[1-9]", item) else 0 for item in items]
    if sorted(numbers) != list(range(1, len(numbers) + 1)):
        raise InputError(
            f"order {order!r:.200} is not usable: it says which region voice 1, voice 2 and so on have. "
            "Write each region's number once, e.g. 2, 1; or nothing."
        )
    return numbers


def ordered(regions: list[Region], order: str) -> list[Region]:
    """The regions of voice 1, voice 2 and so on."""
    numbers = order_of(order)
    if numbers and len(numbers) != len(regions):
        raise InputError(f"order {order!r:.200} names {len(numbers)} of {len(regions)} regions. Name all of them.")
    return [regions[number - 1] for number in numbers] if numbers else regions
