"""What a video is made of once everything is encoded: from here on there are only tensors.

Legend: R reference pictures, S speakers, F video frames, H W rows and columns, T latent frames, n tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor

from ..audio.activity import quieted, speech_activity
from ..audio.source import padded
from ..errors import InputError
from ..geometry import FPS, VideoGeometry, WindowPlan
from ..memory.planner import Work
from ..protocols import AudioSource, References, SourceFrames
from ..request import Speaker, TalkRequest
from ..sampling.conditioning import Conditioning
from ..sampling.setup import SamplingSetup
from ..video.regions import speaker_masks, stack_masks
from .encoders import Encoders, encode_audio, encode_references

if TYPE_CHECKING:
    from ..video.soundtrack import Soundtrack
    from .inputs import Inputs

ROUNDING = 1e-6  # frames; 0.28 s at 25 frames a second is frame 7 and not a little more


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts, [n, dim] each, and the negative prompt, if there is one.

    starts: seconds from which each of `positive` serves (see prompts.PromptList); empty: one a window.
    """

    positive: tuple[Tensor, ...]
    negative: Tensor | None = None
    starts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Speech:
    """What everyone says.

    Args:
        audio: features of every speaker.
        scale, guidance_scale: factor on the audio attention, and audio guidance (1 for none).
        regions: masks [S, H, W] of the speakers as painted; None: two are left and right.
        num_frames: of the video. fps: frames a second. soundtrack: the sound of the video, or None.
    """

    audio: AudioSource
    num_frames: int
    fps: float
    scale: float = 1.0
    guidance_scale: float = 1.0
    regions: Tensor | None = None
    soundtrack: Soundtrack | None = None

    def masks(self, picture_size: tuple[int, int], width: int, height: int) -> Tensor | None:
        """[S + 1, height, width], the background last; None for fewer than two speakers.

        Args: picture_size: width and height of the reference before it was fitted to the video.
        """
        if self.audio.num_speakers < 2:
            return None
        if self.regions is None:
            return speaker_masks([Speaker(None)] * self.audio.num_speakers, picture_size, width, height)
        return stack_masks([region.cpu().numpy() > 0.5 for region in self.regions], width, height)


@dataclass(frozen=True)
class Clip:
    """One clip without a window loop.

    Args:
        condition: [20, T, H/8, W/8], or None where nothing is known of it. image_embeds: [1, 257, dim] or None.
        samples: [16, N, H/8, W/8], latents to start from, or None.
    """

    geometry: VideoGeometry
    condition: Tensor | None
    prompts: Prompts
    image_embeds: Tensor | None = None
    speech: Speech | None = None
    samples: Tensor | None = None

    def workload(self, setup: SamplingSetup) -> Workload:
        """What sampling it computes."""
        plan = WindowPlan(self.geometry.num_frames, self.geometry.num_frames, 1)
        num_speakers = self.speech.audio.num_speakers if self.speech else 0
        return Workload(self.geometry, plan, self.speech.fps if self.speech else FPS, setup, num_speakers, 0)


@dataclass(frozen=True)
class Workload:
    """How much a run computes: its windows, and what they are sampled from.

    num_references: pictures and windows of a source that the VAE encodes; 0 where it has no part in the run.
    """

    geometry: VideoGeometry
    windows: WindowPlan
    fps: float
    setup: SamplingSetup
    num_speakers: int
    num_references: int

    @property
    def work(self) -> Work:
        """How often the transformer runs, and on what."""
        setup = self.setup
        return Work(
            num_steps=setup.num_steps, num_passes=len(setup.passes), num_speakers=self.num_speakers,
            num_texts=1 + setup.needs_negative, num_speeches=setup.has_audio + setup.needs_null_audio,
            num_references=self.num_references,
        )  # fmt: skip


