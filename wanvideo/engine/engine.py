"""The models of a run: where they are, what they need, and how they are made ready."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.load import load_audio_encoder, load_clip_vision, load_text_encoder, load_transformer, load_vae
from ..checkpoints.quantize import TEXT_ENCODER_FORMATS
from ..errors import InputError, UnsupportedError
from ..lora.apply import apply_loras
from ..lora.use import LoraUse
from ..memory.budget import free_device_bytes, obtainable_host_bytes
from ..memory.planner import Device, ModelWeights, RunPlan, plan_run, prefers_shards
from ..memory.residency import Residency, WholeResidency
from ..models.transformer import HEAD_WIDTH, WanTransformer
from ..models.vae import WanVAE
from ..ops.attention.backends import choose
from ..ops.precision import DTYPES
from ..parallel.residency import ShardedResidency
from ..parallel.team import Team
from ..parallel.transform import split_rows, split_tokens
from ..protocols import OneRank, Ranks
from ..request import EngineOptions
from .conditioning import Workload
from .encoders import Encoders
from .files import ResolvedFiles
from .host import Host, ModelHandle, WholeHandle
from .sizes import model_sizes, text_encoder_bytes

logger = logging.getLogger("wanvideo")
TransformerHandle = ModelHandle[Residency[WanTransformer]]
VaeHandle = ModelHandle[WholeResidency[WanVAE]]


class Engine:
    """One transformer, its VAE, and how they are used; the only way by which a face samples.

    Args:
        host: lends the device's memory.
        transformer, vae: not loaded yet; no VAE where only latents are wanted.
        options: precision, attention, streaming. loras: what the transformer gets.
        adapter: an audio adapter beside the transformer's own file.
        text_encoder: for the plan, which counts it.
    """

    def __init__(
        self, host: Host, transformer: TransformerHandle, vae: VaeHandle | None, options: EngineOptions, *,
        loras: Sequence[LoraUse] = (), adapter: Checkpoint | None = None, text_encoder: WholeHandle | None = None,
    ) -> None:  # fmt: skip
        self.host, self.options, self.loras = host, options, tuple(loras)
        self._transformer, self._vae, self._adapter, self._text_encoder = transformer, vae, adapter, text_encoder
        self.team: Team | None = None
        self._is_sharded = False

    def join(self, team: Team, shard: bool) -> None:
        """Make videos together with other ranks from now on. Called before anything is loaded.

        Args: shard: keep a part of the transformer's blocks on each rank; else all of them are on every rank.
        """
        self.team, group = team, team.mesh.sequence
        self._is_sharded = shard and group.size > 1
        if self._is_sharded:
            self._transformer.shard(partial(ShardedResidency, group=group), group.index, group.size)

    @property
    def ranks(self) -> Ranks:
        """Who make a video together."""
        return self.team or OneRank()

    @property
    def transformer(self) -> WanTransformer:
        """As the last `ready` left it."""
        return self._transformer.loaded.model

    @property
    def vae(self) -> WanVAE:
        """As the last `ready` left it."""
        if self._vae is None:
            raise UnsupportedError("This engine has no VAE: it was made for latents alone. Make one with a VAE.")
        return self._vae.loaded.model

    @property
    def checkpoints(self) -> dict[str, Checkpoint | None]:
        """The files that decide what it samples."""
        vae = None if self._vae is None else self._vae.checkpoint
        return {"transformer": self._transformer.checkpoint, "adapter": self._adapter, "vae": vae}

    @property
    def vae_precision(self) -> str:
        """What of its VAE decides frames beside the file."""
        return "" if self._vae is None else self._vae.precision

    @property
    def residency(self) -> Residency[WanTransformer]:
        """Where the transformer's blocks are, once it is loaded."""
        return self._transformer.loaded

    @cached_property
    def weights(self) -> ModelWeights:
        """Sizes of all models, from the headers of their files."""
        files = ResolvedFiles(
            transformer=self._transformer.checkpoint, adapter=self._adapter,
            vae=None if self._vae is None else self._vae.checkpoint,
            text_encoder=None if self._text_encoder is None else self._text_encoder.checkpoint,
            loras=self.loras,
        )  # fmt: skip
        sizes = model_sizes(files, DTYPES[self.options.dtype], self.options.quantize)
        if self.team is None or not self._is_sharded:
            return sizes
        return sizes.sharded(self.team.mesh.sequence.size)

    def check(self, workload: Workload) -> None:
        """Raises: InputError when the LoRAs' strengths by step do not fit the number of steps."""
        steps = workload.setup.num_steps
        for lora in self.loras:
            if isinstance(lora.strength, tuple) and len(lora.strength) != steps:
                raise InputError(
                    f"{lora.name} has {len(lora.strength)} strengths for a video of {steps} steps. "
                    "Give one strength, or one for each step."
                )

    def plan(self, workload: Workload, device: Device | None = None) -> RunPlan:
        """What a run needs and how long it takes; nothing is loaded.

        Args: device: plan for this one instead of the one that is here.
        Raises: InputError when it cannot fit.
        """
        return self._plan(workload, device or self._here(self.host.obtainable_bytes))

    def prefers_shards(self, workload: Workload, num_ranks: int) -> bool:
        """Whether so many ranks that split tokens should each keep a part of the blocks; asked before they `join`."""
        device = self._here(self.host.obtainable_bytes)
        return prefers_shards(partial(self._plan, workload, device), self.weights, num_ranks)

    def ready(self, workload: Workload) -> RunPlan:
        """Load what is not loaded, place it, give the transformer exactly these LoRAs; what the run will be.

        Raises: InputError, before anything is loaded, when the run cannot fit.
        """
        self.check(workload)
        expected = planned = self.plan(workload)
        logger.info("%s", expected.describe())

        def place() -> None:
            nonlocal planned
            try:
                planned = self._plan(workload, self._here(partial(free_device_bytes, self.host.device)))
            except InputError:
                if self.options.blocks_to_stream < 0:
                    raise  # a number that was asked for is tried, also where others have not made enough room
            self.residency.prefetch = self.options.prefetch
            streamed = planned.memory.num_streamed
            if self._is_sharded:  # who gathers has to ask alike
                streamed = self.weights.num_blocks if self.ranks.agree(streamed > 0) else 0
            self.residency.place(streamed)

        transformer = self._transformer.load(
            expected.memory.device_bytes, place,
            is_resident=expected.memory.num_streamed == 0 and not self._is_sharded,
        )  # fmt: skip
        apply_loras(transformer, self.loras)
        if self.team is None:
            transformer.set_attention(self.options.attention)
        else:
            split_tokens(transformer, self.team.mesh, self.options.attention)
        transformer.compile_blocks(self.options.compile, self.options.compile_backend)
        if self._vae is not None:
            vae = self._vae.load()
            if self.team is not None:
                split_rows(vae, self.team.mesh)
        return replace(planned, tiled_vae=self.ranks.agree(planned.tiled_vae))

    def stream_more(self) -> bool:
        """Let a quarter of the blocks more stream; False where that gives nothing back."""
        return self.host.device.type == "cuda" and self.residency.stream_more()

    def _plan(self, workload: Workload, device: Device, weights: ModelWeights | None = None) -> RunPlan:
        return plan_run(
            workload.geometry, workload.windows, workload.fps, workload.setup.settings, self.options,
            weights or self.weights, device, workload.work,
        )  # fmt: skip

    def _here(self, count: Callable[[], int]) -> Device:
        """This device with the memory that `count` says, and with what the models of this run hold of it."""
        device = self.host.device
        if device.type != "cuda":
            return Device(free_host_bytes=obtainable_host_bytes())
        held = self._transformer.device_bytes + (self._vae.device_bytes if self._vae else 0)
        attention = choose(
            self.options.attention, device, DTYPES[self.options.dtype], HEAD_WIDTH, self.weights.dim // HEAD_WIDTH
        )
        free = min(count() + held, torch.cuda.get_device_properties(device).total_memory)
        return Device(torch.cuda.get_device_name(device), free, attention.name, obtainable_host_bytes())


