"""Pictures to look at before a video is made: who speaks where and when.

Legend: H W rows and columns, S speakers; `columns` are those of a waveform as it is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..audio.load import SAMPLE_RATE
from ..durable import write_atomically
from ..errors import OutputError
from ..geometry import WindowPlan
from .part import cause_of

if TYPE_CHECKING:
    from ..models.wav2vec2 import Samples

COLORS = ((230, 70, 60), (50, 130, 240), (60, 180, 75), (245, 160, 30), (160, 80, 220), (20, 180, 190))
PAPER, INK, QUIET, BORDER = (24, 24, 28), (235, 235, 235), (110, 110, 118), (250, 220, 90)
MIN_WIDTH = 640  # of the drawing: labels stay readable on small pictures
ROW, LABELS, AXIS = 72, 88, 24  # pixels: a waveform's height, the width of its label, the height of the time line
TINT = 0.35  # of a region's color
VOICED = 10 ** (-35 / 20)  # of the loudest column
MAX_BORDERS = 200  # windows whose borders are told apart in a drawing
READ_AT_ONCE = 2**20  # samples


def draw_speakers(
    picture: Tensor, masks: Tensor | None, tracks: Sequence[Samples] | None, plan: WindowPlan, fps: float
) -> np.ndarray:
    """The fitted picture with each speaker's region, numbered and colored, over everybody's waveform.

    Louder parts of a waveform are colored and quiet ones gray; yellow lines are where windows begin.
    Args:
        picture: [3, H, W] in -1..1, as the model sees it. masks: [S + 1, H, W], the background last; None: no regions.
        tracks: [N] at 16 kHz of each speaker, on the video's time line; None for no sound. plan, fps: of the video.
    Returns: [rows, columns, 3] uint8.
    """
    levels = _levels(picture)
    drawn = _regions(levels, [] if masks is None else [mask.cpu().numpy() > 0.5 for mask in masks[:-1]])
    if not tracks:
        return np.asarray(drawn)
    out = Image.new("RGB", (drawn.width, drawn.height + ROW * len(tracks) + AXIS), PAPER)
    out.paste(drawn)
    length_s = len(tracks[0]) / SAMPLE_RATE
    for index, track in enumerate(tracks):
        _draw_voice(out, drawn.height + index * ROW, index, voice_of(track, drawn.width - LABELS))
    _draw_time(out, drawn.height, plan, fps, length_s)
    return np.asarray(out)


@dataclass(frozen=True)
class Voice:
    """A track as it is drawn: of every column the loudest sample in 0..1, and whether somebody speaks there."""

    peaks: np.ndarray
    is_voiced: np.ndarray


def voice_of(track: Samples, columns: int) -> Voice:
    """A track [N] in `columns` columns of equal length, read in parts."""
    bounds = [len(track) * column // columns for column in range(columns + 1)]
    peaks, powers = np.zeros(columns), np.zeros(columns)
    per_read = max(1, READ_AT_ONCE * columns // max(1, len(track)))
    for first in range(0, columns, per_read):
        last = min(first + per_read, columns)
        samples = torch.as_tensor(track[bounds[first] : bounds[last]]).numpy()
        for column in range(first, last):
            part = samples[bounds[column] - bounds[first] : bounds[column + 1] - bounds[first]]
            if len(part):
                peaks[column], powers[column] = np.abs(part).max(), math.sqrt(float(np.square(part).mean()))
    return Voice(peaks, powers > VOICED * powers.max())


def coverage(mask: np.ndarray) -> float:
    """The share of the picture that a region [H, W] covers, in percent."""
    return 100 * float(mask.mean())


def save_picture(picture: np.ndarray, path: Path) -> Path:
    """Write [rows, columns, 3] uint8 as PNG; what was there is replaced. Raises: OutputError when it cannot be."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    try:
        write_atomically(path, data.getvalue())
    except OSError as error:
        raise OutputError(f"{cause_of(error)} for {path}. Name a file that can be written.") from None
    return path


def picture_of(pixels: Tensor) -> Image.Image:
    """A frame [3, H, W] in -1..1, as it is shown."""
    return Image.fromarray(_levels(pixels))


