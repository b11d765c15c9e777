"""Plans a run before anything is loaded: how many blocks stream, whether the VAE tiles, how long it takes.

Needs are estimated from sizes (budget.py), free memory is measured, times come from earlier runs here (learned.py) or
from measured GPUs (speed.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..errors import InputError
from ..geometry import SHORTEST_WINDOW, VideoGeometry, WindowPlan
from ..request import EngineOptions, LoopSettings
from .budget import CONTEXT_SLACK, GIB, WindowNeed, vae_bytes, window_need
from .learned import Measured, learned_seconds
from .speed import Flops, PartSeconds, forward_flops, speeds_of

HOST_BASE = 3 * GIB  # of a process with its libraries and one window of frames


@dataclass(frozen=True)
class MemoryPlan:
    """num_streamed blocks stream; device_bytes is the expected peak."""

    num_streamed: int
    device_bytes: int


def plan_blocks(
    free_bytes: int, num_blocks: int, block_bytes: int, other_bytes: int, need: WindowNeed, *,
    reserve_bytes: int = 0, prefetch: int = 1, wanted: int = -1, helps: str = "a smaller size",
) -> MemoryPlan:  # fmt: skip
    """Blocks to stream.

    Args:
        free_bytes: device memory that may be used. reserve_bytes: kept for something else (the VAE's decode).
        wanted: what the user asks for, 0 to num_blocks, or -1 for as few as fit. helps: what to use where nothing fits.
    Raises: InputError when even with all blocks streaming it does not fit; a user's number may do without the slack.
    """

    def peak(streamed: int, ahead: int = prefetch) -> int:
        streaming = min(streamed, ahead + 1) * block_bytes
        return other_bytes + (num_blocks - streamed) * block_bytes + streaming + max(need.total, reserve_bytes)

    missing = peak(0) - free_bytes
    needed = 0 if missing <= 0 else min(num_blocks, math.ceil(missing / block_bytes) + prefetch + 1)
    if peak(needed) - (CONTEXT_SLACK if wanted >= 0 else 0) > free_bytes:
        if prefetch > 1 and peak(num_blocks, ahead=1) <= free_bytes:
            helps = "a prefetch (prefetch_blocks) of 1"
        raise InputError(
            f"A window needs {peak(num_blocks) / GIB:.1f} GiB of device memory with every block streaming, and "
            f"{free_bytes / GIB:.1f} GiB are free. Use {helps}."
        )
    streamed = min(wanted, num_blocks) if wanted >= 0 else needed
    return MemoryPlan(streamed, peak(streamed))


@dataclass(frozen=True)
class ModelWeights:
    """Sizes of the models of a run, from the headers of their files.

    block_bytes: of the largest block as it is held; other_bytes: of the transformer outside its blocks; stored: bf16,
    or the quantized format that most of the blocks have. *_bytes of models that are not used are 0.
    """

    num_blocks: int
    block_bytes: int
    other_bytes: int
    dim: int
    ffn_dim: int
    audio_tokens: int
    stored: str
    vae_bytes: int
    text_encoder_bytes: int

    @property
    def transformer_bytes(self) -> int:
        return self.num_blocks * self.block_bytes + self.other_bytes

    def sharded(self, num_ranks: int) -> ModelWeights:
        """Of one of so many ranks that keep a part of every block each, and two whole blocks while they run."""
        part = -(-self.block_bytes // num_ranks)
        return replace(self, block_bytes=part, other_bytes=self.other_bytes + 2 * self.block_bytes)


@dataclass(frozen=True)
class Device:
    """Where a run happens. name: as CUDA gives it, "" for a CPU; free_bytes: what may be used, None for a CPU.

    attention: the backend that is used there. free_host_bytes: memory beside it, None where it is not known.
    """

    name: str = ""
    free_bytes: int | None = None
    attention: str = "sdpa"
    free_host_bytes: int | None = None


@dataclass(frozen=True)
class Work:
    """How often the transformer runs, and on what.

    num_passes: a step. num_texts, num_speeches: prompts and sounds whose contexts are held at once.
    num_references: pictures that are encoded for the windows.
    """

    num_steps: int
    num_passes: int
    num_speakers: int
    num_texts: int
    num_speeches: int
    num_references: int


@dataclass(frozen=True)
class RunPlan:
    """What a run will be: its windows, where the weights go, and how long it takes.

    memory: of the transformer's placement, device_bytes the peak of the whole run. host_bytes: expected peak of the
    process. host_model: what takes most of it. step_seconds, total_seconds: None where this GPU was not measured, the
    latter also while the length of the video is not known.
    """

    geometry: VideoGeometry
    windows: WindowPlan
    fps: float
    memory: MemoryPlan
    num_blocks: int
    tiled_vae: bool
    text_encoder_streams: bool
    host_bytes: int
    host_model: str
    device: Device
    work: Work
    step_seconds: float | None
    total_seconds: float | None

    def describe(self) -> str:
        """A few lines for the user."""
        size, frames = self.geometry, self.windows.total_frames
        length = "of unknown length" if frames is None else f"{frames} frames ({frames / self.fps:.1f} s)"
        number = None if frames is None else len(self.windows)
        count = "windows" if number is None else f"{number} window{'s' * (number != 1)}"
        passes = "one pass" if self.work.num_passes == 1 else f"{self.work.num_passes} passes"
        steps = f"{count} of {self.work.num_steps} steps, {passes} a step"
        lines = (f"{size.width}x{size.height}, {length}: {steps}.", self.placement(), *self._doubts(), self._times())
        return "\n".join(lines)

    def _doubts(self) -> Iterator[str]:
        """What asks for more memory than there is, and what helps."""
        device, host = self.device.free_bytes, self.device.free_host_bytes
        if device is not None and self.memory.device_bytes > device:
            yield (
                "That is more than is free there, as blocks_to_swap and tiled_vae are set. Leave both to the program, "
                "or let every block stream."
            )
        if host is not None and self.host_bytes > host:
            yield (
                f"Only {host / GIB:.1f} GiB of host memory are free, and the system ends a process that takes more "
                f"(exit code 137). Use a {self.host_model} of fewer bits (fp8, or GGUF of 4 bits), or close other "
                "programs."
            )

    def placement(self) -> str:
        """Where everything goes and how much memory it takes, on one line."""
        host = f"{self.host_bytes / GIB:.1f} GiB in host memory"
        if self.device.free_bytes is None:
            return f"On the CPU{' in tiles' if self.tiled_vae else ''}: about {host}."
        streams = f"{self.memory.num_streamed} of {self.num_blocks} blocks stream"
        tiles = ", the VAE works in tiles" if self.tiled_vae else ""
        text = ", the text encoder's blocks stream" if self.text_encoder_streams else ""
        peak = f"peak about {self.memory.device_bytes / GIB:.1f} GiB there and {host}"
        return (
            f"On {self.device.name} with {self.device.free_bytes / GIB:.1f} GiB free: {streams}{tiles}{text}; {peak}."
        )

    def _times(self) -> str:
        if self.step_seconds is None:
            return "How long it takes is not known: this device and format were not measured (try `bench`)."
        if self.total_seconds is None or self.windows.total_frames is None:
            return f"About {self.step_seconds:.1f} s a step."
        ratio = self.total_seconds * self.fps / self.windows.total_frames
        return (
            f"About {self.step_seconds:.1f} s a step, {self.total_seconds:.0f} s in all, "
            f"{ratio:.1f} s for each second of video."
        )


def plan_run(
    geometry: VideoGeometry, windows: WindowPlan, fps: float, settings: LoopSettings, options: EngineOptions,
    weights: ModelWeights, device: Device, work: Work,
) -> RunPlan:  # fmt: skip
    """Plan a run on `device`.

    Raises: InputError when it cannot fit even with every block streaming and a tiled VAE.
    """
    width, height, frames = geometry.width, geometry.height, geometry.num_frames
    element_size = 4 if options.dtype == "fp32" else 2
    need = window_need(
        geometry.num_tokens, geometry.latent_frames, weights.dim, weights.ffn_dim, weights.num_blocks,
        audio_tokens=weights.audio_tokens, num_speakers=max(1, work.num_speakers), num_texts=work.num_texts,
        num_speeches=work.num_speeches, element_size=element_size,
    )  # fmt: skip
    if settings.step_cache is not None and not settings.step_cache.offload:
        kept = (work.num_passes + 1) * geometry.num_tokens * weights.dim * 4  # the residual stream is float32
        need = WindowNeed(need.activation_bytes + kept, need.context_bytes)
    whole, tiled = (vae_bytes(width, height, frames, tiles, element_size) for tiles in (False, True))
    if device.free_bytes is None:
        wanted, room = max(0, options.blocks_to_stream), 2**62
    else:
        wanted, room = options.blocks_to_stream, device.free_bytes

    def place(reserve: int, has_tiles: bool = False) -> MemoryPlan:
        return plan_blocks(
            room, weights.num_blocks, weights.block_bytes, weights.other_bytes + weights.vae_bytes, need,
            reserve_bytes=reserve, prefetch=options.prefetch, wanted=wanted,
            helps=_helps(frames > SHORTEST_WINDOW, not has_tiles and reserve > need.total),
        )  # fmt: skip

    tiles = settings.tiled_vae or options.vae_tiling is True
    memory = _placed(place, whole, room) if not tiles else None
    if memory is None and options.vae_tiling is not False:
        memory, tiles = place(tiled, has_tiles=True), True
    memory = memory or place(whole)
    text_streams = device.free_bytes is not None and weights.text_encoder_bytes + GIB > device.free_bytes
    step, total = _seconds(geometry, windows, weights, device, work, memory.num_streamed)
    return RunPlan(
        geometry, windows, fps, memory, weights.num_blocks, tiles, text_streams,
        *_host_bytes(weights, memory, options, device), device, work, step, total,
    )  # fmt: skip


def _helps(can_shorten: bool, can_tile: bool) -> str:
    """What a user may change where a window does not fit."""
    if can_shorten:
        return "a smaller size, a shorter window or tiled_vae" if can_tile else "a smaller size or a shorter window"
    return "a smaller size or tiled_vae" if can_tile else "a smaller size"


def prefers_shards(plan: Callable[[ModelWeights], RunPlan], weights: ModelWeights, num_ranks: int) -> bool:
    """Whether ranks should each keep a part of the blocks: where all of them would have to stream, and parts would not.

    A block comes from other ranks over their link in less time than from host memory, but whole ones need neither.
    Args: plan: a run with such weights on the device that has least room; raises InputError where it does not fit.
    """
    if num_ranks == 1:
        return False
    whole, part = (_streamed(plan, sizes) for sizes in (weights, weights.sharded(num_ranks)))
    return whole > 0 and part < whole


def _streamed(plan: Callable[[ModelWeights], RunPlan], weights: ModelWeights) -> float:
    """Blocks that stream, infinitely many where nothing fits."""
    try:
        return plan(weights).memory.num_streamed
    except InputError:
        return math.inf


def _placed(place: Callable[[int], MemoryPlan], reserve: int, room: int) -> MemoryPlan | None:
    """The placement beside a VAE that needs `reserve`, or None if it does not fit."""
    try:
        memory = place(reserve)
    except InputError:
        return None
    return memory if memory.device_bytes <= room else None


def _host_bytes(
    weights: ModelWeights, memory: MemoryPlan, options: EngineOptions, device: Device
) -> tuple[int, str]:  # fmt: skip
    """Expected peak of the process, and the model that takes most of it."""
    if device.free_bytes is None:  # there blocks that stream are in the same memory as those that do not
        model, encodes_here = memory.device_bytes + memory.num_streamed * weights.block_bytes, True
    else:
        model = weights.transformer_bytes if memory.num_streamed else 0
        encodes_here = options.text_encoder_device == "cpu" or weights.text_encoder_bytes + GIB > device.free_bytes
    text = weights.text_encoder_bytes if encodes_here else 0
    return HOST_BASE + max(model, text), "text encoder" if text > model else "transformer"


def _seconds(
    geometry: VideoGeometry, windows: WindowPlan, weights: ModelWeights, device: Device, work: Work, num_streamed: int
) -> tuple[float | None, float | None]:
    """Seconds of a step, and of all windows with the VAE's work; prompts and sound are encoded in a few more.

    Runs that this machine has seen (learned.py) count before the table of measured GPUs.
    """
    learned = None if device.free_bytes is None else learned_seconds(
        kind_of_run(geometry, weights, device, work, num_streamed)
    )  # fmt: skip
    if learned is not None:
        return _in_all(PartSeconds(learned * work.num_passes), windows, work)
    speeds = speeds_of(device.name) if device.name else None
    if speeds is None:
        return None, None
    flops = _flops(geometry, weights, work)
    forward = speeds.forward_seconds(flops, weights.stored, device.attention, num_streamed * weights.block_bytes)
    if forward is None:
        return None, None
    pixels = geometry.width * geometry.height
    decode, encode = (geometry.num_frames * pixels / rate for rate in (speeds.decode, speeds.encode))
    parts = PartSeconds(forward * work.num_passes, decode, encode, windows.overlap * pixels / speeds.encode)
    return _in_all(parts, windows, work)


def _in_all(parts: PartSeconds, windows: WindowPlan, work: Work) -> tuple[float, float | None]:
    """Seconds of a step, and of all windows where their number is known."""
    count = windows.num_windows
    return parts.step, None if count is None else parts.of_video(count, work.num_steps, work.num_references)


def kind_of_run(
    geometry: VideoGeometry, weights: ModelWeights, device: Device, work: Work, num_streamed: int,
    pass_seconds: float = 1.0,
) -> Measured:  # fmt: skip
    """A run as it is kept and looked for among those that this machine has seen."""
    flops = _flops(geometry, weights, work).total
    passes = work.num_steps * work.num_passes
    return Measured(device.name, weights.stored, device.attention, num_streamed, passes, flops, pass_seconds)


def _flops(geometry: VideoGeometry, weights: ModelWeights, work: Work) -> Flops:
    return forward_flops(
        geometry.num_tokens, weights.dim, weights.ffn_dim, weights.num_blocks, audio_tokens=weights.audio_tokens,
        num_speakers=work.num_speakers,
    )  # fmt: skip
