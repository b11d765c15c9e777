"""Faces that a face mesh knows: the bundled drawing and a photograph, with mouths that open as told."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import map_coordinates
from support import media_files

from wanvideo.audio.load import load_audio
from wanvideo.quality.sync import GRID, loudness

ASSETS = Path(__file__).resolve().parents[2] / "wanvideo" / "assets"
SPEECH, OTHER = ASSETS / "speech.flac", ASSETS / "speech_2.flac"
FPS, SECONDS = 25, 6
DARK, LIPS = (50, 10, 15), (170, 50, 60)
MOUTH = (416, 262)  # column and row, of the drawing's
WIDEST = 22  # pixels that a mouth opens


def drawing(opening=0.0):
    """The bundled portrait [H, W, 3], its mouth open by 0 to 1."""
    picture = Image.open(ASSETS / "portrait.jpg").convert("RGB")
    skin, (column, row), gap = picture.getpixel((372, 250)), MOUTH, 2 + opening * WIDEST
    draw = ImageDraw.Draw(picture)
    draw.rectangle((column - 44, row - 12, column + 44, row + 40), fill=skin)
    draw.ellipse((column - 31, row - 4, column + 31, row + 6 + gap), fill=LIPS)
    draw.ellipse((column - 24, row, column + 24, row + gap), fill=DARK)
    return np.asarray(picture)


def photograph(opening=0.0):
    """The head of scikit-image's astronaut [H, W, 3], its lower lip and chin further down by 0 to 1."""
    data = pytest.importorskip("skimage.data", reason="the optional package scikit-image brings a photograph")
    head = Image.fromarray(data.astronaut()[0:300, 70:370]).resize((600, 600), Image.Resampling.BICUBIC)
    picture, gap = np.asarray(head), 8 + opening * 26
    row, column, half, chin = 293, 307, 46, 413
    rows, columns = np.mgrid[:600, :600].astype(float)
    down = gap * np.clip(1 - ((columns - column) / half) ** 2, 0, 1)
    moved = np.where(rows > row, rows - down * np.clip((chin - rows) / (chin - row - down), 0, 1), rows)
    warped = [
        map_coordinates(picture[..., i].astype(float), [moved, columns], order=1, mode="nearest") for i in range(3)
    ]
    out = np.stack(warped, -1).round().clip(0, 255).astype(np.uint8)
    out[(rows > row) & (rows < row + down)] = DARK
    return out


def beside(*pictures):
    """Pictures of one height beside one another."""
    return np.concatenate(pictures, 1)


def openings(sound, shift_s=0.0, seconds=SECONDS):
    """[F] 0 to 1: how wide a mouth is open that follows a sound `shift_s` later."""
    loud = loudness(load_audio(sound), (seconds + 2) * GRID)
    places = ((np.arange(FPS * seconds) + 0.5) / FPS - shift_s) * GRID
    return np.interp(places, np.arange(len(loud)), loud / loud.max())


def video(path, picture_of, *wides, tint=None):
    """A video of pictures with mouths that open as told; tint: of its second half."""
    levels = [np.round(np.asarray(wide) * 20) / 20 for wide in wides]  # few that differ, so that they are made once
    made = {}
    frames = []
    for values in zip(*levels, strict=True):
        if values not in made:
            made[values] = picture_of(*values)
        frames.append(made[values])
    frames = np.stack(frames)
    if tint is not None:
        half = len(frames) // 2
        frames[half:] = np.clip(frames[half:] * np.array(tint), 0, 255)
    return media_files.video(path, frames, fps=FPS)