def _levels(pixels: Tensor) -> np.ndarray:
    return ((pixels.permute(1, 2, 0).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in one: upright ones beside one another, wide ones in two columns."""
    width, height = pictures[0].size
    columns = len(pictures) if height > width else min(2, len(pictures))
    out = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for index, picture in enumerate(pictures):
        out.paste(picture, (index % columns * width, index // columns * height))
    return out


def _regions(levels: np.ndarray, masks: Sequence[np.ndarray]) -> Image.Image:
    scale = -(-MIN_WIDTH // levels.shape[1]) if levels.shape[1] < MIN_WIDTH else 1
    colored = levels.repeat(scale, 0).repeat(scale, 1).astype(np.float32)
    large = [mask.repeat(scale, 0).repeat(scale, 1) for mask in masks]
    for index, mask in enumerate(large):
        color = np.array(_color(index), np.float32)
        colored[mask] = colored[mask] * (1 - TINT) + color * TINT
        colored[_outline(mask)] = color
    image = Image.fromarray(colored.round().astype(np.uint8))
    for index, mask in enumerate(large):
        _draw_number(image, index, mask)
    return image


def _outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a region that lie at its edge, two deep."""
    padded = np.pad(mask, 2)
    height, width = mask.shape
    inside = mask.copy()
    for row, column in ((0, 2), (4, 2), (2, 0), (2, 4)):
        inside &= padded[row : row + height, column : column + width]
    edge: np.ndarray = mask & ~inside
    return edge


def _draw_number(image: Image.Image, index: int, mask: np.ndarray) -> None:
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return
    radius = max(18, image.width // 28)
    top = min(rows.min() + radius + 8, rows.mean())  # faces below stay visible
    nearest = np.argmin((rows - top) ** 2 + (columns - columns.mean()) ** 2)  # inside, whatever its shape
    x, y = int(columns[nearest]), int(rows[nearest])
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_color(index), outline=INK, width=2)
    draw.text((x, y), str(index + 1), fill=INK, font=_font(radius * 1.2), anchor="mm")
    share = f"{coverage(mask):.1f} %"
    place, font = (x, y + radius + 4), _font(radius * 0.8)
    draw.text(place, share, fill=INK, font=font, anchor="mt", stroke_width=2, stroke_fill=PAPER)


def _draw_voice(image: Image.Image, top: int, index: int, voice: Voice) -> None:
    draw, middle, height = ImageDraw.Draw(image), top + ROW // 2, ROW // 2 - 6
    draw.text((8, middle), f"voice {index + 1}", fill=_color(index), font=_font(16), anchor="lm")
    loudest = max(float(voice.peaks.max()), 1e-9)
    for column, (peak, is_voiced) in enumerate(zip(voice.peaks, voice.is_voiced, strict=True)):
        reach = max(1, round(height * peak / loudest))
        color = _color(index) if is_voiced else QUIET
        draw.line((LABELS + column, middle - reach, LABELS + column, middle + reach), fill=color)


def _draw_time(image: Image.Image, top: int, plan: WindowPlan, fps: float, length_s: float) -> None:
    draw, bottom = ImageDraw.Draw(image), image.height - AXIS
    columns = image.width - LABELS

    def x(seconds: float) -> int:
        return LABELS + min(columns - 1, round(columns * seconds / length_s))

    if plan.num_windows is not None and plan.num_windows <= MAX_BORDERS:
        for window in list(plan)[1:]:
            draw.line((x(window.new_start / fps), top, x(window.new_start / fps), bottom), fill=BORDER)
    end_s = length_s if plan.total_frames is None else min(length_s, plan.total_frames / fps)
    if end_s < length_s:  # what is said later is not in the video
        draw.rectangle((x(end_s) + 1, top, image.width, bottom), fill=PAPER)
    draw.text((LABELS, bottom + 4), "0 s", fill=INK, font=_font(14))
    count = "" if plan.num_windows is None else f", {len(plan)} windows"
    draw.text((image.width - 6, bottom + 4), f"{end_s:.2f} s{count}", fill=INK, font=_font(14), anchor="ra")


def _color(index: int) -> tuple[int, int, int]:
    return COLORS[index % len(COLORS)]


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(round(size))
