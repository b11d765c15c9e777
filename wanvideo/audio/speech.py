"""Speakers' sounds made ready for the audio encoder, on the video's time line, and encoded.

Legend: N samples at 16 kHz.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..protocols import AudioSource
from ..request import AUDIO_TYPES
from .features import count_frames, encode_pieces, extract_features, silence_features
from .load import Sound, check_speech
from .loudness import normalize
from .source import SpooledAudio, TensorAudio
from .treatment import with_noise_floor, without_transients

if TYPE_CHECKING:
    from ..models.wav2vec2 import AudioEncoder, Samples

TRAINED_SPEAKERS = 2  # more are told apart by numbers that the adapters have, but no video taught them
IN_MEMORY = 2**22  # numbers (16 MB); more features than that are in a file

logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Preparation:
    """What is done to speech before it is encoded.

    normalize_loudness: to -23 LUFS. noise_floor: steady noise at -45 dBFS. smooth: only what is below 3 kHz.
    max_s: seconds of it that are used, in all; 0 for no limit.
    """

    normalize_loudness: bool = True
    noise_floor: bool = False
    smooth: bool = False
    max_s: float = 0.0


@dataclass(frozen=True, eq=False)
class SpeechTrack:
    """A speaker's samples on the video's time line: silence, the speaker's sound, silence; read in parts.

    Args: sound: or None for silence throughout. start: of the sound, in samples. num_samples: of the whole track.
    `track[start:stop]` are samples [stop - start] float32, as of a tensor.
    """

    sound: Sound | None
    start: int
    num_samples: int

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, span: slice, /) -> Tensor:
        first, stop, _ = span.indices(self.num_samples)
        samples = torch.zeros(max(0, stop - first))
        if self.sound is not None:
            inside = max(first, self.start), min(stop, self.start + self.sound.num_samples)
            if inside[0] < inside[1]:
                spoken = self.sound.read(inside[0] - self.start, inside[1] - self.start)
                samples.numpy()[inside[0] - first : inside[1] - first] = spoken
        return samples


def prepare_tracks(
    sounds: Sequence[Sound | None], audio_type: str, how: Preparation = Preparation()
) -> list[SpeechTrack]:
    """Each speaker's samples on one time line; None stands for a speaker without sound.

    Raises: InputError for silent sound, or when nobody has any.
    """
    num_speaking = sum(sound is not None for sound in sounds)
    if num_speaking > TRAINED_SPEAKERS:
        logger.warning(
            "%d people speak: the audio adapters were trained with one and with two, the lips of more move less well.",
            num_speaking,
        )
    ready: list[Sound | None] = []
    left_s = how.max_s or float("inf")
    for number, sound in enumerate(sounds, 1):
        if sound is not None:
            check_speech(sound, f"speaker {number}")
            sound = _cut(sound, left_s, number)
            left_s -= sound.duration_s if audio_type == "add" else 0
            sound = _treated(sound, how)
        ready.append(sound)
    return speaker_tracks(ready, audio_type)


def speaker_tracks(sounds: Sequence[Sound | None], audio_type: str) -> list[SpeechTrack]:
    """Each speaker's track, all of one length.

    Args:
        sounds: None for a speaker who is silent throughout.
        audio_type: para, all start together, or add, one after another in their order.
    Raises: InputError when nobody has sound, or for another audio_type.
    """
    if audio_type not in AUDIO_TYPES:
        raise InputError(f"audio_type {audio_type!r} is not known. Use one of {', '.join(AUDIO_TYPES)}.")
    if all(sound is None for sound in sounds):
        raise InputError("No speaker has sound. Give at least one file, or make a video without sound.")
    lengths = [0 if sound is None else sound.num_samples for sound in sounds]
    if audio_type == "para":
        return [SpeechTrack(sound, 0, max(lengths)) for sound in sounds]
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    return [SpeechTrack(sound, start, sum(lengths)) for sound, start in zip(sounds, starts, strict=True)]


def encode_tracks(encoder: AudioEncoder, tracks: Sequence[Samples], fps: float) -> AudioSource:
    """Features of every speaker's track, all of one length; many live in a temporary file.

    Raises: OutputError when the disk has no room for them.
    """
    silence = silence_features(encoder, fps)
    frames = count_frames(len(tracks[0]), fps)
    if len(tracks) * frames * math.prod(silence.shape[1:]) <= IN_MEMORY:
        return TensorAudio([extract_features(encoder, track, fps) for track in tracks], silence)
    source = SpooledAudio(len(tracks), frames, silence)
    for speaker, track in enumerate(tracks):
        encode_pieces(encoder, track, fps, partial(source.write, speaker))
    return source


def _cut(sound: Sound, seconds: float, number: int) -> Sound:
    if sound.duration_s <= seconds:
        return sound
    logger.info("The sound of speaker %d lasts %.2f s; %.2f s of it are used.", number, sound.duration_s, seconds)
    return sound.cut(seconds)


def _treated(sound: Sound, how: Preparation) -> Sound:
    if how.normalize_loudness:
        sound = normalize(sound)
    if how.noise_floor:
        sound = with_noise_floor(sound)
    return without_transients(sound) if how.smooth else sound
