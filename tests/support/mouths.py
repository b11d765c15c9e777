"""Drawn mouths that open with a bundled sound, and what sees them."""

from pathlib import Path

import numpy as np
from support import media_files

from wanvideo.audio.load import load_audio
from wanvideo.quality.lips import Lips
from wanvideo.quality.sync import GRID, loudness

ASSETS = Path(__file__).resolve().parents[2] / "wanvideo" / "assets"
SPEECH, OTHER = ASSETS / "speech.flac", ASSETS / "speech_2.flac"
FPS, SECONDS, SIZE = 25, 6, 96
SKIN = np.array((200, 160, 140), np.uint8)
BOX = (16.0, 0.0, 80.0, 64.0)  # of the face whose mouth is in the middle of the picture


def dark_lips(frame):
    """The part of a picture's rows in which its mouth is dark; no face where there is no skin around it."""
    if frame[4, 4, 0] < 100:
        return []
    return [Lips(float((frame[..., 0] < 100).any(1).mean()), BOX)]


def talking(path, shift_s=0.0, tint=None, opening=None, faces=True, fps=FPS):
    """A video whose mouth opens as loud as the speech is `shift_s` before."""
    loud = loudness(load_audio(SPEECH), (SECONDS + 2) * GRID)
    places = ((np.arange(fps * SECONDS) + 0.5) / fps - shift_s) * GRID
    wide = np.interp(places, np.arange(len(loud)), loud / loud.max()) if opening is None else opening
    frames = np.empty((len(wide), SIZE, SIZE, 3), np.uint8)
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    for index, frame in enumerate(frames):
        frame[:] = SKIN if faces else 0
        frame[(rows / (2 + 30 * wide[index])) ** 2 + (columns / 25) ** 2 < 1] = (60, 10, 20)
    if tint is not None:
        frames[len(frames) // 2 :] = np.clip(frames[len(frames) // 2 :] * np.array(tint), 0, 255)
    return media_files.video(path, frames, fps=fps)
