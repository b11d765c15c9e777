"""Whether a mouth moves with the sound: by how much it is early or late, how closely it follows, whether it rests.

Legend: F frames, N samples at 16 kHz, G points of time, GRID a second.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch

from ..audio.activity import speech_activity
from ..audio.load import SAMPLE_RATE, Sound
from ..errors import UnsupportedError

GRID = 100  # points a second
AT_ONCE = 6000  # points whose samples are held
MAX_LAG_S = 0.5
SMOOTH_S = 0.05  # of loudness, about what a mouth can follow
SPEECH_DB = 30.0  # below its loud parts, where no detector is installed, sound is no speech
EDGE_S = 0.12  # around speech, where a mouth may still move
IN_SYNC_FRAMES, IN_SYNC_CORRELATION = 2.0, 0.3
CLOSED = 0.3  # of the way from shut to wide open
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Sync:
    """How a mouth goes with a sound.

    Args:
        lag_s, lag_frames: how much later the mouth moves than the sound says, less than 0 where it is early.
        correlation: of opening and loudness at this lag, -1 to 1; 0 where the mouth or the sound never changes.
        open_in_speech, open_in_silence: mean opening, 0 shut (5 % of frames are more so) to 1 wide open (as many).
        silent_s: how long nobody speaks; where that is 0, open_in_silence is 0 as well.
        activity: what told speech from silence.
        faces: part of the frames with a face.
    """

    lag_s: float
    lag_frames: float
    correlation: float
    open_in_speech: float
    open_in_silence: float
    silent_s: float
    activity: str
    faces: float

    @property
    def is_in_sync(self) -> bool:
        return abs(self.lag_frames) <= IN_SYNC_FRAMES and self.correlation >= IN_SYNC_CORRELATION

    @property
    def is_shut_in_silence(self) -> bool:
        return self.open_in_silence <= CLOSED


def measure_sync(opening: np.ndarray, sound: Sound, fps: float) -> Sync:
    """Hold the opening of a mouth against its sound.

    Args: opening: [F], NaN in frames without a face. sound: from the first frame on.
    """
    has_face = np.isfinite(opening)
    seconds = min(len(opening) / fps, sound.duration_s)
    grid = np.arange(int(seconds * GRID)) / GRID
    centers = (np.arange(len(opening)) + 0.5) / fps
    filled = np.interp(grid, centers[has_face], opening[has_face]) if has_face.any() else np.zeros(len(grid))
    lag_s, correlation = _lag(filled, loudness(sound, len(grid)))
    active, by = _activity(sound, len(opening), fps)
    scaled = _scaled(opening)
    silent = (_summed(active, round(EDGE_S * fps)) < 0.5) & has_face
    return Sync(
        lag_s, lag_s * fps, correlation, _mean(scaled[active & has_face]), _mean(scaled[silent]),
        float(silent.sum() / fps), by, float(has_face.mean()) if len(opening) else 0.0,
    )  # fmt: skip


def loudness(sound: Sound, num_points: int) -> np.ndarray:
    """[G]: the root of the loudness around each point of time, smoothed; 0 is silence."""
    hop = SAMPLE_RATE // GRID
    parts = [_energies(sound, start, num_points, hop) for start in range(0, num_points, AT_ONCE)]
    half = round(SMOOTH_S * GRID) // 2
    return (_summed(np.concatenate([np.zeros(0), *parts]), half) / (2 * half + 1)) ** 0.25


def _energies(sound: Sound, start: int, num_points: int, hop: int) -> np.ndarray:
    """Mean squares of pieces of `hop` samples, centered at points start..start + AT_ONCE; 0 behind the sound's end."""
    stop = min(start + AT_ONCE, num_points)
    first, last = start * hop - hop // 2, stop * hop - hop // 2
    before, length = max(-first, 0), sound.num_samples
    samples = sound.read(min(max(first, 0), length), min(last, length)).astype(np.float64)
    padded = np.pad(samples, (before, last - first - before - len(samples)))
    return np.square(padded).reshape(-1, hop).mean(1)


def _lag(opening: np.ndarray, loud: np.ndarray) -> tuple[float, float]:
    """Seconds by which `opening` [G] is later than `loud` [G] where they agree best, and the correlation there."""
    most = min(round(MAX_LAG_S * GRID), max(len(loud) // 4, 0))
    best, correlation = 0, -1.0
    for lag in sorted(range(-most, most + 1), key=abs):
        late, sound = opening[max(lag, 0) : len(opening) + min(lag, 0)], loud[max(-lag, 0) : len(loud) - max(lag, 0)]
        found = _correlation(late, sound)
        if found > correlation + 1e-9:
            best, correlation = lag, found
    return best / GRID, correlation


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if len(one) < 2 or one.std() < 1e-9 or other.std() < 1e-9:
        return 0.0
    return float(((one - one.mean()) * (other - other.mean())).mean() / (one.std() * other.std()))


def _activity(sound: Sound, num_frames: int, fps: float) -> tuple[np.ndarray, str]:
    """[F]: whether somebody speaks while a frame is on screen, and what says so."""
    try:
        speaking = speech_activity([torch.from_numpy(sound.read(0, sound.num_samples))], num_frames, fps)[0]
        return (speaking > 0.5).numpy(), "silero-vad"
    except UnsupportedError:
        logger.debug("silero-vad is not installed: loudness tells speech from silence.")
    points = loudness(sound, int(num_frames / fps * GRID) + GRID)
    frames = points[((np.arange(num_frames) + 0.5) / fps * GRID).astype(int)]
    loud = np.percentile(frames, 95) if num_frames else 0.0
    return frames > max(loud * 10 ** (-SPEECH_DB / 40), 1e-6), "loudness"


def _summed(values: np.ndarray, half: int) -> np.ndarray:
    """The sum of each value and of `half` ones before and behind it; none are added at the ends."""
    return np.convolve(values, np.ones(2 * half + 1))[half : half + len(values)] if len(values) else values


def _scaled(opening: np.ndarray) -> np.ndarray:
    """From 0 where the mouth is shut to 1 where it is wide open, without the outermost 5 %."""
    if not np.isfinite(opening).any():
        return opening
    low, high = np.nanpercentile(opening, (5, 95))
    return np.clip((opening - low) / max(high - low, 1e-9), 0, 1)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
