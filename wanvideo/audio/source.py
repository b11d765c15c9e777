"""Where audio features come from: classes that fit `protocols.AudioSource`. Legend: S speakers, F video frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError


class TensorAudio:
    """Features in memory. Args: tracks: [F, layers, channels] of each speaker. silence: [n, layers, channels]."""

    def __init__(self, tracks: Sequence[Tensor], silence: Tensor) -> None:
        shapes = {tuple(track.shape) for track in tracks}
        if len(shapes) != 1:
            listed = ", ".join(map(str, sorted(shapes))) or "none"
            raise InputError(f"The speakers' audio features differ in shape: {listed}. All need the same frames.")
        self.num_speakers = len(tracks)
        self.silence = silence.to("cpu", torch.float32)
        self._tracks = tuple(tracks)

    @property
    def num_frames(self) -> int:
        return self._tracks[0].shape[0]

    def features(self, start: int, stop: int) -> Tensor:
        return torch.stack([track[start:stop].to("cpu", torch.float32) for track in self._tracks])
