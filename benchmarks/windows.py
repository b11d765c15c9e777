"""The VAE, whole windows of a video, and windows inside the memory of smaller cards; random full-size weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from measure import GIB, SIZES, Report, cosine, draw, free, peak_gib, seconds
from transformer import FAST, build

from wanvideo.engine.conditioning import Workload
from wanvideo.errors import TalkError
from wanvideo.geometry import FPS, VideoGeometry, WindowPlan
from wanvideo.memory.planner import Device, ModelWeights, plan_run
from wanvideo.memory.residency import Residency, module_bytes
from wanvideo.models.transformer import WanTransformer
from wanvideo.models.vae import VAEConfig, WanVAE
from wanvideo.models.vae_tiling import Tiling
from wanvideo.presets import load_preset, preset_names
from wanvideo.request import EngineOptions, LoopSettings
from wanvideo.sampling.loop import Conditioning, run_windows
from wanvideo.sampling.setup import SamplingSetup
from wanvideo.synthetic.random_weights import random_vae

CONTEXT_BYTES = 600 * 2**20  # what CUDA itself takes of a card
# Beside the presets in their stated memory: configurations for cards of 8, 10, 12, 16 and 24 GB.
FAST_SETTINGS = LoopSettings(steps=4, shift=11.0, guidance_scale=1.0, audio_guidance_scale=1.0)
CARDS = tuple(
    (f"{size} GB card, {storage or 'bf16'}", size, "480p", FAST_SETTINGS, EngineOptions(quantize=storage))
    for size, storage in ((8, "fp8"), (12, "fp8"), (16, "fp8"), (24, "fp8"), (10, None), (24, None))
)


@torch.inference_mode(False)
@torch.no_grad()
def build_vae() -> WanVAE:
    return random_vae(VAEConfig(96), "cuda", torch.bfloat16)


@torch.inference_mode()
def vae(report: Report) -> None:
    model = build_vae()
    for size, geometry in SIZES.items():
        latents = draw(*geometry.latent_shape, dtype=torch.float32)
        pixels = draw(3, geometry.num_frames, geometry.height, geometry.width).clamp_(-1, 1)
        for how, tiling in (("whole", None), ("tiled", Tiling.default())):
            work = {"decode": partial(model.decode, latents, tiling), "encode": partial(model.encode, pixels, tiling)}
            for name, run in work.items():
                free()
                start = time.perf_counter()
                run()
                torch.cuda.synchronize()
                first = time.perf_counter() - start
                took = seconds(run, report.repeats)
                report.add("vae", f"{size} {name}, {how}", took, "s", f"peak {peak_gib():.1f} GiB, first {first:.1f} s")
                report.add("vae", f"{size} {name}, {how}, peak memory", peak_gib(), "GiB")
    small = draw(16, 3, 16, 24, dtype=torch.float32)
    ours = model.decode(small)
    report.add("vae", "cosine of a decoded clip to float32", cosine(ours, model.float().decode(small)), "")


def conditioning(geometry: VideoGeometry, num_windows: int, motion: int = 9) -> Conditioning:
    frames = geometry.num_frames + (num_windows - 1) * (geometry.num_frames - motion)
    return Conditioning(
        references=draw(1, 3, geometry.height, geometry.width, dtype=torch.float32).clamp_(-1, 1),
        text_embeds=[draw(60, 4096)],
        negative_text_embeds=draw(90, 4096),
        image_embeds=draw(1, 257, 1280),
        audio=[draw(frames, 12, 768, dtype=torch.float32)],
        silence=draw(100, 12, 768, dtype=torch.float32),
        num_frames=frames,
    )


def settings(steps: int, guidance: tuple[float, float] = (1.0, 1.0), tiled: bool = False) -> LoopSettings:
    return LoopSettings(
        steps=steps, shift=11.0, guidance_scale=guidance[0], audio_guidance_scale=guidance[1], tiled_vae=tiled
    )


def run_timed(
    transformer: WanTransformer, decoder: WanVAE, geometry: VideoGeometry, num_windows: int, how: LoopSettings,
    free_memory: Callable[[], bool] | None = None,
) -> tuple[list[float], bool]:  # fmt: skip
    """Seconds of each window, to its pixels on the GPU; whether all of them are numbers."""
    times, finite = [], True
    start = time.perf_counter()
    for window in run_windows(transformer, decoder, conditioning(geometry, num_windows), how, 42, None, free_memory):
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        finite = finite and bool(window.pixels.isfinite().all())
        start = time.perf_counter()
    return times, finite


@torch.inference_mode()
def window(report: Report) -> None:
    """Later windows of 4 steps, conditioning and decoding included."""
    for storage, mode in (("fp8", FAST), ("bf16", "auto")):
        model, decoder = build(storage), build_vae()
        mode = model.set_attention(mode)
        free()
        count = report.repeats + 1 if storage == "fp8" else 3
        times, finite = run_timed(model, decoder, SIZES["480p"], count, settings(4))
        note = f"first {times[0]:.2f} s, peak {peak_gib():.1f} GiB" + ("" if finite else " NOT FINITE")
        what = f"480p {storage} {mode}, 4 steps, later window"
        report.add("window", what, statistics.median(times[1:]), "s", note)
        report.add("window", f"{what}, peak memory", peak_gib(), "GiB")
        del model, decoder
        free()


@torch.inference_mode()
def cards(report: Report, storage: str) -> None:
    """A window of one step, as the planner places it, inside the memory that the allocator then enforces."""
    presets = [(load_preset(name), name) for name in preset_names()]
    named = [
        (name, preset.memory_gb, "720p" if "720" in preset.size else "480p", preset.settings, preset.options)
        for preset, name in presets
    ]
    model, decoder = build(storage), build_vae()
    model.set_attention("auto")
    residency = Residency(model, "cuda")
    residency.offload()  # on a small card the model never was on the device as a whole
    for card in (*named, *CARDS):
        if (card[4].quantize or "bf16") == storage:
            _card(report, model, decoder, residency, *card)


def _card(
    report: Report, model: WanTransformer, decoder: WanVAE, residency: Residency,
    name: str, gigabytes: float, size: str, how: LoopSettings, options: EngineOptions,
) -> None:  # fmt: skip
    total, geometry, config = torch.cuda.get_device_properties(0).total_memory, SIZES[size], model.config
    limit = int(gigabytes * 1e9) - CONTEXT_BYTES
    weights = ModelWeights(
        config.num_layers, residency.block_bytes, residency.other_bytes, config.dim, config.ffn_dim,
        config.audio.num_tokens, options.quantize or "bf16", module_bytes(decoder), 0,
    )  # fmt: skip
    plan = WindowPlan(geometry.num_frames, how.window_frames, how.motion_frames)
    free()
    try:
        workload = Workload(geometry, plan, FPS, SamplingSetup.of(how, has_audio=True), 1, 1)
        expected = plan_run(geometry, plan, FPS, how, options, weights, Device("", limit), workload.work)
        residency.offload()
        torch.cuda.set_per_process_memory_fraction(limit / total)
        residency.place(expected.memory.num_streamed)
        free()
        one_step = replace(how, steps=1, scheduler="multitalk", tiled_vae=expected.tiled_vae, color_match="disabled")
        times, finite = run_timed(model, decoder, geometry, 1, one_step, residency.stream_more)
        tiles = ", tiled VAE" if expected.tiled_vae else ""
        note = (
            f"limit {limit / GIB:.1f} GiB, planned {expected.memory.device_bytes / GIB:.1f} with "
            f"{expected.memory.num_streamed} blocks streaming, {residency.num_streamed} did{tiles}, {times[0]:.1f} s"
        )
        report.add("cards", name, peak_gib(), "GiB", note + ("" if finite else " NOT FINITE"))
    except (torch.OutOfMemoryError, TalkError) as problem:
        report.add("cards", name, float("nan"), "GiB", f"DOES NOT FIT: {str(problem)[:300]}")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        residency.offload()
        free()
