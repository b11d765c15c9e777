"""The parts of a video, each measured once with random weights: a step of each kind, the VAE at each size."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import FPS, VideoGeometry, WindowPlan
from ..memory.budget import GIB, free_device_bytes
from ..memory.oom import OomRetry, make_fallbacks
from ..memory.planner import Device, ModelWeights, RunPlan, Work, plan_run
from ..memory.residency import Residency, module_bytes
from ..memory.speed import PartSeconds
from ..models.transformer import TransformerConfig, WanTransformer
from ..models.vae import VAEConfig, WanVAE
from ..ops.precision import DTYPES
from ..request import EngineOptions, LoopSettings
from ..sampling.codec import VideoCodec
from ..sampling.contexts import ContextMaker, Contexts, read_audio_window
from ..sampling.denoiser import Denoiser
from ..sampling.guidance import Pass
from ..sampling.setup import SamplingSetup
from ..synthetic.random_weights import random_transformer, random_vae
from .measure import Clock, Size, random_conditioning

WARM_BLOCKS = 2  # all blocks run the same kernels: so many of them compile and warm what all need


@dataclass(frozen=True)
class StepPart:
    """A step with all of its passes.

    held_bytes, peak_bytes: of the device after it (weights and contexts) and during it, 0 on a CPU.
    """

    seconds: float
    num_streamed: int
    held_bytes: int
    peak_bytes: int
    is_finite: bool


@dataclass(frozen=True)
class CodecPart:
    """The VAE's seconds for a window, as in `PartSeconds`. extra_bytes: beside what the device held, 0 on a CPU."""

    decode: float
    encode: float
    encode_overlap: float
    is_tiled: bool
    extra_bytes: int


@dataclass(frozen=True)
class VideoParts:
    """All that a video's windows consist of, as one choice of settings has them."""

    step: StepPart
    codec: CodecPart
    setup: SamplingSetup

    @property
    def seconds(self) -> PartSeconds:
        codec = self.codec
        return PartSeconds(self.step.seconds, codec.decode, codec.encode, codec.encode_overlap)

    @property
    def peak_bytes(self) -> int:
        """Of the device: in a step, or while the VAE works beside what a step leaves there."""
        return max(self.step.peak_bytes, self.step.held_bytes + self.codec.extra_bytes)


@dataclass(frozen=True)
class StepInputs:
    """What a step of a first window is given, of noise: latents [16, T, h, w], timestep, condition [20, T, h, w]."""

    latents: Tensor
    timestep: float
    condition: Tensor
    contexts: Contexts

    @classmethod
    def of(cls, model: WanTransformer, geometry: VideoGeometry, setup: SamplingSetup) -> StepInputs:
        conditioning = random_conditioning(model.config, geometry, geometry.num_frames)
        assert conditioning.audio_source is not None  # it has speech
        audio = read_audio_window(conditioning.audio_source, _one_window(geometry)[0], lambda: 1)
        contexts = ContextMaker(model, conditioning, setup, geometry).contexts(0, 0, audio)
        generator = torch.Generator(model.device).manual_seed(4)
        channels = torch.randn(36, *geometry.latent_shape[1:], device=model.device, generator=generator)
        return cls(channels[:16], setup.timesteps[0], channels[16:], contexts)

    def run(self, model: WanTransformer, skip: frozenset[int] = frozenset()) -> Tensor:
        """The velocity of the first pass. skip: blocks that are left out."""
        timestep = torch.tensor([self.timestep], device=self.latents.device)
        return model.denoise(self.latents, timestep, self.condition, *self.contexts.of(Pass.COND), skip)


