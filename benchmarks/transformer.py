"""The transformer with random full-size weights: a block, a forward, storage formats, block streaming, a profile."""

from __future__ import annotations

import time
from functools import partial

import torch
from measure import GIB, SIZES, Report, alternately, cosine, free, peak_gib, seconds

from wanvideo.geometry import VideoGeometry
from wanvideo.memory.streaming import BlockStreamer
from wanvideo.models.transformer import WanTransformer
from wanvideo.ops.attention.rope import video_rope
from wanvideo.ops.residual import Residual
from wanvideo.synthetic.random_weights import full_config, random_transformer

FAST = "fp8"


@torch.inference_mode(False)  # tensors that were made in it could not be moved later
def build(storage: str) -> WanTransformer:
    return random_transformer(full_config(), "cuda", torch.bfloat16, None if storage == "bf16" else storage)


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


def _first_run(report: Report, section: str, what: str, run: Forward) -> torch.Tensor:
    free()
    run()
    out = run()
    report.add(section, f"{what}, peak memory", peak_gib(), "GiB", "" if out.isfinite().all() else "NOT FINITE")
    return out


def _measure(report: Report, section: str, what: str, run: Forward) -> torch.Tensor:
    out = _first_run(report, section, what, run)
    report.add(section, what, seconds(run, report.repeats), "s")
    return out


@torch.inference_mode()
def block(report: Report) -> None:
    """One of the 40 blocks, which is where nearly all the time goes."""
    geometry = SIZES["480p"]
    for storage, mode in (("bf16", "auto"), ("fp8", FAST)):
        model = build(storage)
        mode = model.set_attention(mode)
        run = Forward(model, inputs(geometry, 1))
        given, layer = run.given, model.blocks[1]
        hidden, _, modulation = model.embed(given["latents"], given["timestep"], given["condition"])
        frames, height, width = given["latents"].shape[1:]
        rope = video_rope(frames, height // 2, width // 2, 128, hidden.device)
        text, audio = layer.cross_attn.keys_values(run.text), layer.audio_cross_attn.keys_values(run.audio)
        step = partial(layer, Residual(hidden, model.dtype), modulation, rope, run.text, text, run.audio, audio)
        report.add("block", f"480p {storage} {mode}", seconds(step, report.repeats, warm_up=3) * 1e3, "ms")
        del model, layer, run, step, text, audio
        free()


@torch.inference_mode()
def forward(report: Report, size: str, cases: tuple[tuple[str, str], ...]) -> None:
    """cases: storage format and attention of each measurement; the first one is what the others are compared with."""
    exact: dict[int, torch.Tensor] = {}
    for storage, modes in {storage: [m for s, m in cases if s == storage] for storage, _ in cases}.items():
        model = build(storage)
        for mode in modes:
            used = model.set_attention(mode)
            if mode not in ("auto", used):
                continue
            numbers = (1, 2) if size == "480p" else (1,)
            names = [f"{size} {storage} {used}, {speakers} speaker(s)" for speakers in numbers]
            for name, speakers in zip(names, numbers, strict=True):
                out = _first_run(report, "forward", name, Forward(model, inputs(SIZES[size], speakers)))
                expected = exact.setdefault(speakers, out)
                if expected is not out:
                    report.add("forward", f"{name}, cosine to {' '.join(cases[0])}", cosine(out, expected), "")
            runs = [Forward(model, inputs(SIZES[size], speakers)) for speakers in numbers]
            times = alternately(runs, report.repeats)
            for name, took in zip(names, times, strict=True):
                report.add("forward", name, took, "s")
            if len(times) == 2:
                report.add("forward", f"{size} {storage} {used}, two speakers to one", times[1] / times[0], "x")
            del runs
        del model
        free()


@torch.inference_mode()
def formats(report: Report) -> None:
    """Every format that dense weights can be brought to; the attention is the fastest exact one."""
    exact = None
    for storage in ("bf16", "fp8", "int8", "fp4"):
        model = build(storage)
        model.set_attention("auto")
        held = torch.cuda.memory_allocated() / GIB
        out = _measure(report, "formats", f"480p {storage}", Forward(model, inputs(SIZES["480p"], 1)))
        report.add("formats", f"{storage}, weights", held, "GiB")
        if exact is not None:
            report.add("formats", "  cosine to bf16", cosine(out, exact), "")
        exact = out if exact is None else exact
        del model
        free()


@torch.inference_mode()
def streaming(report: Report, storage: str, mode: str) -> None:
    model = build(storage)
    used = model.set_attention(mode)
    given = inputs(SIZES["480p"], 1)
    resident = Forward(model, given)()
    for streamed in (0, 20, 40):
        start = time.perf_counter()
        model.block_provider = BlockStreamer(model.blocks, torch.device("cuda"), streamed)
        print(f"streaming  packed {streamed} blocks in {time.perf_counter() - start:.1f} s", flush=True)
        out = _measure(report, "streaming", f"480p {storage} {used}, {streamed} of 40", Forward(model, given))
        if not torch.equal(out, resident):
            report.add("streaming", "  cosine to resident", cosine(out, resident), "", "DIFFERS")


@torch.no_grad()  # as the pipeline runs; inside inference mode code would be compiled for that mode
def compiled(report: Report) -> None:
    """Blocks compiled one by one; a prompt of another length and another speech must not compile anything again."""
    model, given = build("fp8"), inputs(SIZES["480p"], 1)
    used = model.set_attention("auto")
    plain = Forward(model, given)()
    model.compile_blocks("default")
    run = Forward(model, given)
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    report.add("compiled", f"480p fp8 {used}, first forward", time.perf_counter() - start, "s")
    out = _measure(report, "compiled", f"480p fp8 {used}", run)
    report.add("compiled", "cosine to blocks as written", cosine(out, plain), "")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    Forward(model, {**given, "text_embeds": given["text_embeds"][:23], "audio": given["audio"].flip(1)})()
    again = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
    report.add("compiled", "graphs compiled again for another prompt and speech", again, "")


@torch.inference_mode()
def profile(report: Report) -> None:
    heavy = (
        "gemm",
        "cutlass",
        "flash",
        "sm90",
        "nvjet",
        "_grouped_attention",
        "_dual_context_attention",
        "_region",
        "_absorb",
        "cudnn",
        "attention",
    )
    for storage, mode in (("bf16", "auto"), ("fp8", FAST)):
        model = build(storage)
        mode = model.set_attention(mode)
        run = Forward(model, inputs(SIZES["480p"], 1))
        run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            run()
            torch.cuda.synchronize()
        events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
        total = sum(event.self_device_time_total for event in events)
        share = sum(e.self_device_time_total for e in events if any(word in e.key.lower() for word in heavy)) / total
        report.add("profile", f"480p {storage} {mode}, kernel time of one forward", total / 1e6, "s")
        report.add("profile", f"480p {storage} {mode}, share of matmul and attention", share, "")
        for event in events[:14]:
            print(f"   {event.self_device_time_total / 1e3:9.2f} ms {event.count:5d}x  {event.key[:100]}")
        del model, run
        free()
