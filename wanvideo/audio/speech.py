"""Speakers' sounds made ready for the audio encoder, and what it hears in them.

Legend: N samples at 16 kHz, F video frames.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .features import extract_features, silence_features, speaker_tracks
from .load import Sound, check_speech
from .loudness import normalise
from .mix import with_noise_floor, without_transients

if TYPE_CHECKING:
    from ..models.wav2vec2 import AudioEncoder

logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Preparation:
    """What is done to speech before it is encoded.

    normalise_loudness: to -23 LUFS. noise_floor: steady noise at -45 dBFS. smooth: only what is below 3 kHz.
    max_s: seconds of it that are used, in all; 0 for no limit.
    """

    normalise_loudness: bool = True
    noise_floor: bool = False
    smooth: bool = False
    max_s: float = 0.0


def prepare_tracks(
    sounds: Sequence[Sound | None], audio_type: str, how: Preparation = Preparation()
) -> list[np.ndarray]:
    """Each speaker's samples [N] on one time line; None stands for a speaker without sound.

    Raises: InputError for sound in which nobody could be heard, or when nobody has any.
    """
    ready: list[Sound | None] = []
    left_s = how.max_s or float("inf")
    for number, sound in enumerate(sounds, 1):
        if sound is not None:
            check_speech(sound, f"speaker {number}")
            sound = _cut(sound, left_s, number)
            left_s -= sound.duration_s if audio_type == "add" else 0
            sound = replace(sound, samples=_treated(sound, how))
        ready.append(sound)
    return speaker_tracks(ready, audio_type)


def encode_tracks(encoder: AudioEncoder, tracks: Sequence[np.ndarray], fps: float) -> tuple[list[Tensor], Tensor]:
    """Features [F, layers, hidden] of each track, and those of silence."""
    return [extract_features(encoder, track, fps) for track in tracks], silence_features(encoder, fps)


def _cut(sound: Sound, seconds: float, number: int) -> Sound:
    if sound.duration_s <= seconds:
        return sound
    logger.info("The sound of speaker %d lasts %.2f s; %.2f s of it are used.", number, sound.duration_s, seconds)
    return sound.cut(seconds)


def _treated(sound: Sound, how: Preparation) -> np.ndarray:
    samples = sound.samples
    if how.normalise_loudness and len(samples):
        samples = normalise(samples, sound.sample_rate)
    if how.noise_floor:
        samples = with_noise_floor(samples)
    return without_transients(samples, sound.sample_rate) if how.smooth else samples