def open_engine(files: ResolvedFiles, options: EngineOptions, host: Host) -> tuple[Engine, Encoders]:
    """The models of resolved files on a host that is a process of its own; none is loaded yet."""
    dtype = DTYPES[options.dtype]
    text_format = options.quantize and TEXT_ENCODER_FORMATS.get(options.quantize, options.quantize)
    if text_format != options.quantize:
        logger.info("The text encoder is quantized to %s, not %s.", text_format, options.quantize)

    def handle(
        checkpoint: Checkpoint | None, load: Callable[..., nn.Module], num_bytes: Callable[[], int] | None = None,
        **arguments: Any,
    ) -> WholeHandle | None:  # fmt: skip
        if checkpoint is None:
            return None
        precision = " ".join(map(str, arguments.values()))
        return ModelHandle(
            checkpoint, host, partial(load, checkpoint, **arguments), WholeResidency, is_transient=True,
            precision=precision, num_bytes=num_bytes,
        )  # fmt: skip

    text_bytes = partial(text_encoder_bytes, files.text_encoder, dtype, options.quantize)
    encoders = Encoders(
        text=handle(files.text_encoder, load_text_encoder, text_bytes, dtype=dtype, quantize=text_format),
        tokenizer=files.tokenizer,
        clip_vision=handle(files.clip_vision, load_clip_vision, dtype=dtype),
        audio=handle(files.wav2vec, load_audio_encoder, dtype=torch.float32),
        text_on_cpu=options.text_encoder_device == "cpu",
    )
    load = partial(load_transformer, files.transformer, files.adapter, dtype=dtype, quantize=options.quantize)
    transformer: TransformerHandle = ModelHandle(files.transformer, host, load, Residency)
    vae: VaeHandle | None = None
    if files.vae is not None:
        vae = ModelHandle(files.vae, host, partial(load_vae, files.vae, dtype=dtype), WholeResidency)
    engine = Engine(
        host, transformer, vae, options, loras=files.loras,
        adapter=files.adapter, text_encoder=encoders.text,
    )  # fmt: skip
    return engine, encoders
