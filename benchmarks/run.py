"""Measures the engine on this machine's GPU with random full-size weights, checks what it measures, and prints a table.

    python benchmarks/run.py [--sections ceilings,kernels,attention,forward,...] [--json FILE] [--repeats 5]

Times are CUDA events, the median of the repeats after a warm-up. Every section also compares its result with a plain
one, so that a fast wrong answer shows.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanvideo.checkpoints.random_weights import full_config, random_transformer  # noqa: E402
from wanvideo.geometry import VideoGeometry  # noqa: E402
from wanvideo.memory.streaming import BlockStreamer  # noqa: E402
from wanvideo.models.transformer import WanTransformer  # noqa: E402
from wanvideo.ops import attention, backends, norm, quantised  # noqa: E402
from wanvideo.ops.rope import video_rope  # noqa: E402

SIZES = {"480p": VideoGeometry(832, 480, 81), "720p": VideoGeometry(1280, 720, 81)}
GIB = 2**30
ROWS: list[dict] = []
REPEATS = 5


def record(section: str, what: str, value: float, unit: str, note: str = "") -> None:
    ROWS.append({"section": section, "what": what, "value": value, "unit": unit, "note": note})
    print(f"{section:<11} {what:<58} {value:>10.4g} {unit:<8} {note}", flush=True)


def seconds(function, repeats: int | None = None, warm_up: int = 1) -> float:
    for _ in range(warm_up):
        function()
    times = []
    for _ in range(repeats or REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1000)
    return statistics.median(times)


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.float() - expected.float()).norm() / expected.float().norm())


def cosine(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float(F.cosine_similarity(ours.float().flatten(), expected.float().flatten(), 0))


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def ceilings() -> None:
    tokens = SIZES["480p"].num_tokens
    a, b = draw(8192, 8192), draw(8192, 8192)
    record("ceilings", "bf16 matmul 8192^3", 2 * 8192**3 / seconds(lambda: a @ b) / 1e12, "TFLOP/s")
    for wide in (5120, 13824):
        x, w = draw(tokens, 5120), draw(wide, 5120)
        flops = 2 * tokens * 5120 * wide
        record("ceilings", f"bf16 linear Lx5120->{wide}", flops / seconds(lambda: F.linear(x, w)) / 1e12, "TFLOP/s")
        rows, weight = quantised.quantise_rows(x, torch.float8_e4m3fn), quantised.quantise_rows(w, torch.float8_e4m3fn)
        run = lambda: torch._scaled_mm(  # noqa: E731
            rows.data, weight.data.t(), rows.scale, weight.scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )
        record("ceilings", f"fp8 row-wise linear Lx5120->{wide}", flops / seconds(run) / 1e12, "TFLOP/s")
    source, target = (
        torch.empty(GIB, dtype=torch.uint8).pin_memory(),
        torch.empty(GIB, dtype=torch.uint8, device="cuda"),
    )
    record("ceilings", "host to device, pinned", 1.073741824 / seconds(lambda: target.copy_(source, True)), "GB/s")
    big, other = draw(GIB), draw(GIB)
    record("ceilings", "device copy (read + write)", 4 * GIB / 1e9 / seconds(lambda: big.copy_(other)), "GB/s")


def kernels() -> None:
    tokens, dim, ffn, heads = SIZES["480p"].num_tokens, 5120, 13824, 40
    fp8 = torch.float8_e4m3fn
    x, y, wide = draw(tokens, dim), draw(tokens, dim), draw(tokens, ffn)
    scale, shift, gate, weight = (draw(dim, dtype=torch.float32) for _ in range(4))
    table = video_rope(21, 30, 52, 128, x.device)
    mb = tokens * dim / 1e9
    cases = {
        "layer norm, bf16 out": (lambda: norm.layer_norm(x, scale, shift, 1e-6), 4 * mb),
        "layer norm, fp8 out": (lambda: norm.layer_norm(x, scale, shift, 1e-6, fp8), 3 * mb),
        "add + layer norm, fp8 out": (lambda: norm.add_layer_norm(x, y, gate, scale, shift, 1e-6, fp8), 7 * mb),
        "add gated": (lambda: norm.add_gated(x, y, gate), 6 * mb),
        "rms norm + rope, bf16 out": (lambda: norm.rms_norm_heads(x, weight, 1e-6, heads, table), 4 * mb),
        "rms norm + rope, fp8 out": (lambda: norm.rms_norm_heads(x, weight, 1e-6, heads, table, fp8), 3 * mb),
        "gelu, fp8 out": (lambda: norm.gelu(wide, fp8), 3 * mb * ffn / dim),
        "quantise rows": (lambda: quantised.quantise_rows(x, fp8), 3 * mb),
    }
    for name, (function, gigabytes) in cases.items():
        took = seconds(function)
        record("kernels", name, took * 1e3, "ms", f"{gigabytes / took:.0f} GB/s")
    part = slice(0, 512)
    exact = [value[part].cpu().float() for value in (x, y)]
    cpu = [value.cpu() for value in (gate, scale, shift)]
    ours = norm.add_layer_norm(x[part].float(), y[part].float(), gate, scale, shift, 1e-6)[1].cpu()
    error = (ours - norm.add_layer_norm(*exact, *cpu, 1e-6)[1]).abs().max()
    record("kernels", "add + layer norm against its twin, fp32 max error", float(error), "")
    ours = norm.rms_norm_heads(x[part].float(), weight, 1e-6, heads, table[part]).cpu()
    error = (ours - norm.rms_norm_heads(exact[0], weight.cpu(), 1e-6, heads, table[part].cpu())).abs().max()
    record("kernels", "rms norm + rope against its twin, fp32 max error", float(error), "")
    ours = norm.layer_norm(x[part].float(), scale, shift, 1e-6, fp8)
    twin = norm.layer_norm(exact[0], scale.cpu(), shift.cpu(), 1e-6, fp8)
    differing = (ours.data.cpu().float() != twin.data.float()).float().mean()
    record("kernels", "layer norm to fp8: values that differ from the twin's", float(differing), "")


def attention_section() -> None:
    geometry = SIZES["480p"]
    tokens, heads = geometry.num_tokens, 40
    device, flops = torch.device("cuda"), 4 * tokens**2 * 128 * heads
    query, key, value = draw(1, tokens, heads, 128), draw(1, tokens, heads, 128), draw(1, tokens, heads, 128)
    part = 2048
    exact = backends._sdpa(query[:, :part, :2].float(), key[:, :, :2].float(), value[:, :, :2].float())
    for name, backend in backends.BACKENDS.items():
        reason = backends.refusal(name, device, torch.bfloat16, 128)
        if reason:
            print(f"attention   {name}: {reason}")
            continue
        took = seconds(lambda backend=backend: backend.function(query, key, value))
        error = relative(backend.function(query, key, value)[:, :part, :2], exact)
        record(
            "attention",
            f"self-attention {name}",
            took * 1e3,
            "ms",
            f"{flops / took / 1e12:.0f} TFLOP/s, error {error:.4f}",
        )
    record("attention", f"auto picks {backends.choose('auto', device, torch.bfloat16, 128, heads).name}", 0, "")
    frames, per_frame = geometry.latent_frames, geometry.tokens_per_frame
    grouped, few = query[0].view(frames, per_frame, heads, 128), draw(frames, 32, heads, 128)
    both, labels = draw(frames, 64, heads, 128), torch.rand(tokens, device="cuda") * 24
    took = seconds(lambda: attention.attend_few(grouped, few, few))
    record("attention", "audio attention, one speaker", took * 1e3, "ms")
    took = seconds(lambda: attention.attend_few(grouped, both, both, labels))
    record("attention", "audio attention, two speakers, labels turned", took * 1e3, "ms")
    took = seconds(lambda: backends._sdpa(grouped, few, few))
    record("attention", "the same by sdpa, one speaker", took * 1e3, "ms")
    ours = attention.attend_few(grouped[:2], both[:2], both[:2], labels[: 2 * per_frame]).cpu()
    twin = attention.attend_few(grouped[:2].cpu(), both[:2].cpu(), both[:2].cpu(), labels[: 2 * per_frame].cpu())
    record("attention", "audio attention, labels turned: error to its twin", relative(ours, twin), "")
    regions = torch.zeros(3, per_frame, device="cuda")
    regions[0, :500], regions[1, 800:1200], regions[2, 1200:] = 1, 1, 1
    took = seconds(lambda: attention.region_attention(query[0], key[0, :per_frame], regions))
    record(
        "attention",
        "speaker regions, bf16",
        took * 1e3,
        "ms",
        f"{2 * tokens * per_frame * 5120 / took / 1e12:.0f} TFLOP/s",
    )
    ours = attention.region_attention(query[0], key[0, :per_frame], regions)[:, :256].cpu()
    twin = attention.region_attention(query[0, :256].cpu().float(), key[0, :per_frame].cpu().float(), regions.cpu())
    record("attention", "speaker regions: error to the twin", relative(ours, twin), "")
    q8, k8 = query[0].to(torch.float8_e4m3fn), key[0, :per_frame].to(torch.float8_e4m3fn)
    took = seconds(lambda: attention.region_attention(q8, k8, regions))
    record("attention", "speaker regions, fp8 queries", took * 1e3, "ms")
    for tokens_of in (512, 257):
        text = draw(1, tokens_of, heads, 128)
        took = seconds(lambda text=text: backends._sdpa(query, text, text))
        record("attention", f"cross-attention to {tokens_of} tokens, sdpa", took * 1e3, "ms")
        if backends.refusal("flash_attn_3", device, torch.bfloat16, 128) is None:
            took = seconds(lambda text=text: backends._flash_3(query, text, text))
            record("attention", f"cross-attention to {tokens_of} tokens, flash_attn_3", took * 1e3, "ms")


def inputs(geometry: VideoGeometry, speakers: int) -> dict:
    generator = torch.Generator("cuda").manual_seed(7)

    def draw_one(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", generator=generator)

    _, frames, height, width = geometry.latent_shape
    masks = None
    if speakers > 1:
        masks = torch.zeros(speakers + 1, geometry.height, geometry.width, device="cuda")
        masks[0, :, : geometry.width // 3], masks[1, :, geometry.width // 2 :] = 1, 1
        masks[2] = (masks[:2].sum(0) == 0).float()
    return dict(
        latents=draw_one(16, frames, height, width),
        timestep=torch.tensor([700.0], device="cuda"),
        text_embeds=draw_one(60, 4096),
        image_embeds=draw_one(1, 257, 1280),
        condition=draw_one(20, frames, height, width),
        audio=draw_one(speakers, geometry.num_frames, 5, 12, 768) if speakers else None,
        speaker_masks=masks,
    )


class Forward:
    """A step of a window: contexts are made once, as the sampler does."""

    def __init__(self, model: WanTransformer, given: dict) -> None:
        self.model, self.given = model, given
        self.text = model.text_context(given["text_embeds"], given["image_embeds"])
        self.audio = None
        if given["audio"] is not None:
            self.audio = model.audio_context(given["audio"], given["speaker_masks"], *given["latents"].shape[2:])

    def __call__(self) -> torch.Tensor:
        given = self.given
        return self.model.denoise(given["latents"], given["timestep"], given["condition"], self.text, self.audio)


def measure_forward(section: str, what: str, run: Forward) -> torch.Tensor:
    torch.cuda.reset_peak_memory_stats()
    took = seconds(run, warm_up=2)
    out = run()
    note = f"peak {torch.cuda.max_memory_allocated() / GIB:.1f} GiB"
    record(section, what, took, "s", note + ("" if out.isfinite().all() else " NOT FINITE"))
    return out


@torch.inference_mode()
def forward(size: str) -> None:
    exact: dict[int, torch.Tensor] = {}
    for storage in ("bf16", "fp8", "int8"):
        model = random_transformer(full_config(), "cuda", torch.bfloat16, None if storage == "bf16" else storage)
        for mode in ("auto", "flash_attn_3_fp8") if storage != "int8" else ("auto",):
            used = model.set_attention(mode)
            if mode != "auto" and used != mode:
                continue
            for speakers in (1, 2) if size == "480p" and storage != "int8" else (1,):
                run = Forward(model, inputs(SIZES[size], speakers))
                out = measure_forward("forward", f"{size} {storage} {used}, {speakers} speaker(s)", run)
                expected = exact.setdefault(speakers, out)
                if expected is not out:
                    record("forward", "  cosine to bf16", cosine(out, expected), "")
                del run
        del model
        free()


@torch.inference_mode()
def streaming() -> None:
    for storage in ("fp8", "bf16"):
        model = random_transformer(full_config(), "cuda", torch.bfloat16, None if storage == "bf16" else storage)
        model.set_attention("auto")
        given = inputs(SIZES["480p"], 1)
        resident = Forward(model, given)()
        for streamed in (0, 20, 40):
            start = time.perf_counter()
            model.ready_blocks = BlockStreamer(model.blocks, torch.device("cuda"), streamed)
            print(f"streaming   packed {streamed} blocks in {time.perf_counter() - start:.1f} s", flush=True)
            free()
            out = measure_forward(
                "streaming", f"480p {storage}, {streamed} of 40 blocks streamed", Forward(model, given)
            )
            if not torch.equal(out, resident):
                record("streaming", "  cosine to resident", cosine(out, resident), "", "DIFFERS")
        del model
        free()


@torch.inference_mode()
def profile() -> None:
    model = random_transformer(full_config(), "cuda", torch.bfloat16, "fp8")
    model.set_attention("flash_attn_3_fp8")
    run = Forward(model, inputs(SIZES["480p"], 1))
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    heavy = ("gemm", "cutlass", "flash", "sm90", "nvjet", "_few_keys", "cudnn", "attention", "device_kernel")
    share = sum(e.self_device_time_total for e in events if any(word in e.key.lower() for word in heavy)) / total
    record("profile", "kernel time of one 480p fp8 forward", total / 1e6, "s")
    record("profile", "share of matmul and attention", share, "")
    for event in events[:25]:
        print(f"   {event.self_device_time_total / 1e3:9.2f} ms {event.count:5d}x  {event.key[:110]}")


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


SECTIONS = {
    "ceilings": ceilings,
    "kernels": kernels,
    "attention": attention_section,
    "forward_480p": partial(forward, "480p"),
    "forward_720p": partial(forward, "720p"),
    "streaming": streaming,
    "profile": profile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    global REPEATS
    REPEATS = flags.repeats
    name = torch.cuda.get_device_name()
    print(
        f"{name}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {time.strftime('%Y-%m-%d %H:%M')}"
    )
    for section in flags.sections.split(","):
        start = time.perf_counter()
        try:
            SECTIONS[section]()
        except Exception:  # noqa: BLE001 - the other sections are still worth measuring
            traceback.print_exc()
        free()
        print(f"-- {section}: {time.perf_counter() - start:.0f} s", flush=True)
        if flags.json:
            report = {"device": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "rows": ROWS}
            flags.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