class Parts:
    """Measures parts on one device. It holds one transformer, the last that was asked for, and one VAE."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device, self.clock = size, device, Clock(device)
        self._codecs: dict[tuple[VideoGeometry, bool], CodecPart] = {}
        self._vae: WanVAE | None = None
        self._format: tuple[str | None, str] | None = None
        self._residency: Residency[WanTransformer] | None = None
        self._model: WanTransformer | None = None

    @torch.no_grad()
    def measure(self, geometry: VideoGeometry, settings: LoopSettings, options: EngineOptions) -> VideoParts:
        """Placed as a run of its own would be. Raises: TalkError where that does not fit the device."""
        model, residency = self._transformer(options)
        if self._vae is None:
            self._vae = random_vae(VAEConfig(self.size.vae_dim), self.device, DTYPES[options.dtype])
        setup = SamplingSetup.of(settings, has_audio=True)
        plan = self._plan(geometry, setup, options, model, residency, self._vae)
        self._free()
        residency.place(plan.memory.num_streamed)
        model.set_attention(options.attention)
        retry = OomRetry(0, make_fallbacks(residency.stream_more))
        step = retry.run(lambda: self._step(model, residency, geometry, setup))
        key = geometry, plan.tiled_vae
        if key not in self._codecs:
            codec = VideoCodec(self._vae, plan.tiled_vae)
            fallbacks = make_fallbacks(residency.stream_more, codec.tile)
            found = OomRetry(0, fallbacks).run(lambda: self._codec(codec, geometry, settings.motion_frames))
            self._codecs[key] = found
        return VideoParts(step, self._codecs[key], setup)

    def _step(
        self, model: WanTransformer, residency: Residency[WanTransformer], geometry: VideoGeometry, setup: SamplingSetup
    ) -> StepPart:
        inputs = StepInputs.of(model, geometry, setup)
        denoiser = Denoiser(model, inputs.contexts, setup.guidance(), inputs.condition, num_steps=setup.num_steps)
        inputs.run(model, frozenset(range(WARM_BLOCKS, len(model.blocks))))
        self._reset_peak()
        start = self.clock.now()
        velocity = denoiser(inputs.latents, inputs.timestep)
        seconds = self.clock.now() - start
        held, streamed = self._held_bytes(), residency.num_streamed or 0
        return StepPart(seconds, streamed, held, self._peak_bytes(), bool(velocity.isfinite().all()))

    def _codec(self, codec: VideoCodec, geometry: VideoGeometry, overlap: int) -> CodecPart:
        self._free()
        shape = geometry.height, geometry.width
        picture, last_frames = (torch.zeros(3, frames, *shape, device=self.device) for frames in (1, overlap))
        latents = torch.randn(geometry.latent_shape, device=self.device)
        codec.decode(codec.encode(last_frames), "The warm-up")
        self._reset_peak()
        held, times = self._held_bytes(), list[float]()
        for work in (
            lambda: codec.encode(last_frames),
            lambda: codec.encode_start(picture, geometry.num_frames),
            lambda: codec.decode(latents, "The measured window"),
        ):
            self.clock.timed(work, times)()
        encode_overlap, encode, decode = times
        return CodecPart(decode, encode, encode_overlap, codec.is_tiled, self._peak_bytes() - held)

    def _transformer(self, options: EngineOptions) -> tuple[WanTransformer, Residency[WanTransformer]]:
        """The model of a format; the one before it goes first."""
        wanted = options.quantize, options.dtype
        if self._model is None or self._residency is None or self._format != wanted:
            self._format = self._model = self._residency = None
            self._free()
            config = self.size.transformer
            rest = None if self._fits(config, options) else "cpu"
            self._model = random_transformer(config, self.device, DTYPES[options.dtype], options.quantize, rest=rest)
            self._residency, self._format = Residency(self._model, self.device, options.prefetch), wanted
        return self._model, self._residency

    def _fits(self, config: TransformerConfig, options: EngineOptions) -> bool:
        """Whether all weights can be on the device at once, beside a block that is being made."""
        if self.device.type != "cuda":
            return True
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in WanTransformer(config).parameters())
        itemsize = 1 if options.quantize else DTYPES[options.dtype].itemsize
        return count * itemsize + 4 * GIB < free_device_bytes(self.device)

    def _plan(
        self, geometry: VideoGeometry, setup: SamplingSetup, options: EngineOptions, model: WanTransformer,
        residency: Residency[WanTransformer], vae: WanVAE,
    ) -> RunPlan:  # fmt: skip
        """Where the planner would put a window's models on this device, all of them off it before."""
        config, device = model.config, Device()
        assert config.audio is not None  # as of every size
        weights = ModelWeights(
            config.num_layers, residency.block_bytes, residency.other_bytes, config.dim, config.ffn_dim,
            config.audio.num_tokens, options.quantize or options.dtype, module_bytes(vae), 0,
        )  # fmt: skip
        if self.device.type == "cuda":
            held = residency.device_bytes + module_bytes(vae)
            device = Device(torch.cuda.get_device_name(self.device), free_device_bytes(self.device) + held)
        work = Work(setup.num_steps, len(setup.passes), 1, 1 + setup.needs_negative, 1 + setup.needs_null_audio, 1)
        return plan_run(geometry, _one_window(geometry), FPS, setup.settings, options, weights, device, work)

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _held_bytes(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def _peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0


def _one_window(geometry: VideoGeometry) -> WindowPlan:
    return WindowPlan(geometry.num_frames, geometry.num_frames, overlap=1)
