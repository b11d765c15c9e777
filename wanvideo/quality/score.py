"""What came out, measured: does the mouth go with the sound, are the colors steady.

Legend: F frames, H W rows and columns.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..audio.load import Sound, load_audio
from ..durable import write_atomically
from ..errors import OutputError
from ..video.picture import load_picture
from ..video.reader import VideoFrames, probe
from .drift import FRAMES, PixelMeasures, measure_frames
from .lips import LipOpening
from .plot import Curve, plot
from .sync import GRID as SYNC_GRID
from .sync import Sync, loudness, measure_sync

STEADY_DELTA_E = 5.0  # of the mean color; about twice what is just seen between two pictures side by side
NO_IDENTITY = "not measured: no package that can be installed here brings the weights of a face recognizer"
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Colors:
    """Colors over time, second by second.

    Args:
        starts_s: where each second begins. lab, sharpness: as of `drift.PixelMeasures`.
        delta_e: distance of each second's mean color from the first one's, or from the reference picture's.
        is_against_reference: which of both.
    """

    starts_s: tuple[float, ...]
    lab: tuple[tuple[float, ...], ...]
    sharpness: tuple[float, ...]
    delta_e: tuple[float, ...]
    is_against_reference: bool

    @property
    def most(self) -> float:
        return max(self.delta_e)

    @property
    def is_steady(self) -> bool:
        return self.most <= STEADY_DELTA_E


@dataclass(frozen=True)
class Score:
    """All that was measured of a video. sync: None where it could not be, for the reason in `sync_note`.

    opening: of the mouth, frame by frame, None without a face. loud: loudness while each frame is on screen.
    """

    num_frames: int
    fps: float
    sync: Sync | None
    sync_note: str
    colors: Colors
    identity_note: str
    opening: tuple[float | None, ...]
    loud: tuple[float, ...]


def score_video(
    video: str | Path, lips: LipOpening | str, reference: str | Path | None = None, audio: str | Path | None = None
) -> Score:
    """Measure a video; one second of frames is held at a time.

    Args:
        lips: what measures mouths, or why nothing can.
        reference: a picture that colors are compared with; None: the video's first second.
        audio: the sound that is spoken; None: the video's own.
    Raises: InputError for files that cannot be read.
    """
    target = None if reference is None else measure_frames(torch.from_numpy(load_picture(reference))[None]).lab_mean
    sound, note = _sound(video, audio)
    facts = probe(video)
    measure = None if isinstance(lips, str) or sound is None else lips
    opening: list[float | None] = []
    measured: list[PixelMeasures] = []
    with VideoFrames(video) as frames:
        for second in _seconds(frames, facts.frames, facts.fps):
            opening += [measure(frame) for frame in second] if measure else []
            chosen = second[:: math.ceil(len(second) / FRAMES)]
            measured.append(measure_frames(torch.from_numpy(np.stack(chosen))))
    sync, loud = None, np.zeros(0)
    if sound is not None:
        points = loudness(sound, int(facts.frames / facts.fps * SYNC_GRID) + SYNC_GRID)
        loud = points[((np.arange(facts.frames) + 0.5) / facts.fps * SYNC_GRID).astype(int)]
        note = lips if isinstance(lips, str) else note
    if opening and sound is not None:
        sync = measure_sync(np.array(opening, np.float64), sound, facts.fps)
        note = note if sync.faces else "no frame has a face"
    return Score(
        facts.frames, facts.fps, sync if sync and sync.faces else None, note, _colors(measured, target), NO_IDENTITY,
        tuple(opening), tuple(loud.tolist()),
    )  # fmt: skip


def _seconds(frames: VideoFrames, num_frames: int, fps: float) -> Iterator[list[np.ndarray]]:
    """Frames of one second after the other."""
    step = max(1, round(fps))
    for start in range(0, num_frames, step):
        yield [frames.frame_at(index / fps) for index in range(start, min(start + step, num_frames))]


def _sound(video: str | Path, audio: str | Path | None) -> tuple[Sound | None, str]:
    """The sound that is spoken, or why there is none."""
    if audio is not None:
        return load_audio(audio), ""
    if probe(video).audio_duration_s is None:
        return None, "the video has no sound"
    return load_audio(video), ""


def _colors(measured: list[PixelMeasures], target: tuple[float, ...] | None) -> Colors:
    against = target or measured[0].lab_mean
    return Colors(
        tuple(float(second) for second in range(len(measured))), tuple(item.lab_mean for item in measured),
        tuple(item.sharpness for item in measured), tuple(math.dist(item.lab_mean, against) for item in measured),
        target is not None,
    )  # fmt: skip


def save_score(score: Score, path: Path) -> list[Path]:
    """Write a score as JSON, and its curves as a PNG beside it; returns what was written.

    Raises: OutputError when the folder cannot be written to.
    """
    record = asdict(score)
    record["colors"] |= {"most": score.colors.most, "is_steady": score.colors.is_steady}
    if score.sync is not None:
        record["sync"] |= {
            "is_in_sync": score.sync.is_in_sync, "is_shut_in_silence": score.sync.is_shut_in_silence
        }  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record, indent=1).encode())
        picture = path.with_suffix(".png")
        write_atomically(picture, plot("second", _curves(score)))
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}). Choose another folder.") from error
    return [path, picture]


def _curves(score: Score) -> list[Curve]:
    colors, curves = score.colors, []
    for name, values in (("opening", score.opening), ("loudness", score.loud)):
        if values:
            seconds = [(index + 0.5) / score.fps for index in range(len(values))]
            curves.append(Curve(name, seconds, [math.nan if value is None else value for value in values]))
    return [
        *curves, *(Curve(name, colors.starts_s, [lab[i] for lab in colors.lab]) for i, name in enumerate("Lab")),
        Curve("color change", colors.starts_s, colors.delta_e), Curve("sharpness", colors.starts_s, colors.sharpness),
    ]  # fmt: skip
