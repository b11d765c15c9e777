"""What a video is made from, all of it encoded.

Legend: R reference pictures, S speakers, H W pixel rows and columns, h w latent rows and columns, n tokens or frames.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..audio.source import TensorAudio
from ..errors import InputError
from ..geometry import FPS, WindowSpan
from ..protocols import AudioSource, References, SourceFrames


@dataclass(frozen=True)
class Conditioning:
    """What a video is made from.

    Args:
        references: [R, 3, H, W] in -1..1, or any `References`; picture k serves window k, the last repeats.
        text_embeds: one [n, dim] a window, the last repeats; or by text_starts. negative_text_embeds: [n, dim] or None.
        image_embeds: [1 or R, 257, image_dim], as references a tensor or read when asked for, or None.
        audio: an AudioSource, or for each speaker [frames, layers, channels], one entry a video frame; None: no sound.
        silence: [n, layers, channels] beside audio as tensors; its last frames continue it in the last window.
        speaker_masks: [S + 1, H, W], the background last; needed from two speakers on.
        samples: [16, n, h, w], latents of a source video to start from, or None.
        num_frames: frames of the video; None: as many as audio has, which may not be known yet.
        fps: frames a second.
        source: a video that is dubbed: only a region of it is made anew; None: everything is.
        cuts: frames other than 0 where a scene begins, which continues nothing from before.
        text_starts: frames from which each of text_embeds serves, the first 0, rising: a window has the text of its
            first new frame. Empty: one a window.
    """

    references: References
    text_embeds: Sequence[Tensor]
    negative_text_embeds: Tensor | None = None
    image_embeds: References | None = None
    audio: AudioSource | Sequence[Tensor] | None = None
    silence: Tensor | None = None
    speaker_masks: Tensor | None = None
    samples: Tensor | None = None
    num_frames: int | None = None
    fps: float = FPS
    source: SourceFrames | None = None
    cuts: tuple[int, ...] = ()
    text_starts: tuple[int, ...] = ()

    @property
    def has_audio(self) -> bool:
        return self.audio_source is not None

    @property
    def audio_source(self) -> AudioSource | None:
        """The features of all speakers, wherever they are; None for no sound."""
        if not isinstance(self.audio, Sequence):
            return self.audio
        if not self.audio:
            return None
        silence = self.audio[0][:0] if self.silence is None else self.silence
        return TensorAudio(self.audio, silence)

    @property
    def num_many_embeds(self) -> int:
        """How many image_embeds there are where they are so many that they are only handed on one by one; else 0."""
        count = 0 if self.image_embeds is None else len(self.image_embeds)
        return count if count > 1 else 0

    def text_index(self, span: WindowSpan) -> int:
        """Which of text_embeds serves a window."""
        if self.text_starts:
            return bisect_right(self.text_starts, span.new_start) - 1
        return min(span.index, len(self.text_embeds) - 1)

    @property
    def total_frames(self) -> int | None:
        """Frames of the video; None while the sound does not say how many it has.

        Raises: InputError where nothing will ever say it.
        """
        if self.num_frames is not None:
            return self.num_frames
        source = self.audio_source
        if source is None:
            raise InputError("Without sound the video needs a length: give num_frames.")
        return source.num_frames
