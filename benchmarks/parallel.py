"""One video on several GPUs: speed, share of the exchange, memory of a rank, and parity with one GPU.

    torchrun --nproc_per_node=4 benchmarks/parallel.py --layouts 4x1,2x2 [--out FILE] [--sections ...] [--budget_s 230]

A layout is ulysses x ring. Weights are random and full-size, the same on all ranks; the one GPU that others are
compared with is every rank by itself, in the same run. Times are those of the slowest rank. After each section all rows
are written to --out, and a section that does not fit the rest of the budget is left out, which is said.
With --against benchmarks/baseline.json what is slower or larger than recorded makes it exit with 1 (see baseline.py).
--tiny runs the same code on a CPU with gloo and a tiny model.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as the command line does
os.environ.setdefault("NCCL_NVLS_ENABLE", "0")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import baseline  # noqa: E402

from wanvideo.geometry import VideoGeometry  # noqa: E402
from wanvideo.models.audio_adapter import AudioConfig  # noqa: E402
from wanvideo.models.transformer import TransformerConfig, WanTransformer  # noqa: E402
from wanvideo.models.vae import VAEConfig  # noqa: E402
from wanvideo.parallel import sequence  # noqa: E402
from wanvideo.parallel.groups import Group  # noqa: E402
from wanvideo.parallel.launch import Place  # noqa: E402
from wanvideo.parallel.layout import Layout  # noqa: E402
from wanvideo.parallel.mesh import Mesh  # noqa: E402
from wanvideo.parallel.shard import ShardedBlocks  # noqa: E402
from wanvideo.parallel.team import Team  # noqa: E402
from wanvideo.parallel.transform import split_rows, split_tokens  # noqa: E402
from wanvideo.protocols import AllTokens, ResidentBlocks  # noqa: E402
from wanvideo.request import LoopSettings  # noqa: E402
from wanvideo.sampling.loop import Conditioning, run_windows  # noqa: E402
from wanvideo.synthetic.random_weights import full_config, random_transformer, random_vae  # noqa: E402

GIB = 2**30
TINY_AUDIO = AudioConfig(feature_dim=2 * 16, window=5, hidden_dim=32, num_tokens=32, token_dim=64)


@dataclass(frozen=True)
class Scale:
    """What is measured: models, sizes of videos, and where."""

    config: TransformerConfig
    vae_dim: int
    sizes: dict[str, VideoGeometry]
    device: torch.device
    dtype: torch.dtype
    is_tiny: bool

    @classmethod
    def of(cls, is_tiny: bool, place: Place) -> Scale:
        if is_tiny:
            config = TransformerConfig(512, 384, 2, 36, 16, 48, 256, 1280, TINY_AUDIO)
            sizes = {"480p": VideoGeometry(96, 64, 9), "720p": VideoGeometry(128, 96, 9)}
            return cls(config, 8, sizes, torch.device("cpu"), torch.float32, True)
        sizes = {"480p": VideoGeometry(832, 480, 81), "720p": VideoGeometry(1280, 720, 81)}
        return cls(full_config(), 96, sizes, torch.device("cuda", place.local_rank), torch.bfloat16, False)


class Bench:
    """A run: its ranks, layouts, rows so far, and the time that is left."""

    def __init__(self, scale: Scale, place: Place, flags: argparse.Namespace) -> None:
        self.scale, self.place, self.repeats, self.out = scale, place, flags.repeats, flags.out
        self.rows: list[baseline.Row] = []
        self._stop = time.perf_counter() + flags.budget_s
        self.layouts = [Layout(1, *map(int, name.split("x"))) for name in flags.layouts.split(",") if name]
        self.teams = {self.name(layout): Team(Mesh(layout, scale.device)) for layout in self.layouts}
        self.control = next(iter(self.teams.values()))
        self._models: dict[str, WanTransformer] = {}

    @staticmethod
    def name(layout: Layout) -> str:
        return f"{layout.ulysses}x{layout.ring}"

    @property
    def left_s(self) -> float:
        return self._stop - time.perf_counter()

    def add(self, section: str, what: str, value: float, unit: str) -> None:
        self.rows.append(baseline.Row(section, what, value, unit))
        if self.place.rank == 0:
            print(f"{section:<10} {what:<60} {value:>10.5g} {unit}", flush=True)

    def flush(self) -> None:
        if self.place.rank or self.out is None:
            return
        self.out.write_text(baseline.to_json([self.run]), encoding="utf-8")

    @property
    def run(self) -> baseline.Run:
        """What was measured so far."""
        name = "cpu" if self.scale.is_tiny else torch.cuda.get_device_name()
        return baseline.this_run(name, self.place.world, self.rows)

    def model(self, storage: str) -> WanTransformer:
        """The one that is held; another storage format takes its place."""
        if storage not in self._models:
            self._models.clear()
            free(self.scale)
            with torch.inference_mode(False), torch.no_grad():
                quantize = None if storage == "bf16" else storage
                self._models[storage] = random_transformer(
                    self.scale.config, self.scale.device, self.scale.dtype, quantize
                )  # fmt: skip
        return self._models[storage]

    def largest(self, value: float) -> float:
        numbers = torch.tensor([value], dtype=torch.float64, device=self.scale.device)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return float(numbers[0])

    def seconds(self, run: Callable[[], object]) -> float:
        """The slowest rank's median, after a warm-up."""
        run()
        times = []
        for _ in range(self.repeats):
            self.wait()
            start = time.perf_counter()
            run()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return self.largest(statistics.median(times))

    def wait(self) -> None:
        self.synchronize()
        self.control.barrier()

    def synchronize(self) -> None:
        if self.scale.device.type == "cuda":
            torch.cuda.synchronize()


