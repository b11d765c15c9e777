"""Sounds to the audio encoder's features, one entry a video frame.

Legend: N samples at 16 kHz, F video frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .load import SAMPLE_RATE

if TYPE_CHECKING:
    from ..models.wav2vec2 import AudioEncoder, Samples

Store = Callable[[int, int, Tensor], None]  # (layer, first frame, rows [n, hidden])

WINDOW = (-2, -1, 0, 1, 2)  # entries in the audio context of a frame
WHOLE_S = 600.0  # the longest sound that is encoded in one piece; attention costs the square of its length
PIECE_S, OVERLAP_S = 120.0, 15.0  # of longer sound, and how much context each piece has on both sides
SILENCE_S = 4.0


def count_frames(num_samples: int, fps: float) -> int:
    """Entries for so many samples: floor(N / 16000 * fps), at least 1, without the rounding of floating point.

    Source: the reference computes int(N / 16000 * 25) in floating point and loses a frame at some exact multiples.
    """
    return max(1, math.floor(Fraction(num_samples, SAMPLE_RATE) * Fraction(fps).limit_denominator(1001)))


def extract_features(encoder: AudioEncoder, samples: Samples, fps: float, *, whole_s: float = WHOLE_S) -> Tensor:
    """Features [F, layers, hidden] float32 on the CPU of samples [N] at 16 kHz, in memory; see `encode_pieces`."""
    config = encoder.config
    features = torch.empty(count_frames(len(samples), fps), config.num_layers, config.hidden_size)

    def store(layer: int, start: int, rows: Tensor) -> None:
        features[start : start + len(rows), layer] = rows

    encode_pieces(encoder, samples, fps, store, whole_s=whole_s)
    return features


def silence_features(encoder: AudioEncoder, fps: float, seconds: float = SILENCE_S) -> Tensor:
    """What the encoder makes of digital silence, [F, layers, hidden]: the embedding of nobody speaking."""
    return extract_features(encoder, torch.zeros(round(seconds * SAMPLE_RATE)), fps)


def encode_pieces(
    encoder: AudioEncoder, samples: Samples, fps: float, store: Store, *, whole_s: float = WHOLE_S
) -> None:
    """Features of samples [N] at 16 kHz as they are made: store(layer, first frame, rows [n, hidden]).

    Up to `whole_s` seconds every frame attends to all others, beyond that to the minutes around it.
    """
    frames = count_frames(len(samples), fps)
    clip = encoder.extract(samples, frames)
    is_whole = len(samples) <= whole_s * SAMPLE_RATE
    size, margin = frames if is_whole else math.ceil(PIECE_S * fps), math.ceil(OVERLAP_S * fps)
    for first in range(0, frames, size):
        last, start = min(first + size, frames), max(0, first - margin)
        piece = clip.frames(start, min(last + margin, frames))
        encoder.encode_layers(piece, partial(_store_part, store, first, slice(first - start, last - start)))


def _store_part(store: Store, first: int, part: slice, layer: int, output: Tensor) -> None:
    store(layer, first, output[part])


def audio_window(features: Tensor, start: int, num_frames: int) -> Tensor:
    """The audio context of each of `num_frames` frames from `start` on: [F, layers, hidden] -> [num_frames, 5, layers,
    hidden].

    Indices are clamped to the track, so its first and last entries stand for what lies beyond.
    """
    indices = torch.arange(start, start + num_frames)[:, None] + torch.tensor(WINDOW)
    return features[indices.clamp(0, features.shape[0] - 1)]
