"""Windows that are made with random weights, and the clock that times their parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ..engine.host import ProcessHost
from ..geometry import VideoGeometry
from ..memory.budget import IMAGE_TOKENS
from ..memory.residency import Residency
from ..models.audio_adapter import AudioConfig
from ..models.transformer import TransformerConfig
from ..models.vae import VAEConfig, WanVAE
from ..ops.precision import DTYPES
from ..request import EngineOptions, LoopSettings
from ..sampling.loop import Conditioning, run_windows
from ..sampling.window import StepReport
from ..synthetic.random_weights import full_config, random_transformer, random_vae


@dataclass(frozen=True)
class Size:
    """Models and window of a measurement. video, large: width and height of the presets for 480p and 720p."""

    transformer: TransformerConfig
    vae_dim: int
    video: tuple[int, int]
    large: tuple[int, int]
    frames: int
    motion: int


def sizes() -> dict[str, Size]:
    """full: as published; small: of the 1.3B model's width; tiny: for a CPU."""
    audio = AudioConfig(feature_dim=2 * 16, window=5, hidden_dim=32, num_tokens=32, token_dim=64)
    small = TransformerConfig(1536, 8960, 30, 36, 16, 4096, 256, 1280, full_config().audio)
    tiny = TransformerConfig(256, 512, 2, 36, 16, 64, 256, 1280, audio)
    return {
        "full": Size(full_config(), 96, (832, 480), (1280, 720), 81, 9),
        "small": Size(small, 96, (832, 480), (1280, 720), 81, 9),
        "tiny": Size(tiny, 8, (96, 64), (128, 96), 9, 5),
    }


@dataclass
class Clock:
    """Seconds of everything that is measured, the device waited for."""

    device: torch.device
    steps: list[float] = field(default_factory=list)
    encodes: list[float] = field(default_factory=list)
    decodes: list[float] = field(default_factory=list)
    last: float = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def step(self, report: StepReport) -> None:
        now = self.now()
        if report.step_index:  # the first step of a window also makes what its steps share
            self.steps.append(now - self.last)
        self.last = now

    def timed(self, work: Callable[..., Tensor], into: list[float]) -> Callable[..., Tensor]:
        def run(*args: object, **options: object) -> Tensor:
            start = self.now()
            result = work(*args, **options)
            into.append(self.now() - start)
            return result

        return run


class TimedVAE:
    """A VAE whose encodes and decodes a clock sees."""

    def __init__(self, vae: WanVAE, clock: Clock) -> None:
        self.device, self.dtype = vae.device, vae.dtype
        self.encode, self.decode = clock.timed(vae.encode, clock.encodes), clock.timed(vae.decode, clock.decodes)


def random_conditioning(config: TransformerConfig, geometry: VideoGeometry, num_frames: int) -> Conditioning:
    """A picture, a prompt and speech of noise."""
    assert config.audio is not None and config.image_dim is not None  # as of every size here
    generator = torch.Generator().manual_seed(2)
    layers = 12 if config.audio.feature_dim % 12 == 0 else 2
    features = layers, config.audio.feature_dim // layers

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Conditioning(
        references=noise(1, 3, geometry.height, geometry.width).mul(0.4).clamp(-1, 1),
        text_embeds=[noise(64, config.text_dim)],
        negative_text_embeds=noise(64, config.text_dim),
        image_embeds=noise(1, IMAGE_TOKENS, config.image_dim),
        audio=[noise(num_frames, *features)],
        silence=noise(1, *features),
        num_frames=num_frames,
    )


@dataclass(frozen=True)
class Measured:
    """Seconds of whole windows, of a step (0 where a window has only one), and of what is around them. peak_bytes: of
    the device, 0 on a CPU."""

    windows: tuple[float, ...]
    encodes: tuple[float, ...]
    decodes: tuple[float, ...]
    num_steps: int
    step: float
    peak_bytes: int
    attention: str
    is_finite: bool


@torch.no_grad()
def measure(size: Size, geometry: VideoGeometry, settings: LoopSettings, options: EngineOptions) -> Measured:
    """Make a first and a later window with random weights of `size`; blocks_to_stream has to be a number of blocks."""
    device, dtype = ProcessHost(options.device).device, DTYPES[options.dtype]
    is_gpu = device.type == "cuda"
    transformer = random_transformer(size.transformer, device, dtype, options.quantize)
    Residency(transformer, device).place(options.blocks_to_stream)
    attention = transformer.set_attention(options.attention)
    clock = Clock(device)
    vae = cast(WanVAE, TimedVAE(random_vae(VAEConfig(size.vae_dim), device, dtype), clock))  # it has what is called
    conditioning = random_conditioning(size.transformer, geometry, 2 * geometry.num_frames - size.motion)
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    windows, is_finite, start = [], True, clock.now()
    for window in run_windows(transformer, vae, conditioning, settings, 1, clock.step):
        now = clock.now()
        windows.append(now - start)
        is_finite = is_finite and bool(window.pixels.isfinite().all())
        start = clock.now()
    step = sorted(clock.steps)[len(clock.steps) // 2] if clock.steps else 0.0
    return Measured(
        tuple(windows), tuple(clock.encodes), tuple(clock.decodes), len(clock.steps), step,
        torch.cuda.max_memory_allocated(device) if is_gpu else 0, str(attention), is_finite,
    )  # fmt: skip
