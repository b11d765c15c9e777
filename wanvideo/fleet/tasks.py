"""What workers do: whole videos from files, and windows of a video that another process has encoded and records."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.dialects import Kind
from ..checkpoints.load import load_transformer, load_vae, open_checkpoint
from ..engine.engine import Engine
from ..engine.host import ModelHandle, ProcessHost
from ..engine.render import render
from ..engine.shared import Beginning, share_beginning
from ..lora.use import LoraUse
from ..memory.residency import Residency, WholeResidency
from ..models.transformer import HEAD_WIDTH
from ..ops.precision import DTYPES
from ..parallel.layout import WantedRanks, choose_layout
from ..pipeline import TalkingVideoPipeline
from ..request import EngineOptions, LoopSettings, ModelFiles, TalkRequest
from ..runs.find import AUTO, NEVER, is_made, written_since
from ..sampling.conditioning import Conditioning
from ..sampling.setup import SamplingSetup
from ..sampling.state import WindowState
from ..sampling.window import StepReport
from .messages import Made
from .ranks import join, layout_for
from .worker import Worker


@dataclass(frozen=True)
class VideoTask:
    """A request whose video is written to request.output.

    Args:
        overwrite, resume: see TalkingVideoPipeline.generate.
        before: runs that were there before (see runs.find.last_writes); with resume "never" it goes on with a newer
            one, which an earlier try of this task began.
    """

    request: TalkRequest
    files: ModelFiles
    options: EngineOptions
    wanted: WantedRanks
    overwrite: bool = False
    resume: str = AUTO
    before: frozenset[tuple[str, int]] = frozenset()

    @property
    def key(self) -> Hashable:
        return self.files, self.options, self.wanted, self._num_passes

    @property
    def _num_passes(self) -> int:
        return len(SamplingSetup.of(self.request.settings, self.request.has_speech).passes)

    def for_rank(self, rank: int) -> VideoTask:
        return self

    def load(self, worker: Worker) -> TalkingVideoPipeline:
        options = replace(self.options, device=worker.place.device(self.options.device))
        pipeline = TalkingVideoPipeline(self.files, options)
        if worker.place.world > 1:
            plan = layout_for(pipeline, self.request, self.wanted, worker.place.world)
            join(pipeline, self.request, self.wanted, worker.join(plan.layout, pipeline.engine.host.device))
        return pipeline

    def perform(self, models: TalkingVideoPipeline, worker: Worker) -> Path | None:
        if worker.place.rank:
            models.assist(self.request)
            return None
        resume = self.resume
        if self.request.output is not None:
            output = Path(self.request.output)
            begun = written_since(output, self.before)
            if begun is not None and is_made(begun, output):  # and the worker died before it could say so
                share_beginning(models.engine.team, lambda: None)
                return output
            if resume == NEVER:
                resume = str(begun or NEVER)
        return models.generate(self.request, overwrite=self.overwrite, on_step=worker.step, resume=resume)


@dataclass(frozen=True)
class NamedModels:
    """What samples, by the names of its files. loras: by paths. vae_dtype: of its weights."""

    transformer: tuple[Path, ...]
    adapter: tuple[Path, ...]
    vae: tuple[Path, ...]
    vae_dtype: torch.dtype
    loras: tuple[LoraUse, ...]
    options: EngineOptions

    @property
    def stamps(self) -> tuple[tuple[Path, int, int], ...]:
        """Its files as they are now: path, bytes, time."""
        loras = [Path(lora.path) for lora in self.loras if lora.path is not None]
        files = [(path, path.stat()) for path in (*self.transformer, *self.adapter, *self.vae, *loras)]
        return tuple((path, state.st_size, state.st_mtime_ns) for path, state in files)

    def open(self, host: ProcessHost) -> Engine:
        """Ready to load. Raises: CheckpointError for files that are not there any more."""
        transformer = open_checkpoint(self.transformer, Kind.TRANSFORMER)
        adapter = open_checkpoint(self.adapter, Kind.ADAPTER) if self.adapter else None
        vae = open_checkpoint(self.vae, Kind.VAE)
        load = partial(
            load_transformer, transformer, adapter, dtype=DTYPES[self.options.dtype], quantize=self.options.quantize
        )
        return Engine(
            host, ModelHandle(transformer, host, load, Residency),
            ModelHandle(vae, host, partial(load_vae, vae, dtype=self.vae_dtype), WholeResidency), self.options,
            loras=self.loras, adapter=adapter,
        )  # fmt: skip


def paths_of(checkpoint: Checkpoint | None) -> tuple[Path, ...]:
    return () if checkpoint is None else tuple(path.absolute() for path in checkpoint.paths)


@dataclass(frozen=True)
class RenderTask:
    """A video's windows; the process that sends it answers for sound and pictures, and writes what is made.

    Args:
        conditioning: without sound, reference pictures, embeddings of many and source.
        sound: (speakers, frames) and silence, or None.
        num_references: pictures. num_embeds: embeddings that are asked for one by one.
        has_source: whether parts of a source video are kept.
        state: after the windows that are there already.
    """

    models: NamedModels
    wanted: WantedRanks
    settings: LoopSettings
    seed: int
    conditioning: Conditioning | None
    sound: tuple[int, int | None, Tensor] | None
    num_references: int
    num_embeds: int
    has_source: bool
    state: WindowState | None
    has_audio: bool

    @property
    def key(self) -> Hashable:
        return self.models, self.models.stamps, self.wanted, len(self._setup.passes)

    @property
    def _setup(self) -> SamplingSetup:
        return SamplingSetup.of(self.settings, self.has_audio)

    def for_rank(self, rank: int) -> RenderTask:
        return self if rank == 0 else replace(self, conditioning=None, sound=None, state=None)

    def load(self, worker: Worker) -> Engine:
        options = replace(self.models.options, device=worker.place.device(self.models.options.device))
        engine = replace(self.models, options=options).open(ProcessHost(options.device))
        world = worker.place.world
        if world > 1:
            heads, num_passes = engine.weights.dim // HEAD_WIDTH, len(self._setup.passes)
            layout = choose_layout(self.wanted, world, heads, num_passes).layout
            engine.join(worker.join(layout, engine.host.device), self.wanted.shard)
        return engine

    def perform(self, models: Engine, worker: Worker) -> None:
        begin = share_beginning(models.team, partial(self._begin, worker))
        assert begin is not None
        is_first = worker.place.rank == 0
        on_step = partial(_show, worker) if is_first else None
        for window in render(models, begin.conditioning, self._setup, begin.seed, (), on_step, begin.state):
            if is_first:
                worker.tell(Made(replace(window, latents=window.latents.cpu().clone())))

    def _begin(self, worker: Worker) -> Beginning:
        assert self.conditioning is not None, "it is the first rank's"
        audio = None if self.sound is None else AskedAudio(worker, *self.sound)
        references = AskedPictures(worker, self.num_references)
        source = AskedSource(worker) if self.has_source else None
        embeds = self.conditioning.image_embeds
        if self.num_embeds:
            embeds = AskedPictures(worker, self.num_embeds, "embeds")
        conditioning = replace(
            self.conditioning, references=references, audio=audio, source=source, image_embeds=embeds
        )  # fmt: skip
        return Beginning(conditioning, self.seed, self.state)


class AskedAudio:
    """An `AudioSource` that another process has."""

    def __init__(self, worker: Worker, num_speakers: int, num_frames: int | None, silence: Tensor) -> None:
        self._worker, self.num_speakers, self.num_frames, self.silence = worker, num_speakers, num_frames, silence

    def features(self, start: int, stop: int) -> Tensor:
        features: Tensor = self._worker.ask("features", start, stop)
        return features


class AskedPictures:
    """Reference pictures [3, H, W] that another process has, or their embeddings. Args: what: is asked for."""

    def __init__(self, worker: Worker, count: int, what: str = "picture") -> None:
        self._worker, self._count, self._what = worker, count, what

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self._count:
            raise IndexError(f"{self._what} {index} of {self._count}")
        picture: Tensor = self._worker.ask(self._what, index)
        return picture


class AskedSource:
    """`SourceFrames` that another process has."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def frames(self, start: int, stop: int) -> Tensor:
        frames: Tensor = self._worker.ask("frames", start, stop)
        return frames

    def region(self, start: int, stop: int) -> Tensor:
        region: Tensor = self._worker.ask("region", start, stop)
        return region


def _show(worker: Worker, report: StepReport) -> None:
    """What a page shows of a step: where it is, and the last frame."""
    worker.tell(replace(report, denoised=report.denoised[:, -1:].cpu().clone()))
    worker.stop_if_asked()
