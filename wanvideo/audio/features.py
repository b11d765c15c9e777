"""Sounds to the audio encoder's features, one entry a video frame.

Legend: S speakers, N samples at 16 kHz, F video frames.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, OutputError
from ..request import AUDIO_TYPES
from .load import SAMPLE_RATE, Sound

if TYPE_CHECKING:
    from ..models.wav2vec2 import AudioEncoder

WINDOW = (-2, -1, 0, 1, 2)  # frames that a frame hears
WHOLE_S = 600.0  # the longest sound that is encoded in one piece; attention costs the square of its length
PIECE_S, OVERLAP_S = 120.0, 15.0  # of longer sound, and how much more each piece hears on both sides
IN_MEMORY = 2**24  # numbers (64 MB); more features than that live in a file
SILENCE_S = 4.0


def speaker_tracks(sounds: Sequence[Sound | None], audio_type: str) -> list[np.ndarray]:
    """Each speaker's samples on the video's time line, all of one length.

    Args:
        sounds: at 16 kHz; None for a speaker who is silent throughout.
        audio_type: para, all start together, or add, one after another in their order.
    Raises: InputError when nobody has sound, or for another audio_type.
    """
    if audio_type not in AUDIO_TYPES:
        raise InputError(f"audio_type {audio_type!r} is not known. Use one of {', '.join(AUDIO_TYPES)}.")
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

    Up to `whole_s` seconds every frame attends to all others, beyond that to the minutes around it. Many features lie
    in a file that is mapped into memory (an hour of one speaker: 3 GB).
    """
    frames = count_frames(len(samples), fps)
    heard = encoder.listen(torch.from_numpy(samples), frames)
    is_whole = len(samples) <= whole_s * SAMPLE_RATE
    size, margin = frames if is_whole else math.ceil(PIECE_S * fps), math.ceil(OVERLAP_S * fps)
    features = None
    for first in range(0, frames, size):
        last, start = min(first + size, frames), max(0, first - margin)
        piece = encoder.understand(heard[start : last + margin])[first - start : last - start]
        if features is None:
            shape = (frames, *piece.shape[1:])
            features = torch.empty(shape) if math.prod(shape) <= IN_MEMORY else mapped_tensor(shape)
        features[first:last] = piece
    return features


def mapped_tensor(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor that lives in a temporary file, which goes away with it.

    Raises: OutputError when the disk has no room for it, since running out of it later would end the process.
    """
    needed, folder = 4 * math.prod(shape), tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"The audio features need {needed / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB free. "
            "Make room, or set TMPDIR to a folder that has it."
        )
    with tempfile.TemporaryFile(prefix="wanvideo-") as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))


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
