"""What a talking video is made of once everything is encoded: from here on there are only tensors.

Legend: R reference pictures, S speakers, F video frames, H W rows and columns, n tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..audio.features import pad_features
from ..errors import InputError
from ..memory.planner import Work
from ..request import LoopSettings, Speaker
from ..sampling.guidance import Guidance
from ..sampling.loop import Conditioning
from ..sampling.schedulers import scheduler_of
from ..video.regions import speaker_masks, stack_masks

if TYPE_CHECKING:
    from ..video.soundtrack import Soundtrack


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts, one a window, [n, dim] each, and the negative prompt, if there is one."""

    positive: tuple[Tensor, ...]
    negative: Tensor | None = None


@dataclass(frozen=True)
class Speech:
    """What everyone says.

    Args:
        features: [F, layers, channels] of each speaker, all of one length. silence: [n, layers, channels].
        scale, guidance_scale: factor on the audio attention, and audio guidance (1 for none).
        regions: masks [S, H, W] of the speakers as painted; None: two are left and right.
        num_frames: of the video. fps: frames a second. soundtrack: what is heard in the video, or None.
    """

    features: tuple[Tensor, ...]
    silence: Tensor
    num_frames: int
    fps: float
    scale: float = 1.0
    guidance_scale: float = 1.0
    regions: Tensor | None = None
    soundtrack: Soundtrack | None = None

    def masks(self, width: int, height: int) -> Tensor | None:
        """[S + 1, height, width], the background last; None for fewer than two speakers."""
        if len(self.features) < 2:
            return None
        if self.regions is None:
            return speaker_masks([Speaker(None)] * len(self.features), (width, height), width, height)
        return stack_masks([region.cpu().numpy() > 0.5 for region in self.regions], width, height)


def make_conditioning(
    settings: LoopSettings, references: Tensor | Sequence[Tensor], prompts: Prompts, num_frames: int, *,
    features: Sequence[Tensor] | None = None, silence: Tensor | None = None, speaker_masks: Tensor | None = None,
    image_embeds: Tensor | None = None, samples: Tensor | None = None,
) -> Conditioning:  # fmt: skip
    """What the window loop takes (see `Conditioning`), from what was encoded.

    Raises: InputError when something that `settings` need is missing.
    """
    check_prompts(prompts, settings, has_audio=features is not None)
    if features is not None and num_frames <= settings.window_frames:
        # The loop appends silence only where there are several windows.
        features = [pad_features(track, settings.window_frames + 2, silence) for track in features]
    return Conditioning(
        references, list(prompts.positive), prompts.negative, image_embeds, features, silence, speaker_masks, samples,
        num_frames,
    )  # fmt: skip


def check_prompts(prompts: Prompts, settings: LoopSettings, has_audio: bool) -> None:
    """Raises: InputError when guidance compares with a negative prompt and there is none."""
    guidance = Guidance(settings.guidance_scale, settings.audio_guidance_scale, has_audio=has_audio)
    if guidance.needs_negative and prompts.negative is None:
        raise InputError(
            f"A guidance scale (cfg) of {settings.guidance_scale} compares with a negative prompt, and there is none. "
            "Encode one, it may be empty, or set the scale to 1."
        )


def work_of(settings: LoopSettings, num_speakers: int, num_references: int) -> Work:
    """How often the transformer runs with these settings, and on what."""
    guidance = Guidance(settings.guidance_scale, settings.audio_guidance_scale, has_audio=num_speakers > 0)
    return Work(
        num_steps=scheduler_of(settings).num_steps, num_passes=len(guidance.passes), num_speakers=num_speakers,
        num_texts=1 + guidance.needs_negative, num_speeches=(num_speakers > 0) + guidance.needs_null_audio,
        num_references=num_references,
    )  # fmt: skip
