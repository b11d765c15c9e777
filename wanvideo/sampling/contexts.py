"""What the steps of a window attend to: prompt, picture and sound, made once a window or once for all of them.

Legend: S speakers, F pixel frames of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio.features import audio_window
from ..errors import InputError
from ..geometry import VideoGeometry, WindowSpan
from ..models.audio_adapter import AudioContext
from ..models.transformer import WanTransformer
from ..models.transformer_layers import TextContext
from ..protocols import AudioSource
from .cached import Cached
from .conditioning import Conditioning
from .guidance import Pass
from .setup import SamplingSetup

AUDIO_CONTEXT = 2  # frames on each side whose entries belong to the audio context of a frame
AUDIO_TAIL = 3  # entries of silence beyond the last window's end, so that its last frames have silence ahead


@dataclass(frozen=True)
class Contexts:
    """What the steps of a window share, by what the passes ask for: the prompt or its negative, speech or none."""

    prompt: TextContext
    negative: TextContext | None
    speech: AudioContext | None
    null_speech: AudioContext | None

    def of(self, which: Pass) -> tuple[TextContext, AudioContext | None]:
        text = self.negative if which.uses_negative else self.prompt
        assert text is not None  # the setup whose passes are asked for also had the negative prompt encoded
        return text, self.null_speech if which.uses_null_audio else self.speech


class ContextMaker:
    """Makes the contexts of windows and keeps those that the next window shares.

    Raises: InputError when a pass needs what the conditioning does not have.
    """

    def __init__(
        self, transformer: WanTransformer, conditioning: Conditioning, setup: SamplingSetup, geometry: VideoGeometry
    ) -> None:
        self._transformer, self._conditioning, self._setup, self._geometry = transformer, conditioning, setup, geometry
        self._prompt: Cached[tuple[int, int], TextContext] = Cached()  # by prompt and picture
        self._negative: Cached[int, TextContext] = Cached()  # by picture
        self._null_speech: Cached[torch.Size, AudioContext] = Cached()  # by the shape of the silenced audio
        if not conditioning.text_embeds:
            raise InputError("There is no prompt. Encode at least one text, even an empty one.")
        if setup.needs_negative and conditioning.negative_text_embeds is None:
            raise InputError(
                f"guidance_scale {setup.settings.guidance_scale} compares with a negative prompt, and there is none. "
                "Encode one (it may be empty) or set guidance_scale to 1."
            )
        if setup.has_audio != conditioning.has_audio:
            raise InputError(
                f"The sampling setup is for a video {'with' if setup.has_audio else 'without'} sound, the conditioning "
                f"{'has' if conditioning.has_audio else 'has no'} sound. Make both for the same video."
            )

    def contexts(self, text_index: int, reference_index: int, audio: Tensor | None) -> Contexts:
        """Contexts of a window, with its text and its picture. audio: [S, F, 5, layers, channels] or None."""
        texts, images = self._conditioning.text_embeds, self._conditioning.image_embeds
        image = 0 if images is None else min(reference_index, len(images) - 1)
        prompt = self._prompt.get((text_index, image), lambda: self._text(texts[text_index], image))
        negative = speech = null_speech = None
        negative_embeds = self._conditioning.negative_text_embeds
        if self._setup.needs_negative and negative_embeds is not None:
            negative = self._negative.get(image, lambda: self._text(negative_embeds, image))
        if audio is not None:
            speech = self._speech(audio, self._conditioning.speaker_masks)
            if self._setup.needs_null_audio:
                silent = audio[:1]
                null_speech = self._null_speech.get(
                    silent.shape, lambda: self._speech(torch.zeros_like(silent), masks=None)
                )
        return Contexts(prompt, negative, speech, null_speech)

    def _text(self, embeds: Tensor, image: int) -> TextContext:
        images = self._conditioning.image_embeds
        return self._transformer.text_context(embeds, None if images is None else images[image][None])

    def _speech(self, audio: Tensor, masks: Tensor | None) -> AudioContext:
        size = self._geometry.latent_height, self._geometry.latent_width
        return self._transformer.audio_context(audio, masks, *size, self._setup.settings.audio_scale)


def read_audio_window(source: AudioSource, span: WindowSpan, num_windows: Callable[[], int | None]) -> Tensor | None:
    """The audio context of a window's frames: entries around each, of which the first and the last stand for beyond.

    Only these entries are read. In the last of several windows silence follows sound that ends before the window does.
    Args: num_windows: asked again once the entries are there, since live sound may have ended meanwhile.
    Returns: [S, F, 5, layers, channels], or None where the sound ended before this window.
    """
    known = source.num_frames
    last_entry = span.stop + AUDIO_CONTEXT if known is None else known
    first = max(0, min(span.start - AUDIO_CONTEXT, last_entry - 1))
    entries = source.features(first, min(span.stop + AUDIO_CONTEXT, last_entry))
    count, num_frames = num_windows(), source.num_frames
    if count is not None and span.index >= count:
        return None
    if not entries.shape[1]:  # live sound ended before the window, and the video is to be longer than its sound
        return read_audio_window(_spoken(source), span, num_windows)
    is_last = count is not None and 0 < span.index == count - 1
    if is_last and num_frames is not None and num_frames <= span.stop and len(source.silence):
        length = span.stop - num_frames + AUDIO_TAIL
        repeated = source.silence.repeat(-(-length // len(source.silence)), 1, 1)[-length:]
        entries = torch.cat((entries, repeated.to(entries).expand(len(entries), *repeated.shape)), 1)
    return torch.stack([audio_window(track, span.start - first, span.stop - span.start) for track in entries])


def _spoken(source: AudioSource) -> AudioSource:
    if not source.num_frames:
        raise InputError("The sound ended before its first video frame. Give at least 0.04 s of it.")
    return source
