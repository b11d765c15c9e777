"""Where a video's audio features come from: memory, a temporary file, or another source that silence follows.

All of them fit `wanvideo.protocols.AudioSource`. Legend: S speakers, F video frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..protocols import AudioSource
from ..spool import Spool, check_room

WHAT = "The audio features"


class TensorAudio:
    """Features in memory. Args: tracks: [F, layers, channels] of each speaker. silence: [n, layers, channels]."""

    def __init__(self, tracks: Sequence[Tensor], silence: Tensor) -> None:
        shapes = {tuple(track.shape) for track in tracks}
        if len(shapes) != 1:
            listed = ", ".join(map(str, sorted(shapes))) or "none"
            raise InputError(
                f"The speakers' audio features differ in shape: {listed}. Make them of as many frames and layers."
            )
        self.num_speakers = len(tracks)
        self.silence = silence.to("cpu", torch.float32)
        self._tracks = tuple(tracks)

    @property
    def num_frames(self) -> int:
        return self._tracks[0].shape[0]

    def features(self, start: int, stop: int) -> Tensor:
        return torch.stack([track[start:stop].to("cpu", torch.float32) for track in self._tracks])


class SpooledAudio:
    """Features in a temporary file, which goes away with the object (an hour of one speaker: 3 GB).

    In the file they are [S, layers, F, channels], so that the encoder's layers can be written one after another.
    """

    def __init__(self, num_speakers: int, num_frames: int, silence: Tensor) -> None:
        """Raises: OutputError when the disk has no room for all of them."""
        self.num_speakers = num_speakers
        self.silence = silence.to("cpu", torch.float32)
        self._num_frames = num_frames
        self._layers, self._channels = silence.shape[1:]
        check_room(WHAT, 4 * num_speakers * num_frames * math.prod(silence.shape[1:]))
        self._spool = Spool(WHAT)

    @property
    def num_frames(self) -> int:
        return self._num_frames

    def write(self, speaker: int, layer: int, start: int, rows: Tensor) -> None:
        """Put rows [n, channels] of one layer at the frames from `start` on."""
        self._spool.write(self._place(speaker, layer, start), rows.to("cpu", torch.float32).flatten().numpy())

    def features(self, start: int, stop: int) -> Tensor:
        out = torch.empty(self.num_speakers, stop - start, self._layers, self._channels)
        entries = out.numpy()
        for speaker in range(self.num_speakers):
            for layer in range(self._layers):
                first, last = (self._place(speaker, layer, frame) for frame in (start, stop))
                entries[speaker, :, layer] = self._spool.read(first, last).reshape(-1, self._channels)
        return out

    def _place(self, speaker: int, layer: int, frame: int) -> int:
        return ((speaker * self._layers + layer) * self._num_frames + frame) * self._channels


def padded(source: AudioSource, num_frames: int) -> AudioSource:
    """`source`, continued with its silence (repeated if need be) to at least `num_frames` entries."""
    if source.num_frames is None or source.num_frames >= num_frames:
        return source
    return _PaddedAudio(source, source.num_frames, num_frames)


class _PaddedAudio:
    def __init__(self, source: AudioSource, given: int, num_frames: int) -> None:
        self.num_speakers, self.silence = source.num_speakers, source.silence
        self._source, self._given, self._num_frames = source, given, num_frames

    @property
    def num_frames(self) -> int:
        return self._num_frames

    def features(self, start: int, stop: int) -> Tensor:
        parts = []
        if start < self._given:
            parts.append(self._source.features(start, min(stop, self._given)))
        if stop > self._given:
            ahead = torch.arange(max(start, self._given), stop) - self._given
            silence = self.silence[ahead.remainder(len(self.silence))]
            parts.append(silence.expand(self.num_speakers, *silence.shape))
        return torch.cat(parts, 1)
