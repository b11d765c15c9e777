"""Source videos of every rate, spacing, rotation and codec that has to stay in sync, with the times of their frames."""

from fractions import Fraction

import av
import pytest
from support import media_files as media

NTSC = Fraction(30000, 1001)
UNEVEN = [Fraction(n, 1000) for n in (0, 10, 55, 90, 200, 210, 333, 400, 401, 480, 600, 640, 700, 910, 950)]


def on_screen(times, num_frames, fps=25):
    """The number of the source's frame that is on screen at each frame of the result."""
    return [sum(time <= Fraction(index) / fps for time in times) - 1 for index in range(num_frames)]


def ntsc(folder):
    return media.video(folder / "ntsc.mp4", media.numbered_frames(44), fps=NTSC), [n / NTSC for n in range(44)]


def variable(folder):
    return media.video(folder / "vfr.mkv", media.numbered_frames(15), times=UNEVEN, keyframe=4), UNEVEN


def rotated(folder):
    path = media.video(folder / "phone.mp4", media.numbered_frames(30, 64, 48), fps=50)
    return media.turned(path, (0, 1, -1, 0)), [Fraction(n, 50) for n in range(30)]


def av1(folder):
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this FFmpeg has no AV1 encoder")
    frames = media.numbered_frames(40, 64, 64)
    return media.video(folder / "clip.mp4", frames, fps=24, codec="libsvtav1"), [Fraction(n, 24) for n in range(40)]


KINDS = ntsc, variable, rotated, av1