def workload_of(conditioning: Conditioning, setup: SamplingSetup) -> Workload:
    """What rendering it computes."""
    height, width = conditioning.references[0].shape[-2:]
    settings, audio = setup.settings, conditioning.audio_source
    plan = WindowPlan(conditioning.total_frames, settings.window_frames, settings.motion_frames, conditioning.cuts)
    return Workload(
        VideoGeometry(width, height, settings.window_frames), plan, conditioning.fps, setup,
        0 if audio is None else audio.num_speakers,
        _encoded(conditioning.references, plan, conditioning.source, settings.reanchor),
    )  # fmt: skip


def _encoded(
    references: References, plan: WindowPlan, source: SourceFrames | None, reanchor: int
) -> int:  # fmt: skip
    """How often known pictures are encoded; where nobody knows how many windows there are, for the first of them."""
    num_windows = plan.num_windows or 1
    anchors = (num_windows - 1) // reanchor if reanchor else 0
    return min(len(references), num_windows) + anchors + (0 if source is None else num_windows)


def workload_of_request(request: TalkRequest, inputs: Inputs) -> Workload:
    """What rendering a request computes, before anything of it is encoded."""
    return Workload(
        inputs.geometry, inputs.plan, request.fps, inputs.setup, len(inputs.tracks or ()),
        _encoded(inputs.references, inputs.plan, inputs.source, request.settings.reanchor),
    )  # fmt: skip


def encode_request(request: TalkRequest, inputs: Inputs, encoders: Encoders) -> Conditioning:
    """Everything that a request names, encoded; each encoder is loaded, used and left one after another."""
    needs_negative = inputs.setup.needs_negative
    embeds = encoders.embeds_of([*request.prompts, *([request.negative_prompt] if needs_negative else [])])
    audio = image_embeds = None
    if inputs.tracks is not None:
        audio = encode_audio(encoders.for_speech(), inputs.tracks, request.fps)
        if request.voice_activity:
            audio = quieted(audio, speech_activity(inputs.tracks, cast(int, audio.num_frames), request.fps))
    negative = embeds.pop() if needs_negative else None
    if encoders.clip_vision is not None:
        with encoders.clip_vision.in_use() as model:
            image_embeds = encode_references(model.encode, inputs.references)
    prompts = Prompts(tuple(embeds), negative, request.prompt_starts)
    return make_conditioning(
        inputs.setup, inputs.references, prompts, inputs.num_frames, audio=audio, speaker_masks=inputs.speaker_masks,
        image_embeds=image_embeds, fps=request.fps, source=inputs.source, cuts=inputs.plan.cuts,
    )  # fmt: skip


def make_conditioning(
    setup: SamplingSetup, references: References, prompts: Prompts, num_frames: int, *,
    audio: AudioSource | None = None, speaker_masks: Tensor | None = None, image_embeds: References | None = None,
    samples: Tensor | None = None, fps: float = FPS, source: SourceFrames | None = None, cuts: tuple[int, ...] = (),
) -> Conditioning:  # fmt: skip
    """What the window loop takes (see `Conditioning`), from what was encoded.

    Raises: InputError when something that `setup` needs is missing.
    """
    check_prompts(prompts, setup)
    if audio is not None and num_frames <= setup.settings.window_frames:
        audio = padded(audio, setup.settings.window_frames + 2)  # the loop does so where there are several windows
    return Conditioning(
        references, list(prompts.positive), prompts.negative, image_embeds, audio, None, speaker_masks, samples,
        num_frames, fps, source, cuts, tuple(math.ceil(start * fps - ROUNDING) for start in prompts.starts),
    )  # fmt: skip


def check_prompts(prompts: Prompts, setup: SamplingSetup) -> None:
    """Raises: InputError when guidance compares with a negative prompt and there is none."""
    if setup.needs_negative and prompts.negative is None:
        raise InputError(
            f"A guidance scale (cfg) of {setup.settings.guidance_scale} compares with a negative prompt, and there is "
            "none. Encode one, it may be empty, or set the scale to 1."
        )
