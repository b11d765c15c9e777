"""The VAE, whole windows of a video, and windows inside the memory of smaller cards; random full-size weights."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial

import torch
from measure import GIB, SIZES, Report, cosine, draw, free, peak_gib, seconds
from transformer import FAST, build

from wanvideo.errors import TalkError
from wanvideo.geometry import VideoGeometry
from wanvideo.memory.budget import window_need
from wanvideo.memory.planner import plan_blocks
from wanvideo.memory.residency import Residency
from wanvideo.models.transformer import WanTransformer
from wanvideo.models.vae import VAEConfig, WanVAE
from wanvideo.models.vae_tiling import Tiling
from wanvideo.request import LoopSettings
from wanvideo.sampling.loop import Conditioning, run_windows

CONTEXT_BYTES = 600 * 2**20  # what CUDA itself takes of a card
VAE_TILED_BYTES, VAE_BYTES = 2 * GIB, 6 * GIB  # weights and pixels included


@dataclass(frozen=True)
class Card:
    """A configuration, and the memory (in 10^9 bytes) that it must stay inside; passes: of the model in a step."""

    name: str
    gigabytes: int
    size: str
    tiled: bool
    guidance: tuple[float, float] = (1.0, 1.0)
    streamed: int = -1
    storage: str = "fp8"


CARDS = (
    Card("01_ultra_fast", 10, "480p", True),
    Card("02_comfyui_equivalent", 12, "480p", True, streamed=30),
    Card("03_balanced", 14, "480p", True),
    Card("04_high_quality", 18, "480p", False, (5.0, 4.0)),
    Card("05_low_vram", 10, "480p", True, streamed=40),
    Card("06_720p_high_res", 22, "720p", True),
    Card("8 GB, fp8", 8, "480p", True),
    Card("10 GB, bf16", 10, "480p", True, storage="bf16"),
    Card("16 GB, fp8", 16, "480p", True),
    Card("24 GB, fp8", 24, "480p", False),
)


@torch.inference_mode(False)
@torch.no_grad()
def random_vae() -> WanVAE:
    with torch.device("meta"):
        model = WanVAE(VAEConfig(96))
    model = model.bfloat16().to_empty(device="cuda").requires_grad_(False)
    generator = torch.Generator("cuda").manual_seed(3)
    for parameter in model.parameters():
        fan_in = parameter[0].numel()
        if parameter.dim() == 1:
            parameter.normal_(0, 0.05, generator=generator)
        else:
            parameter.normal_(float(fan_in == 1), 0.1 if fan_in == 1 else 0.8 / fan_in**0.5, generator=generator)
    return model.eval()


@torch.inference_mode()
def vae(report: Report) -> None:
    model = random_vae()
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
    transformer: WanTransformer, decoder: WanVAE, geometry: VideoGeometry, num_windows: int, how: LoopSettings
) -> tuple[list[float], bool]:
    """Seconds of each window, to its pixels on the GPU; whether all of them are numbers."""
    times, finite = [], True
    start = time.perf_counter()
    for window in run_windows(transformer, decoder, conditioning(geometry, num_windows), how, 42):
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        finite = finite and bool(window.pixels.isfinite().all())
        start = time.perf_counter()
    return times, finite


@torch.inference_mode()
def window(report: Report) -> None:
    """Later windows of 4 steps, conditioning and decoding included."""
    for storage, mode in (("fp8", FAST), ("bf16", "auto")):
        model, decoder = build(storage), random_vae()
        mode = model.set_attention(mode)
        free()
        count = report.repeats + 1 if storage == "fp8" else 3
        times, finite = run_timed(model, decoder, SIZES["480p"], count, settings(4))
        note = f"first {times[0]:.2f} s, peak {peak_gib():.1f} GiB" + ("" if finite else " NOT FINITE")
        report.add("window", f"480p {storage} {mode}, 4 steps, later window", statistics.median(times[1:]), "s", note)
        del model, decoder
        free()


@torch.inference_mode()
def cards(report: Report) -> None:
    """A window of one step inside the memory of each smaller card, which the allocator enforces."""
    total, device = torch.cuda.get_device_properties(0).total_memory, torch.device("cuda")
    for storage in ("fp8", "bf16"):
        model, decoder = build(storage), random_vae()
        model.set_attention(FAST)
        residency = Residency(model, device)
        for card in (card for card in CARDS if card.storage == storage):
            free()
            limit = int(card.gigabytes * 1e9) - CONTEXT_BYTES
            geometry, config = SIZES[card.size], model.config
            need = window_need(
                geometry.num_tokens, geometry.latent_frames, config.dim, config.ffn_dim, config.num_layers,
                num_texts=1 + (card.guidance[0] > 1), num_speeches=1 + (card.guidance[1] > 1),
            )  # fmt: skip
            reserve = VAE_TILED_BYTES if card.tiled else VAE_BYTES
            try:
                plan = plan_blocks(
                    limit, config.num_layers, residency.block_bytes, residency.other_bytes + GIB // 4, need,
                    reserve_bytes=reserve, wanted=card.streamed,
                )  # fmt: skip
                residency.rest()  # on a small card the model never was on the device as a whole
                residency.place(plan.num_streamed)
                free()
                torch.cuda.set_per_process_memory_fraction(limit / total)
                how = settings(1, card.guidance, card.tiled)
                times, finite = run_timed(model, decoder, geometry, 1, how)
                note = (
                    f"limit {limit / GIB:.1f} GiB, {plan.num_streamed} blocks stream, a step's window {times[0]:.1f} s"
                )
                report.add("cards", card.name, peak_gib(), "GiB", note + ("" if finite else " NOT FINITE"))
            except (torch.OutOfMemoryError, TalkError) as problem:
                report.add("cards", card.name, float("nan"), "GiB", f"DOES NOT FIT: {str(problem)[:400]}")
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)
        del model, decoder, residency
        free()
