"""A video rendered into a run folder, from where it is.

Legend: F video frames.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from ..errors import OutputError
from ..geometry import WindowPlan
from ..protocols import FrameSink
from ..quality.drift import Drift
from ..runs.behind import WrittenBehind
from ..runs.find import AUTO, NEVER, open_run
from ..runs.identity import digest_of
from ..runs.manifest import Manifest
from ..runs.store import Run
from ..sampling.conditioning import Conditioning
from ..sampling.contexts import AUDIO_CONTEXT
from ..sampling.sampler import OnStep
from ..sampling.setup import SamplingSetup
from ..sampling.state import WindowState
from ..video.soundtrack import Soundtrack
from .engine import Engine
from .render import FinishedWindow, render

logger = logging.getLogger("wanvideo")
Render = Callable[..., Generator[FinishedWindow, None, None]]


def record(
    engine: Engine, conditioning: Conditioning, setup: SamplingSetup, seed: int, run: Run,
    sinks: Sequence[FrameSink] = (), on_step: OnStep | None = None, own: Conditioning | None = None,
    by: Render = render, on_commit: Callable[[int], None] | None = None,
) -> Iterator[FinishedWindow]:  # fmt: skip
    """As `render`, into `run`: only the windows that it lacks are sampled, go to the sinks and are yielded.

    The run is written behind: a window that is yielded is on the disk before the one after the next is sampled. At the
    end the run is closed; when it ends early it is abandoned, and another `record` goes on.
    Args: own: the conditioning as this rank encoded it, where `conditioning` is shared with others.
        by: what renders in place of `render`, and takes the same.
        on_commit: called with the number of windows that are on the disk, from the thread that writes.
    """
    begin, speech, behind = state_of(run), run.manifest.progress.speech, WrittenBehind(run, on_commit)
    overlapping = setup.settings.window_frames, setup.settings.motion_frames
    drift = Drift(run.measures)
    with closing(by(engine, conditioning, setup, seed, (behind, *sinks), on_step, begin)) as windows:
        for window in windows:
            speech = speech_digest(own or conditioning, overlapping, speech, [window.index])
            behind.commit(window.state.to_bytes(), speech, drift.add(window))
            yield window


def state_of(run: Run) -> WindowState | None:
    """After the windows that a run has; None where it has none."""
    return None if run.state is None else WindowState.from_bytes(run.state)


def speech_digest(conditioning: Conditioning, overlapping: tuple[int, int], before: str, indices: Sequence[int]) -> str:
    """Hash of the speech that the windows `indices` attend to, after those whose hash is `before`.

    It is equal for two runs exactly where the speech cannot make their frames differ: features of the encoder depend on
    what comes later (it attends to up to ten minutes at once), so equal samples alone would not say that.
    Args: overlapping: frames of a window, and those that windows share.
    """
    source = conditioning.audio_source
    cuts = conditioning.cuts
    plan = WindowPlan(conditioning.total_frames if cuts else None, *overlapping, cuts)
    for index in indices:
        features = beyond = None
        if source is not None and source.num_frames is not None:
            first, last = max(0, plan[index].start - AUDIO_CONTEXT), plan[index].stop + AUDIO_CONTEXT
            end = min(last, source.num_frames)
            features = source.features(min(first, end - 1), end)
            beyond = source.silence if last > end else None
        before = hashlib.blake2b((before + digest_of(features, beyond)).encode(), digest_size=12).hexdigest()
    return before


def why_unlike(conditioning: Conditioning, setup: SamplingSetup, run: Run) -> str | None:
    """What keeps a run from going on with this speech: that it differs in the windows that are there; None: nothing."""
    done = run.manifest.progress.num_windows
    overlapping = setup.settings.window_frames, setup.settings.motion_frames
    if not run.is_extended or speech_digest(conditioning, overlapping, "", range(done)) == run.manifest.progress.speech:
        return None
    return (
        f"The {done} windows in {run.folder} do not fit the beginning of this sound, whose features or length differ: "
        "the encoder and the loudness take in what comes later. Make the video anew (resume: never)."
    )


def begin_run(
    manifest: Manifest, folder: Path, encode: Callable[[], Conditioning], setup: SamplingSetup,
    soundtrack: Soundtrack | None, resume: str = AUTO, replaced: Path | None = None,
) -> tuple[Run, Conditioning | None]:  # fmt: skip
    """The run that a request goes on with, or a new one, and what its windows are made from.

    Args: encode: makes the conditioning, which is not needed where all windows are there: then it is None.
        folder, resume, replaced: see runs.find.open_run.
    Raises: OutputError when a run that is named does not fit this speech.
    """
    run = open_run(manifest, folder, resume, soundtrack, replaced)
    if run.manifest.is_complete:
        return run, None
    logger.info("What is finished can be played, and gone on with, from %s", run.folder)
    try:
        state_of(run)  # a damaged one is said before anything is encoded
        conditioning = encode()
        unlike = why_unlike(conditioning, setup, run)
    except BaseException:
        run.abandon()
        raise
    if unlike:
        run.abandon()
        if resume != AUTO:
            raise OutputError(unlike)
        logger.warning("%s", unlike)
        run = open_run(manifest, folder, NEVER, soundtrack, replaced)
    return run, conditioning
