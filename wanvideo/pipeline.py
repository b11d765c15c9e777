"""The public API: a request in, finished windows out, as they finish.

Legend: F frames, H W rows and columns, S speakers.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from .audio.speech import encode_tracks
from .checkpoints.load import (
    load_audio_encoder,
    load_clip_vision,
    load_text_encoder,
    load_transformer,
    load_vae,
)
from .checkpoints.quantize import TEXT_ENCODER_FORMATS
from .engine.conditioning import Prompts, make_conditioning, work_of
from .engine.files import resolve
from .engine.inputs import Media, open_media
from .engine.sizes import weigh
from .errors import CheckpointError, InputError
from .geometry import WindowPlan
from .lora.apply import apply_loras
from .lora.use import LoraUse
from .memory.budget import free_device_bytes
from .memory.hooked import streaming
from .memory.planner import Device, ModelWeights, RunPlan, plan_run
from .memory.residency import Residency, module_bytes
from .models.text_encoder import encode_prompts
from .models.transformer import HEAD_WIDTH, WanTransformer
from .models.vae import WanVAE
from .ops.attention.backends import choose
from .ops.precision import DTYPES
from .request import EngineOptions, ModelFiles, TalkRequest
from .sampling.guidance import Guidance
from .sampling.loop import Conditioning, Window, finished, run_windows
from .sampling.schedulers import scheduler_of
from .sampling.window import StepReport
from .text.tokenizer import load_tokenizer
from .video.writer import VideoWriter, check_output, free_name

logger = logging.getLogger("wanvideo")
Loaded = TypeVar("Loaded", bound=nn.Module)


@dataclass(frozen=True)
class FinishedWindow:
    """A window's share of the video.

    frames: [F, H, W, 3] uint8 on the CPU, only what is new and inside the video; start: the first one's number;
    seconds: that the window took.
    """

    index: int
    num_windows: int
    start: int
    frames: Tensor
    seconds: float


def finish(windows: Iterable[Window], plan: WindowPlan) -> Iterator[FinishedWindow]:
    """Cut each window to what it adds to the video, as bytes."""
    start = time.perf_counter()
    for window in windows:
        span = plan[window.index]
        frames = finished(window, plan)
        now = time.perf_counter()
        logger.info("Window %d of %d: %d frames, %.1f s.", span.index + 1, len(plan), len(frames), now - start)
        yield FinishedWindow(span.index, len(plan), span.new_start, frames, now - start)
        start = time.perf_counter()


class TalkingVideoPipeline:
    """Makes talking videos from requests.

    Args:
        files: where the models are. All are recognised here, none is loaded yet.
        options: device and precision.
    Raises: CheckpointError when a file is missing, damaged or of another kind.
    """

    def __init__(self, files: ModelFiles, options: EngineOptions | None = None) -> None:
        self.options = options or EngineOptions()
        self.device = _device(self.options.device)
        self.dtype = DTYPES[self.options.dtype]
        self.files = resolve(files)
        self._landing = self.device  # where the transformer's weights are loaded to
        self.loras = [LoraUse(lora.path, lora.strength) for lora in self.files.loras]

    @cached_property
    def transformer(self) -> WanTransformer:
        """Loaded onto the device, or into host memory where a run has planned that blocks stream."""
        model = load_transformer(
            self.files.transformer, self.files.adapter, dtype=self.dtype, device=self._landing,
            quantise=self.options.quantise,
        )  # fmt: skip
        apply_loras(model, self.loras)
        model.set_attention(self.options.attention)
        model.compile_blocks(self.options.compile)
        return model

    @cached_property
    def residency(self) -> Residency:
        """Where the transformer's blocks are."""
        return Residency(self.transformer, self.device, self.options.prefetch)

    @cached_property
    def weights(self) -> ModelWeights:
        """Sizes of all models, from the headers of their files."""
        return weigh(self.files, self.dtype, self.options.quantise)

    @cached_property
    def vae(self) -> WanVAE:
        return load_vae(self.files.vae, dtype=self.dtype, device=self.device)

    def run(
        self, request: TalkRequest, on_step: Callable[[StepReport], None] | None = None
    ) -> Iterator[FinishedWindow]:
        """Finished windows of a video, in order. The same request gives the same frames.

        Args: on_step: called after every step; what it raises ends the run.
        Raises: InputError for anything in the request that cannot be used, before a model is loaded.
        """
        media = self.check(request)
        return self._run(request, media, on_step)

    def generate(
        self,
        request: TalkRequest,
        output: str | Path | None = None,
        *,
        overwrite: bool = False,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> Path:
        """Make the video and write it, window by window, with the speakers' original sound.

        Args: output: path of the mp4; None: what the request names.
        Returns: the path that was written.
        Raises: as `run`; OutputError when it cannot be written there. What was finished stays playable.
        """
        path = check_output(output or request.output or free_name("talking_video.mp4"), overwrite)
        media = self.check(request)
        size = media.geometry.width, media.geometry.height
        with VideoWriter(path, *size, request.fps, audio=media.soundtrack, overwrite=overwrite) as writer:
            for window in self._run(request, media, on_step):
                writer.write(window.frames)
        return writer.path

    def plan(self, request: TalkRequest, device: Device | None = None) -> RunPlan:
        """What a request needs and how long it takes, before anything is loaded.

        Args: device: plan for this one instead of the one that is here.
        Raises: as `run`; InputError when it cannot fit.
        """
        return self._plan(request, self.check(request), device)

    def check(self, request: TalkRequest) -> Media:
        """Open and check everything that a request names; no model is loaded."""
        media = open_media(request)
        settings = request.settings
        steps = len(scheduler_of(settings).timesteps)
        for lora in self.loras:
            if isinstance(lora.strength, tuple) and len(lora.strength) != steps:
                raise InputError(
                    f"{lora.file} has {len(lora.strength)} strengths for a video of {steps} steps. "
                    "Give one strength, or one for each step."
                )
        if media.tracks is not None:
            self._needs("wav2vec", "speech", "chinese-wav2vec2-base")
            if not self.files.has_audio:
                raise CheckpointError(
                    f"{self.files.transformer[0].name} has no audio adapter, so nobody would speak. "
                    "Name one: infinitetalk.safetensors."
                )
        self._needs("text_encoder", "the prompt", "models_t5_umt5-xxl-enc-bf16.pth")
        self._needs("vae", "the video", "Wan2.1_VAE.pth")
        if self.files.clip_vision is None:
            logger.info("No CLIP vision model is named: faces keep less of the reference's likeness.")
        logger.info(
            "%d frames of %dx%d in %d windows of %d steps.",
            media.plan.total_frames, media.geometry.width, media.geometry.height, len(media.plan), settings.steps,
        )  # fmt: skip
        return media

    def _needs(self, name: str, what: str, example: str) -> None:
        if getattr(self.files, name) is None:
            raise CheckpointError(f"There is no model for {what}. Name it, e.g. {example}, or a folder that has it.")

    @torch.no_grad()  # as a decorator it holds inside only, not for whoever asks for the next window
    def _run(
        self, request: TalkRequest, media: Media, on_step: Callable[[StepReport], None] | None
    ) -> Iterator[FinishedWindow]:
        self._plan(request, media)  # refuses what cannot fit before the encoders are loaded
        conditioning = self._condition(request, media)
        plan = self._plan(request, media)
        logger.info("%s", plan.placement())
        self._place(plan)
        settings = replace(request.settings, tiled_vae=plan.tiled_vae)
        windows = run_windows(
            self.transformer, self.vae, conditioning, settings, request.seed, on_step, self._stream_more
        )  # fmt: skip
        yield from finish(windows, media.plan)

    def _plan(self, request: TalkRequest, media: Media, device: Device | None = None) -> RunPlan:
        settings = request.settings
        work = work_of(settings, len(media.tracks or ()), min(len(media.references), len(media.plan)))
        device = device or self._here()
        return plan_run(
            media.geometry, media.plan, request.fps, settings, self.options, self.weights, device, work
        )  # fmt: skip

    def _here(self) -> Device:
        """This device, with all the memory that is free or that the models of this pipeline hold."""
        if self.device.type != "cuda":
            return Device()
        held = self.residency.device_bytes if "residency" in vars(self) else 0
        held += module_bytes(self.vae) if "vae" in vars(self) else 0
        heads = self.weights.dim // HEAD_WIDTH
        attention = choose(self.options.attention, self.device, self.dtype, HEAD_WIDTH, heads).name
        name = torch.cuda.get_device_name(self.device)
        return Device(name, free_device_bytes(self.device) + held, attention)

    def _place(self, plan: RunPlan) -> None:
        if plan.memory.num_streamed:
            self._landing = torch.device("cpu")
        self.residency.place(plan.memory.num_streamed)
        self.transformer.set_attention(self.options.attention)

    def _stream_more(self) -> bool:
        """Let a quarter of the blocks more visit the device; False when all do already."""
        if self.device.type != "cuda":
            return False
        return self.residency.stream_more()

    def _condition(self, request: TalkRequest, media: Media) -> Conditioning:
        settings = request.settings
        guidance = Guidance(settings.guidance_scale, settings.audio_guidance_scale, has_audio=media.tracks is not None)
        prompts = [*request.prompts, *([request.negative_prompt] if guidance.needs_negative else [])]
        embeds = self._encode_prompts(prompts)
        audio = silence = None
        if media.tracks is not None:
            audio, silence = self._hear(media, request.fps)
        negative = embeds.pop() if guidance.needs_negative else None
        return make_conditioning(
            settings, media.references, Prompts(tuple(embeds), negative), media.plan.total_frames, features=audio,
            silence=silence, speaker_masks=media.speaker_masks, image_embeds=self._look(media.references),
        )  # fmt: skip

    def _encode_prompts(self, prompts: Sequence[str]) -> list[Tensor]:
        tokenizer = load_tokenizer(self.files.tokenizer)
        device = torch.device(self.options.text_encoder_device or self.device)
        streams = device.type == "cuda" and self.weights.text_encoder_bytes + 2**30 > free_device_bytes(device)
        landing = torch.device("cpu") if streams else device
        quantise = TEXT_ENCODER_FORMATS.get(self.options.quantise, self.options.quantise)
        if quantise != self.options.quantise:
            logger.info("The text encoder is quantised to %s, not %s.", quantise, self.options.quantise)
        loaded = load_text_encoder(self.files.text_encoder, dtype=self.dtype, device=landing, quantise=quantise)
        visits = streaming(loaded, loaded.encoder.block, device) if streams else nullcontext()
        with _briefly(loaded) as encoder, visits:
            return [embeds.to(self.device) for embeds in encode_prompts(encoder, tokenizer, prompts)]

    def _look(self, references: Sequence[Tensor]) -> Tensor | None:
        if self.files.clip_vision is None:
            return None
        with _briefly(load_clip_vision(self.files.clip_vision, dtype=self.dtype, device=self.device)) as encoder:
            return torch.cat([encoder.encode(references[k][None]).cpu() for k in range(len(references))])

    def _hear(self, media: Media, fps: float) -> tuple[list[Tensor], Tensor]:
        """Each speaker's features and those of silence."""
        with _briefly(load_audio_encoder(self.files.wav2vec, dtype=torch.float32, device=self.device)) as encoder:
            return encode_tracks(encoder, media.tracks, fps)


def _device(name: str | None) -> torch.device:
    """The device of this name, by default the GPU if there is one; tried out."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch is built without CUDA
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"device {name!r} cannot be used: {reason}. Use cuda, cuda:0 or cpu.") from None


@contextmanager
def _briefly(model: Loaded) -> Iterator[Loaded]:
    """A model for one use; its memory is given back afterwards."""
    yield model
    device = next(model.parameters()).device
    model.to("meta")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
