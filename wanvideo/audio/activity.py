"""When each speaker speaks, and features that rest where one does not.

Legend: S speakers, F video frames, N samples at 16 kHz.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import UnsupportedError
from ..protocols import AudioSource
from .load import SAMPLE_RATE

if TYPE_CHECKING:
    from ..models.wav2vec2 import Samples

CHUNK = 512  # samples that silero-vad takes at a time
PIECE = 2000 * CHUNK  # samples that are read at a time
THRESHOLD = 0.5
MARGIN_S, RAMP_S = 0.2, 0.2  # before and after speech that belong to it, and what the way to silence takes from there


def quieted(source: AudioSource, activity: Tensor) -> AudioSource:
    """`source`, whose features fade into those of silence where a speaker is quiet.

    Args: activity: [S, F] in 0..1, 1 where a speaker speaks; behind its end nobody does.
    """
    return _Quieted(source, activity)


class _Quieted:
    def __init__(self, source: AudioSource, activity: Tensor) -> None:
        self.num_speakers, self.silence = source.num_speakers, source.silence
        self._source, self._activity = source, activity

    @property
    def num_frames(self) -> int | None:
        return self._source.num_frames

    def features(self, start: int, stop: int) -> Tensor:
        features = self._source.features(start, stop)
        count = features.shape[1]
        activity = self._activity[:, start : start + count]
        activity = functional.pad(activity, (0, count - activity.shape[1]))[..., None, None]
        silence = self.silence[torch.arange(start, start + count) % len(self.silence)]
        return torch.lerp(silence.expand_as(features), features, activity)


def speech_activity(tracks: Sequence[Samples], num_frames: int, fps: float) -> Tensor:
    """[S, F] float32 in 0..1 for tracks [N] at 16 kHz: 1 while somebody speaks, with soft beginnings and ends.

    Tracks are read in parts, each speaker's by itself.
    Raises: UnsupportedError where the package silero-vad is not installed.
    """
    model = load_detector()
    return torch.stack([softened(_speech(model, track, num_frames, fps) >= THRESHOLD, fps) for track in tracks])


def softened(is_speech: Tensor, fps: float) -> Tensor:
    """[F] float32 of where there is speech [F] bool: 1 there and `MARGIN_S` around it, and from there on slowly 0."""
    margin, ramp = max(1, round(MARGIN_S * fps)), max(1, round(RAMP_S * fps))
    around = functional.max_pool1d(is_speech.float()[None], 2 * margin + 1, 1, margin)
    wide = functional.max_pool1d(around, 2 * ramp + 1, 1, ramp)
    padded = functional.pad(wide, (ramp, ramp), mode="replicate")
    return functional.avg_pool1d(padded, 2 * ramp + 1, 1)[0]


@torch.no_grad()
def _speech(model: Any, track: Samples, num_frames: int, fps: float) -> Tensor:
    """[F]: how likely there is speech while a frame is on screen, 0..1."""
    model.reset_states()
    levels: list[float] = []
    for first in range(0, len(track), PIECE):
        piece = torch.as_tensor(track[first : first + PIECE])
        piece = functional.pad(piece, (0, -len(piece) % CHUNK))
        levels += [float(model(chunk, SAMPLE_RATE)) for chunk in piece.split(CHUNK)]
    found, rate = torch.tensor([*levels, 0.0]), Fraction(fps).limit_denominator(1001)
    bounds = [min(int(frame * SAMPLE_RATE / rate) // CHUNK, len(levels)) for frame in range(num_frames + 1)]
    starts = torch.tensor(bounds[:-1])
    stops = torch.tensor(bounds[1:]).maximum(starts + 1)
    speech = found[starts]
    for ahead in range(1, int((stops - starts).max())):
        speech = speech.maximum(found[(starts + ahead).minimum(stops - 1)])
    return speech


def load_detector() -> Any:
    """The voice activity detector that the package silero-vad brings; nothing is downloaded.

    Raises: UnsupportedError where it is not installed.
    """
    package = importlib.util.find_spec("silero_vad")
    places = [] if package is None else package.submodule_search_locations or []
    for path in (Path(place) / "data" / "silero_vad.jit" for place in places):
        if path.is_file():  # not by the package's own loader: importing it sets torch's threads to one
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                return torch.jit.load(str(path), map_location="cpu").eval()
    raise UnsupportedError(
        "voice_activity needs the package silero-vad, which is not installed. Install it (pip install silero-vad), "
        "or leave voice_activity out."
    )
