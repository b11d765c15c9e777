"""Windows rendered by a group of workers for a process that encodes, records and shows them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from ..engine.engine import Engine, VaeHandle
from ..engine.render import FinishedWindow, ending
from ..ops.precision import DTYPES
from ..parallel.layout import WantedRanks
from ..protocols import FrameSink
from ..sampling.conditioning import Conditioning
from ..sampling.sampler import OnStep
from ..sampling.setup import SamplingSetup
from ..sampling.state import WindowState
from ..sampling.window import StepReport
from .group import Group, WorkerDied
from .messages import Made, Question
from .tasks import NamedModels, RenderTask, paths_of

logger = logging.getLogger("wanvideo")
MOST_DEATHS = 1  # of workers without a finished window in between


@dataclass(frozen=True)
class RemoteRender:
    """`engine.render.render` by workers, who load the models themselves from the files that an engine names.

    Args:
        group: of workers. wanted: how they share the video. vae: its files, and of what precision.
        begin: called before they start. poll: called while they work; what it raises ends the run.
    """

    group: Group
    wanted: WantedRanks
    vae: VaeHandle
    begin: Callable[[], None]
    poll: Callable[[], None]

    def __call__(
        self, engine: Engine, conditioning: Conditioning, setup: SamplingSetup, seed: int,
        sinks: Sequence[FrameSink] = (), on_step: OnStep | None = None, state: WindowState | None = None,
    ) -> Generator[FinishedWindow, None, None]:  # fmt: skip
        """As `render`; a worker that dies is replaced once, and the video goes on after the last finished window."""
        with ending(sinks):
            task, num_deaths = self._task(engine, conditioning, setup, seed, state), 0
            self.begin()
            while True:
                try:
                    with closing(self._windows(task, conditioning, on_step)) as windows:
                        for window in windows:
                            for sink in sinks:
                                sink.write(window.frames)
                            task, num_deaths = replace(task, state=window.state), 0
                            yield window
                    break
                except WorkerDied as error:
                    if num_deaths == MOST_DEATHS:
                        raise
                    num_deaths += 1
                    logger.warning("%s", str(error).splitlines()[0] + " Others are started and go on.")

    def _windows(
        self, task: RenderTask, conditioning: Conditioning, on_step: OnStep | None
    ) -> Generator[FinishedWindow, None, None]:
        def answer(question: Question) -> Any:
            return _part(conditioning, question)

        with closing(self.group.run(task, answer, self.poll)) as messages:
            for message in messages:
                if isinstance(message, Made):
                    yield message.value
                elif isinstance(message, StepReport) and on_step is not None:
                    on_step(message)

    def _task(
        self, engine: Engine, conditioning: Conditioning, setup: SamplingSetup, seed: int, state: WindowState | None
    ) -> RenderTask:
        checkpoints, audio = engine.checkpoints, conditioning.audio_source
        loras = tuple(replace(lora, file=lora.path) for lora in engine.loras if lora.path is not None)
        models = NamedModels(
            paths_of(checkpoints["transformer"]), paths_of(checkpoints["adapter"]), paths_of(self.vae.checkpoint),
            DTYPES[self.vae.precision], loras, engine.options,
        )  # fmt: skip
        num_many = conditioning.num_many_embeds
        embeds = None if num_many else conditioning.image_embeds
        light = replace(
            conditioning, references=(), audio=None, source=None, silence=None, image_embeds=embeds
        )  # fmt: skip
        sound = None if audio is None else (audio.num_speakers, audio.num_frames, audio.silence)
        return RenderTask(
            models, self.wanted, setup.settings, seed, light, sound, len(conditioning.references), num_many,
            conditioning.source is not None, state, setup.has_audio,
        )  # fmt: skip


def _part(conditioning: Conditioning, question: Question) -> Any:
    """What a worker asks for, as tensors of their own."""
    if question.name == "picture":
        return conditioning.references[question.at[0]].clone()
    if question.name == "embeds":
        assert conditioning.image_embeds is not None
        return conditioning.image_embeds[question.at[0]].clone()
    start, stop = question.at
    if question.name == "features":
        assert conditioning.audio_source is not None
        return conditioning.audio_source.features(start, stop).clone()
    assert conditioning.source is not None
    return getattr(conditioning.source, question.name)(start, stop).clone()
