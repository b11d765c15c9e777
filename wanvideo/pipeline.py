"""The public API: a request in, finished windows out, as they finish."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from .engine.conditioning import encode_request, workload_of_request
from .engine.encoders import missing
from .engine.engine import open_engine
from .engine.files import resolve
from .engine.host import ProcessHost
from .engine.inputs import Inputs, check_adapter, open_inputs
from .engine.render import FinishedWindow, render
from .errors import CheckpointError
from .memory.planner import Device, RunPlan
from .ops.attention.backends import known
from .protocols import FrameSink
from .request import EngineOptions, ModelFiles, TalkRequest
from .sampling.denoiser import check_blocks
from .sampling.sampler import OnStep
from .video.writer import VideoWriter, check_output, free_name

__all__ = ["FinishedWindow", "TalkingVideoPipeline"]

logger = logging.getLogger("wanvideo")


class TalkingVideoPipeline:
    """Makes talking videos from requests.

    Args:
        files: where the models are. All are recognized here, none is loaded yet.
        options: device and precision.
    Raises: CheckpointError when a file is missing, damaged or of another kind.
    """

    def __init__(self, files: ModelFiles, options: EngineOptions | None = None) -> None:
        self.options = options or EngineOptions()
        known(self.options.attention)
        host = ProcessHost(self.options.device)
        self.files = resolve(files)
        self.engine, self.encoders = open_engine(self.files, self.options, host)

    def run(
        self, request: TalkRequest, on_step: OnStep | None = None, sinks: Sequence[FrameSink] = ()
    ) -> Iterator[FinishedWindow]:
        """Finished windows of a video, in order. The same request gives the same frames.

        Args:
            on_step: called after every step; what it raises ends the run.
            sinks: get every window before it is yielded, and are closed or abandoned at the end.
        Raises: InputError for anything in the request that cannot be used, before a model is loaded.
        """
        inputs = self.check(request)
        return self._run(request, inputs, on_step, sinks)

    def generate(
        self,
        request: TalkRequest,
        output: str | Path | None = None,
        *,
        overwrite: bool = False,
        on_step: OnStep | None = None,
    ) -> Path:
        """Make the video and write it, window by window, with the speakers' original sound.

        Args: output: path of the mp4; None: what the request names.
        Returns: the path that was written.
        Raises: as `run`; OutputError when it cannot be written there. What was finished stays playable.
        """
        path = check_output(output or request.output or free_name("talking_video.mp4"), overwrite)
        inputs = self.check(request)
        size = inputs.geometry.width, inputs.geometry.height
        with VideoWriter(path, *size, request.fps, audio=inputs.soundtrack, overwrite=overwrite) as writer:
            for _ in self._run(request, inputs, on_step, [writer]):
                pass  # the writer has it
        return writer.path

    def plan(self, request: TalkRequest, device: Device | None = None) -> RunPlan:
        """What a request needs and how long it takes, before anything is loaded.

        Args: device: plan for this one instead of the one that is here.
        Raises: as `run`; InputError when it cannot fit.
        """
        return self.engine.plan(workload_of_request(request, self.check(request)), device)

    def check(self, request: TalkRequest) -> Inputs:
        """Open and check everything that a request names; no model is loaded."""
        inputs = open_inputs(request)
        self.encoders.check(has_audio=inputs.tracks is not None)
        if inputs.tracks is not None and not self.files.has_audio:
            raise CheckpointError(
                f"{self.files.transformer.name} has no audio adapter, so nobody would speak. "
                "Name one: infinitetalk.safetensors."
            )
        if self.files.adapter is not None:
            check_adapter(self.files.adapter.paths[0], len(request.speakers))
        if self.files.vae is None:
            raise missing("the video", "Wan2.1_VAE.pth")
        self.engine.check(workload_of_request(request, inputs))
        check_blocks(request.settings.skip_layers, self.engine.weights.num_blocks)
        if self.files.clip_vision is None:
            logger.info("No CLIP vision model is named: faces keep less of the reference's likeness.")
        return inputs

    def _run(
        self, request: TalkRequest, inputs: Inputs, on_step: OnStep | None, sinks: Sequence[FrameSink]
    ) -> Iterator[FinishedWindow]:
        self.engine.plan(workload_of_request(request, inputs))  # refuses what cannot fit before encoders are loaded
        conditioning = encode_request(request, inputs, self.encoders)
        yield from render(self.engine, conditioning, inputs.setup, request.seed, sinks, on_step)
