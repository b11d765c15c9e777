"""Sounds to the audio encoder's features, one entry a video frame.

Legend: S speakers, N samples at 16 kHz, F video frames.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .load import SAMPLE_RATE, Sound

if TYPE_CHECKING:
    from ..models.wav2vec2 import AudioEncoder

WINDOW = (-2, -1, 0, 1, 2)  # frames that a frame hears
WHOLE_S = 120.0  # sound up to this long is encoded at once; attention is quadratic in it
CHUNK_S, OVERLAP_S = 60.0, 5.0  # beyond: pieces, each with so much more on both sides
SILENCE_S = 4.0


def speaker_tracks(sounds: Sequence[Sound | None], audio_type: str) -> list[np.ndarray]:
    """Each speaker's samples on the video's time line, all of one length.

    Args:
        sounds: at 16 kHz; None for a speaker who is silent throughout.
        audio_type: para, all start together, or add, one after another in their order.
    """
    given = [sound for sound in sounds if sound is not None]
    if not given:
        raise InputError("No speaker has sound. Give at least one file, or make a video without sound.")
    lengths = [0 if sound is None else len(sound.samples) for sound in sounds]
    total = sum(lengths) if audio_type == "add" else max(lengths)
    tracks, start = [], 0
    for sound, length in zip(sounds, lengths, strict=True):
        track = np.zeros(total, np.float32)
        if sound is not None:
            track[start : start + length] = sound.samples
        tracks.append(track)
        start += length if audio_type == "add" else 0
    return tracks


def count_frames(num_samples: int, fps: float) -> int:
    """Entries for so many samples: floor(N / 16000 * fps), at least 1, without the rounding of floating point.

    Source: the reference computes int(N / 16000 * 25) in floating point and loses a frame at some exact multiples.
    """
    return max(1, math.floor(Fraction(num_samples, SAMPLE_RATE) * Fraction(fps).limit_denominator(1001)))


def extract_features(encoder: AudioEncoder, samples: np.ndarray, fps: float, *, whole_s: float = WHOLE_S) -> Tensor:
    """Features [F, layers, hidden] float32 on the CPU of samples [N] at 16 kHz.

    Sound longer than `whole_s` is encoded in overlapping pieces, of which the middles are kept, into a file that is
    mapped into memory: what an hour of sound adds to the process does not grow.
    """
    frames = count_frames(len(samples), fps)
    if len(samples) <= whole_s * SAMPLE_RATE:
        return encoder.features(torch.from_numpy(samples), frames).float().cpu()
    out = None
    for first, last in _pieces(frames, fps):
        margin = math.ceil(OVERLAP_S * fps)
        start, stop = max(0, first - margin), min(frames, last + margin)
        piece = samples[_sample_at(start, fps) : _sample_at(stop, fps) if stop < frames else None]
        features = encoder.features(torch.from_numpy(piece), stop - start).float().cpu()
        if out is None:
            out = mapped_tensor((frames, *features.shape[1:]))
        out[first:last] = features[first - start : last - start]
    return out


def _pieces(frames: int, fps: float) -> list[tuple[int, int]]:
    size = math.ceil(CHUNK_S * fps)
    return [(first, min(first + size, frames)) for first in range(0, frames, size)]


def _sample_at(frame: int, fps: float) -> int:
    return round(frame * SAMPLE_RATE / fps)


def mapped_tensor(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor that lives in a temporary file, which goes away with it."""
    with tempfile.NamedTemporaryFile(prefix="wanvideo-") as file:
        return torch.from_numpy(np.memmap(file.name, np.float32, "w+", shape=shape))


def silence_features(encoder: AudioEncoder, fps: float, seconds: float = SILENCE_S) -> Tensor:
    """What the encoder makes of digital silence, [F, layers, hidden]: the embedding of nobody speaking."""
    return extract_features(encoder, np.zeros(round(seconds * SAMPLE_RATE), np.float32), fps)


def pad_features(features: Tensor, num_frames: int, silence: Tensor) -> Tensor:
    """features followed by as much of `silence` (repeated if need be) as makes `num_frames` entries."""
    missing = num_frames - features.shape[0]
    if missing <= 0:
        return features
    repeated = silence.repeat(-(-missing // silence.shape[0]), 1, 1)
    return torch.cat((features, repeated[:missing].to(features)))


def audio_window(features: Tensor, start: int, num_frames: int) -> Tensor:
    """What each of `num_frames` frames from `start` on hears: [F, layers, hidden] -> [num_frames, 5, layers, hidden].

    Indices are clamped to the track, so its first and last entries stand for what lies beyond.
    """
    indices = torch.arange(start, start + num_frames)[:, None] + torch.tensor(WINDOW)
    return features[indices.clamp(0, features.shape[0] - 1)]
