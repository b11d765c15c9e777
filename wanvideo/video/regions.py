"""Where each speaker is in the picture: masks from boxes, from mask pictures, or the two halves.

Legend: S speakers, H W rows and columns; regions are bool [H, W] in pixels of the source picture.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import SIZE_MULTIPLE
from ..request import Speaker
from .picture import fit_mask, load_mask

MARGIN = 0.05  # of each half that the default regions leave free on every side
POINT_REACH = 0.3  # of the picture's shorter side: how far a region around a point reaches
MAX_OVERLAP = 0.05  # of the smaller mask: what painted edges share without meaning it
SHAPE_TOLERANCE = 0.01

log = logging.getLogger("wanvideo")


def speaker_masks(speakers: Sequence[Speaker], picture_size: tuple[int, int], width: int, height: int) -> Tensor | None:
    """Masks of all speakers and of the background, in pixels of the video.

    Args:
        speakers: with a box or a mask each, or two with neither: then the left and the right half.
        picture_size: width and height of the source picture, which boxes refer to.
        width, height: of the video, which the picture is fitted to.
    Returns: [S + 1, height, width] float32 of 0 and 1, background last; None for fewer than two speakers.
    Raises: InputError, naming the speaker, for a region that is empty after fitting or covers another's.
    Source: MultiTalk / InfiniteTalk; there overlapping and empty regions pass unnoticed.
    """
    if len(speakers) < 2:
        if any(speaker.box or speaker.mask for speaker in speakers):
            log.info("One speaker needs no box or mask; add a second, silent speaker to keep other faces still.")
        return None
    return stack_masks(speaker_regions(speakers, picture_size), width, height)


def speaker_regions(speakers: Sequence[Speaker], picture_size: tuple[int, int]) -> list[np.ndarray]:
    """[H, W] bool in source pixels for every speaker (see `speaker_masks`)."""
    if not any(speaker.box or speaker.mask for speaker in speakers):
        if len(speakers) != 2:
            raise InputError(
                f"{len(speakers)} speakers need a box or mask each; only two can be placed by themselves. Give "
                "each one."
            )
        return left_to_right(2, *picture_size)
    return [_region(number, speaker, *picture_size) for number, speaker in enumerate(speakers, 1)]


def stack_masks(regions: Sequence[np.ndarray], width: int, height: int) -> Tensor:
    """Fit the regions of all speakers to the video, check them, and add the background.

    Args:
        regions: [H, W] bool of every speaker, all of the same picture.
        width, height: of the video, multiples of 16.
    Returns: [S + 1, height, width] float32 of 0 and 1, background last.
    Raises: InputError as `speaker_masks`.
    """
    masks = torch.stack([fit_mask(region, width, height) for region in regions])
    # A token sees one pixel of its 16 x 16: the nearest one when the mask is brought to the token grid.
    tokens = masks[:, ::SIZE_MULTIPLE, ::SIZE_MULTIPLE].flatten(1).any(1).tolist()
    for number, is_seen in enumerate(tokens, 1):
        if not is_seen:
            raise InputError(
                f"The region of speaker {number} is empty once the picture is fitted to {width}x{height}: "
                f"it is cut off or smaller than {SIZE_MULTIPLE} pixels. Make it larger or move it into the picture."
            )
    for (first, one), (second, other) in itertools.combinations(enumerate(masks, 1), 2):
        overlap = int((one & other).sum()) / int(min(one.sum(), other.sum()))
        if overlap > MAX_OVERLAP:
            raise InputError(
                f"The regions of speakers {first} and {second} overlap by {overlap:.0%}: nobody could tell "
                "whose voice moves the shared part. Draw them apart."
            )
    return torch.cat((masks, ~masks.any(0, keepdim=True))).float()


def say_if_other_shape(regions: Tensor, picture_size: tuple[int, int], width: int, height: int) -> None:
    """Warn of masks that were painted on something else than the picture or the video.

    Args: regions: [S, H, W]. picture_size: width and height. width, height: of the video.
    """
    shape = regions.shape[-1] / regions.shape[-2]
    shapes = picture_size[0] / picture_size[1], width / height
    if min(abs(shape / other - 1) for other in shapes) > SHAPE_TOLERANCE:
        log.warning(
            "The masks are %dx%d and the picture is %dx%d: their middle is taken for the picture's. Paint them on it.",
            regions.shape[-1], regions.shape[-2], *picture_size,
        )  # fmt: skip


def check_drawn(regions: Sequence[np.ndarray]) -> None:
    """What holds at any size of the video, and so is told before anything is loaded.

    Args: regions: [H, W] bool of every speaker.
    Raises: InputError for a region where nothing is drawn, and for one that lies in another.
    """
    for number, region in enumerate(regions, 1):
        if not region.any():
            raise InputError(f"The mask of speaker {number} is empty. Paint where this person is.")
    for (first, one), (second, other) in itertools.combinations(enumerate(regions, 1), 2):
        if one.shape == other.shape and (one & other).sum() == min(one.sum(), other.sum()):
            raise InputError(
                f"The masks of speakers {first} and {second} cover the same place: nobody could tell whose voice moves "
                "it. Paint one person in each."
            )


def left_to_right(num_speakers: int, width: int, height: int) -> list[np.ndarray]:
    """[height, width] bool of each speaker: as many equal parts of the picture beside one another, with free edges."""
    part = width // num_speakers
    rows = slice(int(height * MARGIN), int(height * (1 - MARGIN)))
    regions = []
    for left in (part * index for index in range(num_speakers)):
        region = np.zeros((height, width), bool)
        region[rows, left + int(part * MARGIN) : left + int(part * (1 - MARGIN))] = True
        regions.append(region)
    return regions


def point_regions(points: Sequence[tuple[int, int]], width: int, height: int) -> list[np.ndarray]:
    """[height, width] bool of each speaker: a disc around a point (row, column) in a face, none touching another.

    Raises: InputError for a point outside of the picture, or two that are nearly the same.
    """
    for number, (row, column) in enumerate(points, 1):
        if not (0 <= row < height and 0 <= column < width):
            raise InputError(
                f"The point of speaker {number}, {row}, {column}, is outside the picture of {height} rows and {width} "
                "columns. Give row, column in pixels of the picture, origin top left."
            )
    radius = min(width, height) * POINT_REACH
    for (first, one), (second, other) in itertools.combinations(enumerate(points, 1), 2):
        apart = math.dist(one, other)
        if apart < 2 * SIZE_MULTIPLE:
            raise InputError(
                f"The points of speakers {first} and {second} are {apart:.0f} pixels apart, at least "
                f"{2 * SIZE_MULTIPLE} are needed. Give a point in each face."
            )
        radius = min(radius, apart / 2 - 1)
    rows, columns = np.mgrid[:height, :width]
    return [(rows - row) ** 2 + (columns - column) ** 2 <= radius**2 for row, column in points]


def _region(number: int, speaker: Speaker, width: int, height: int) -> np.ndarray:
    if speaker.mask:
        return resized_mask(load_mask(speaker.mask), f"mask of speaker {number}, {speaker.mask},", width, height)
    if not speaker.box:
        raise InputError(f"Speaker {number} has neither a box nor a mask. Give one to each speaker, or to none.")
    return box_region(speaker.box, f"box of speaker {number}", width, height)


def box_region(box: tuple[int, int, int, int], what: str, width: int, height: int) -> np.ndarray:
    """[height, width] bool, true in a box (row_min, col_min, row_max, col_max) of a picture of that size.

    Args: what: it is, for messages.
    Raises: InputError when it is outside of the picture.
    """
    row_min, col_min, row_max, col_max = box
    region = np.zeros((height, width), bool)
    region[max(row_min, 0) : max(row_max, 0), max(col_min, 0) : max(col_max, 0)] = True
    if not region.any():
        raise InputError(
            f"The {what}, {list(box)}, is outside the picture of {height} rows and {width} "
            "columns. Give [row_min, col_min, row_max, col_max] in pixels of the picture, origin top left."
        )
    if row_max > height or col_max > width:
        log.info(
            "The %s, %s, ends at the picture's edge: row %d, column %d.",
            what, list(box), min(row_max, height), min(col_max, width),
        )  # fmt: skip
    return region


def resized_mask(mask: np.ndarray, what: str, width: int, height: int) -> np.ndarray:
    """A mask [H, W] bool at the size of its picture, [height, width], with the nearest pixel's value.

    Args: what: it is, for messages.
    Raises: InputError when it has not the picture's shape.
    """
    mask_height, mask_width = mask.shape
    if abs(mask_width / mask_height / (width / height) - 1) > SHAPE_TOLERANCE:
        raise InputError(
            f"The {what} is {mask_width}x{mask_height} but the picture is {width}x{height}. "
            "Make it the picture's size, or at least its shape."
        )
    if (mask_width, mask_height) == (width, height):
        return mask
    rows = (np.arange(height) * mask_height) // height
    columns = (np.arange(width) * mask_width) // width
    resized: np.ndarray = mask[rows[:, None], columns]
    return resized