def free(scale: Scale) -> None:
    gc.collect()
    if scale.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(scale: Scale) -> float:
    return torch.cuda.max_memory_allocated() / GIB if scale.device.type == "cuda" else 0.0


class Forward:
    """A step of a window whose contexts are made, as the sampler does."""

    def __init__(self, model: WanTransformer, geometry: VideoGeometry, speakers: int) -> None:
        config, device = model.config, model.device
        generator = torch.Generator(device).manual_seed(7)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, generator=generator)

        _, frames, height, width = geometry.latent_shape
        masks = None
        if speakers > 1:
            masks = torch.zeros(speakers + 1, geometry.height, geometry.width, device=device)
            masks[0, :, : geometry.width // 3], masks[1, :, geometry.width // 2 :] = 1, 1
            masks[2] = (masks[:2].sum(0) == 0).float()
        channels = (2, 16) if config.audio is TINY_AUDIO else (12, 768)
        self.model, self.latents, self.condition = (
            model,
            draw(16, frames, height, width),
            draw(20, frames, height, width),
        )
        self.timestep = torch.tensor([700.0], device=device)
        self.text = model.text_context(draw(60, config.text_dim), draw(1, 257, config.image_dim))
        self.audio = model.audio_context(draw(speakers, geometry.num_frames, 5, *channels), masks, height, width)

    def __call__(self) -> torch.Tensor:
        return self.model.denoise(self.latents, self.timestep, self.condition, self.text, self.audio)


class _Done:
    def wait(self) -> None:
        """Nothing was started."""


@contextmanager
def without_exchange() -> Iterator[None]:
    """Layouts and launches as they are, and nothing goes over the wire: numbers are wrong, times are what is left."""

    received: dict[object, torch.Tensor] = {}

    def exchange(self: Group, send: torch.Tensor, send_rows: object, receive_rows: list[int]) -> object:
        shape = sum(receive_rows), *send.contiguous().shape[1:]
        if (shape, send.dtype) not in received:  # numbers as they may be: others take other time
            received[shape, send.dtype] = torch.randn(shape, device=send.device).to(send.dtype)
        return received[shape, send.dtype], _Done()

    def swap(self: Group, sends: object, receives: object) -> list[_Done]:
        return []

    kept = Group.exchange, Group.swap, sequence.PeerMemory
    Group.exchange, Group.swap, sequence.PeerMemory = exchange, swap, OwnMemory
    try:
        yield
    finally:
        Group.exchange, Group.swap, sequence.PeerMemory = kept


class OwnMemory:
    """In place of a PeerMemory: all ranks' is the own one, and nobody meets."""

    def __init__(self, group: Group, num_bytes: int, device: torch.device) -> None:
        # Numbers as they may be, in fp8 and in bf16: with zeros all would be faster.
        magnitudes, signs = (torch.randint(*ends, (num_bytes,), device=device) for ends in ((0x28, 0x40), (0, 2)))
        self.own = (magnitudes + 128 * signs).to(torch.uint8)
        self.offsets, self.addresses = [0] * group.size, [self.own.data_ptr()] * group.size

    def meet(self) -> None:
        """They would wait for each other here."""


@torch.inference_mode()
def forward(bench: Bench, size: str, storage: str, attention: str, speakers: int = 1) -> None:
    """One rank by itself, then every layout: seconds, speed-up, share of the exchange, peak memory, parity."""
    model, geometry, scale = bench.model(storage), bench.scale.sizes[size], bench.scale
    title = f"{size} {storage} {attention}" + (f", {speakers} speakers" if speakers > 1 else "")
    model.token_split = AllTokens()
    used = model.set_attention(attention)
    free(scale)
    run = Forward(model, geometry, speakers)
    expected = run()
    alone = bench.seconds(run)
    bench.add("forward", f"{title}, one GPU ({used})", alone, "s")
    bench.add("forward", f"{title}, one GPU, peak memory", bench.largest(peak_gib(scale)), "GiB")
    for name, team in bench.teams.items():
        split_tokens(model, team.mesh, attention)
        free(scale)
        run = Forward(model, geometry, speakers)
        out = run()
        peak = peak_gib(scale)
        took = bench.seconds(run)
        label = f"{title}, {name}"
        bench.add("forward", label, took, "s")
        bench.add("forward", f"{label}, speed-up", alone / took, "x")
        bench.add("forward", f"{label}, peak memory", bench.largest(peak), "GiB")
        cosine = float(F.cosine_similarity(out.float().flatten(), expected.float().flatten(), 0))
        bench.add("forward", f"{label}, 1 - cosine to one GPU", bench.largest(1 - cosine), "")
        error = float((out - expected).abs().max() / expected.abs().max())
        bench.add("forward", f"{label}, largest error by largest value", bench.largest(error), "")
        with without_exchange():
            split_tokens(model, team.mesh, attention)
            bare = bench.seconds(run)
        bench.add("forward", f"{label}, share of the exchange", 1 - bare / took, "")
    model.token_split = AllTokens()


def conditioning(scale: Scale, geometry: VideoGeometry, num_windows: int, motion: int) -> Conditioning:
    frames = geometry.num_frames + (num_windows - 1) * (geometry.num_frames - motion)
    generator = torch.Generator().manual_seed(11)
    channels = (2, 16) if scale.is_tiny else (12, 768)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return Conditioning(
        references=draw(1, 3, geometry.height, geometry.width).clamp_(-1, 1),
        text_embeds=[draw(60, scale.config.text_dim)],
        image_embeds=draw(1, 257, 1280),
        audio=[draw(frames, *channels)],
        silence=draw(100, *channels),
        num_frames=frames,
    )


@torch.inference_mode()
def window(bench: Bench, storage: str, attention: str) -> None:
    """Whole later windows of 4 steps at 480p, conditioning, VAE and colors included."""
    scale, geometry = bench.scale, bench.scale.sizes["480p"]
    model, motion = bench.model(storage), 5 if bench.scale.is_tiny else 9
    with torch.inference_mode(False), torch.no_grad():
        vae = random_vae(VAEConfig(scale.vae_dim), scale.device, scale.dtype)
    settings = LoopSettings(
        window_frames=geometry.num_frames, motion_frames=motion, steps=4, shift=11.0, guidance_scale=1.0,
        audio_guidance_scale=1.0,
    )  # fmt: skip
    given, reference = conditioning(scale, geometry, 3, motion), None
    for name, team in {"one GPU": None, **bench.teams}.items():
        if team is None:
            model.token_split, vae.row_split = AllTokens(), None
            model.set_attention(attention)
        else:
            split_tokens(model, team.mesh, attention)
            split_rows(vae, team.mesh)
        free(scale)
        times, pixels = [], None
        bench.wait()
        start = time.perf_counter()
        for finished in run_windows(model, vae, given, settings, 42, ranks=team):
            bench.synchronize()
            times.append(time.perf_counter() - start)
            pixels = finished.pixels if pixels is None else pixels
            start = time.perf_counter()
        took, label = bench.largest(min(times[1:])), f"480p {storage} {attention}, 4 steps, later window, {name}"
        bench.add("window", label, took, "s")
        bench.add("window", f"{label}, peak memory", bench.largest(peak_gib(scale)), "GiB")
        if reference is None:
            reference, alone = pixels, took
            continue
        bench.add("window", f"{label}, speed-up", alone / took, "x")
        bench.add("window", f"{label}, largest difference of pixels", float((pixels - reference).abs().max()), "")
        latents = torch.randn(geometry.latent_shape, device=scale.device)
        frames = torch.rand(3, geometry.num_frames, geometry.height, geometry.width, device=scale.device)
        for what, work, source in (("decode", vae.decode, latents), ("encode", vae.encode, frames)):
            both = bench.seconds(lambda work=work, source=source: work(source))
            split, vae.row_split = vae.row_split, None
            by_one = bench.seconds(lambda work=work, source=source: work(source))
            vae.row_split = split
            bench.add("window", f"480p VAE {what}, {name}", both, "s")
            bench.add("window", f"480p VAE {what}, {name}, speed-up", by_one / both, "x")
    model.token_split = AllTokens()


@torch.inference_mode()
def sharded(bench: Bench, storage: str, attention: str) -> None:
    """A forward at 480p whose blocks are shards of the ranks: last, since the model stays sharded."""
    scale, team = bench.scale, next(iter(bench.teams.values()))
    model = bench.model(storage)
    split_tokens(model, team.mesh, attention)
    expected = Forward(model, scale.sizes["480p"], 1)()
    with torch.inference_mode(False), torch.no_grad():
        model.block_provider = ShardedBlocks(model.blocks, team.mesh.sequence, scale.device)
    free(scale)
    run = Forward(model, scale.sizes["480p"], 1)
    out = run()
    peak, label = peak_gib(scale), f"480p {storage} {attention}, {next(iter(bench.teams))}, sharded"
    bench.add("sharded", label, bench.seconds(run), "s")
    bench.add("sharded", f"{label}, peak memory", bench.largest(peak), "GiB")
    bench.add("sharded", f"{label}, largest difference to whole weights", float((out - expected).abs().max()), "")
    model.block_provider, bench._models = ResidentBlocks(), {}


@torch.inference_mode()
def profile(bench: Bench) -> None:
    """Which kernels a forward at 480p in fp8 consists of on the first rank: by itself, and in the first layout."""
    model, took = bench.model("fp8"), []
    for team in (None, next(iter(bench.teams.values()))):
        model.token_split = AllTokens()
        if team is None:
            model.set_attention("fp8")
        else:
            split_tokens(model, team.mesh, "fp8")
        run = Forward(model, bench.scale.sizes["480p"], 1)
        run()
        bench.wait()
        with torch.profiler.profile() as profiler:
            run()
            bench.synchronize()
        took.append(
            {
                entry.key: (entry.self_device_time_total / 1000, entry.count)
                for entry in profiler.key_averages()
                if entry.device_type == torch.autograd.DeviceType.CUDA
            }
        )
    model.token_split = AllTokens()
    alone, split = took
    if bench.place.rank == 0:
        print("ms and launches by itself, ms and launches split, name")
        names = sorted({*alone, *split}, key=lambda name: -split.get(name, (0, 0))[0] - alone.get(name, (0, 0))[0])
        for name in names[:60]:
            numbers = (*alone.get(name, (0.0, 0)), *split.get(name, (0.0, 0)))
            print("{:9.3f} {:6d} {:9.3f} {:6d}".format(*numbers), name[:90])


# In this order, with the seconds that each is expected to take at most.
SECTIONS: dict[str, tuple[Callable[[Bench], None], float]] = {
    "forward_480p_fp8": (lambda bench: forward(bench, "480p", "fp8", "fp8"), 45),
    "window_fp8": (lambda bench: window(bench, "fp8", "fp8"), 60),
    "forward_480p_fp8_two": (lambda bench: forward(bench, "480p", "fp8", "fp8", 2), 30),
    "forward_720p_fp8": (lambda bench: forward(bench, "720p", "fp8", "fp8"), 60),
    "forward_480p_bf16": (lambda bench: forward(bench, "480p", "bf16", "auto"), 50),
    "sharded_bf16": (lambda bench: sharded(bench, "bf16", "auto"), 40),
    "profile": (profile, 20),
}
DEFAULT = [name for name in SECTIONS if name != "profile"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", default="", help="ulysses x ring, comma-separated; all GPUs by Ulysses if empty")
    parser.add_argument("--sections", default=",".join(DEFAULT), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; the median counts")
    parser.add_argument("--budget_s", type=float, default=230, help="seconds for everything")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on a CPU")
    baseline.add_flags(parser)
    flags = parser.parse_args()
    runs = baseline.check_flags(parser, flags)
    place = Place.of_environment()
    flags.layouts = flags.layouts or f"{place.world}x1"
    scale = Scale.of(flags.tiny, place)
    if scale.device.type == "cuda":
        torch.cuda.set_device(scale.device)
    if "MASTER_ADDR" not in os.environ:  # one GPU without torchrun
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo" if flags.tiny else "nccl")
    bench = Bench(scale, place, flags)
    for name in flags.sections.split(","):
        section, needed = SECTIONS[name]
        if not bench.control.agree(bench.left_s > needed):
            bench.add("left out", f"{name}: needs {needed:.0f} s, left are", bench.left_s, "s")
            continue
        start = time.perf_counter()
        try:
            section(bench)
        except Exception:  # noqa: BLE001 - what was measured is kept; the other ranks cannot go on alone
            traceback.print_exc()
            bench.flush()
            os._exit(1)
        free(scale)
        bench.add("took", name, time.perf_counter() - start, "s")
        bench.flush()
    dist.destroy_process_group()
    return 0 if place.rank else baseline.finish(flags, bench.run, runs)


if __name__ == "__main__":
    sys.exit(main())
