"""The public API: a request in, finished windows out, as they finish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .checkpoints.checkpoint import check_speakers
from .engine.conditioning import encode_request, workload_of_request
from .engine.encoders import missing
from .engine.engine import open_engine
from .engine.files import resolve
from .engine.host import ProcessHost
from .engine.inputs import Inputs, open_inputs
from .engine.manifests import Job, manifest_of
from .engine.recorded import begin_run, record, state_of
from .engine.render import FinishedWindow, ending, render
from .engine.shared import Beginning, share_beginning
from .errors import CheckpointError, UnsupportedError
from .memory.planner import Device, RunPlan
from .ops.attention.names import known
from .protocols import FrameSink
from .request import EngineOptions, ModelFiles, TalkRequest, draw_seed
from .runs.find import AUTO, free_run
from .runs.manifest import Manifest
from .runs.names import video_name
from .runs.store import Run
from .sampling.conditioning import Conditioning
from .sampling.denoiser import check_blocks
from .sampling.sampler import OnStep
from .video.writer import check_output

__all__ = ["FinishedWindow", "TalkingVideoPipeline"]

logger = logging.getLogger("wanvideo")


class TalkingVideoPipeline:
    """Makes talking videos from requests.

    Args:
        files: where the models are. All are recognized here, none is loaded yet.
        options: device and precision.
        prompt_cache: folder in which encoded prompts are kept for later runs; None: nowhere.
    Raises: CheckpointError when a file is missing, damaged or of another kind.
    """

    def __init__(
        self, files: ModelFiles, options: EngineOptions | None = None, prompt_cache: str | Path | None = None
    ) -> None:
        self.options = options or EngineOptions()
        known(self.options.attention)
        host = ProcessHost(self.options.device)
        self.named, self.files = files, resolve(files)
        self.engine, encoders = open_engine(self.files, self.options, host)
        self.encoders = replace(encoders, prompt_cache=None if prompt_cache is None else Path(prompt_cache))

    def run(
        self, request: TalkRequest, on_step: OnStep | None = None, sinks: Sequence[FrameSink] = (), *,
        folder: str | Path | None = None, resume: str = AUTO,
    ) -> Iterator[FinishedWindow]:  # fmt: skip
        """Finished windows of a video, in order. The same request gives the same frames.

        Args:
            on_step: called after every step; what it raises ends the run.
            sinks: get every window before it is yielded, and are closed or abandoned at the end.
            folder: of the run (see runs.store), which keeps what is finished; None: nothing is kept. With one, only
                windows that no earlier run of this request has are sampled and yielded.
            resume: auto, never, or the folder of the run to go on with.
        Raises: InputError for anything in the request that cannot be used, before a model is loaded.
        """
        inputs = self.check(request)
        if folder is None:
            return self._render(request, inputs, on_step, sinks)
        manifest = self.manifest(request, inputs)

        def windows() -> Iterator[FinishedWindow]:
            yield from self._record(request, inputs, manifest, Path(folder), resume, on_step, sinks)[1]

        return windows()

    def generate(
        self, request: TalkRequest, output: str | Path | None = None, *, overwrite: bool = False,
        on_step: OnStep | None = None, resume: str = AUTO, is_named: bool = True,
    ) -> Path:  # fmt: skip
        """Make the video and write it, window by window, with the speakers' original sound.

        While it grows it is in a folder beside the output, NAME.run, from which the same request goes on after whatever
        ended it. That folder keeps the manifest and, as another name of the same file, the video.
        Args:
            output: path of the mp4; None: what the request names.
            resume: auto, never, or the folder of the run to go on with.
            is_named: whether that path was asked for. If not, the video of a run that goes on is called as that run.
        Returns: the path that was written.
        Raises: as `run`; OutputError when it cannot be written there. What was finished stays playable.
        """
        if self.engine.ranks.index > 0:
            raise UnsupportedError("Only the first rank writes a video. Call `assist` on the others.")
        asked = output or request.output
        path = check_output(asked or video_name(free_run(Path("talking_video.run"))), overwrite)
        named = path if asked and is_named else None
        inputs = self.check(request)
        manifest = self.manifest(request, inputs, named)
        replaced = named if overwrite else None
        run, windows = self._record(request, inputs, manifest, path.with_suffix(".run"), resume, on_step, (), replaced)
        for _ in windows:
            pass  # the run has it
        return run.save_as(named, overwrite and named is not None)

    def assist(self, request: TalkRequest) -> None:
        """Compute this rank's share of a video that the first rank makes. Raises: as `run`."""
        for _ in self.run(request):
            pass

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
        check_speakers(self.files.adapter or self.files.transformer, len(request.speakers))
        if self.files.vae is None:
            raise missing("the video", "Wan2.1_VAE.pth")
        self.engine.check(workload_of_request(request, inputs))
        check_blocks(request.settings.skip_layers, self.engine.weights.num_blocks)
        if self.files.clip_vision is None:
            logger.info("No CLIP vision model is named: faces keep less of the reference's likeness.")
        return inputs

    def manifest(self, request: TalkRequest, inputs: Inputs, output: Path | None = None) -> Manifest:
        """What decides the video of a request. Args: inputs: as `check` gives them. output: the name it is to have."""
        return manifest_of(Job(request, self.named, self.options), inputs, self.files, self.engine, output)

    def _record(
        self, request: TalkRequest, inputs: Inputs, manifest: Manifest, folder: Path, resume: str,
        on_step: OnStep | None, sinks: Sequence[FrameSink], replaced: Path | None = None,
    ) -> tuple[Run, Iterator[FinishedWindow]]:  # fmt: skip
        """The run, and the windows that it lacks."""
        run: Run
        own: Conditioning | None = None

        def begin() -> Beginning | None:
            nonlocal run, own
            run, own = begin_run(
                manifest, folder, lambda: self._encode(request, inputs), inputs.setup, inputs.soundtrack, resume,
                replaced,
            )  # fmt: skip
            seed = run.manifest.seed if request.seed is None else request.seed
            assert seed is not None, "a run of a request without a seed has one"
            if request.seed is None:
                logger.info("The seed is %d; an unfinished run goes on with its own.", seed)
            return None if own is None else Beginning(own, seed, state_of(run))

        beginning = self._begin(begin, sinks)
        if beginning is None:
            with ending(sinks):
                run.close()
            return run, iter(())
        return run, record(
            self.engine, beginning.conditioning, inputs.setup, beginning.seed, run, sinks, on_step, own
        )  # fmt: skip

    def _render(
        self, request: TalkRequest, inputs: Inputs, on_step: OnStep | None, sinks: Sequence[FrameSink]
    ) -> Iterator[FinishedWindow]:
        def begin() -> Beginning:
            seed = draw_seed() if request.seed is None else request.seed
            if request.seed is None:
                logger.info("The seed is %d.", seed)
            return Beginning(self._encode(request, inputs), seed)

        beginning = self._begin(begin, sinks)
        if beginning is not None:
            yield from render(
                self.engine, beginning.conditioning, inputs.setup, beginning.seed, sinks, on_step, beginning.state
            )  # fmt: skip

    def _begin(self, begin: Callable[[], Beginning | None], sinks: Sequence[FrameSink]) -> Beginning | None:
        """What the first rank's `begin` gives, on all ranks; without it nothing comes to the sinks."""
        try:
            return share_beginning(self.engine.team, begin)
        except BaseException:
            with ending(sinks):
                raise

    def _encode(self, request: TalkRequest, inputs: Inputs) -> Conditioning:
        self.engine.plan(workload_of_request(request, inputs))  # refuses what cannot fit before encoders are loaded
        return encode_request(request, inputs, self.encoders)
