"""Where the scenes of a source video begin, as numbers of the result's frames."""

from __future__ import annotations

import itertools
import logging
from typing import Any

from ..errors import UnsupportedError
from .source import SourceVideo

SHORTEST_S = 1.0  # a shorter scene belongs to the one before it, the first to the one behind
SEEN_COLUMNS = 256  # of a frame that is compared; more tell nothing more

logger = logging.getLogger("wanvideo")


def find_cuts(video: SourceVideo, num_frames: int, fps: float, shortest_s: float = SHORTEST_S) -> tuple[int, ...]:
    """The frames of the result, of num_frames at fps, at which a scene of the source begins; 0 is not among them.

    Scenes shorter than `shortest_s` seconds are joined to a neighbor.
    Raises: UnsupportedError where the package scenedetect is not installed.
    """
    detector = open_detector()
    from scenedetect import FrameTimecode

    logger.info("Looking for scenes in %d frames.", num_frames)
    found = []
    for index in range(num_frames):
        frame = video.frame(index)
        step = max(1, frame.shape[1] // SEEN_COLUMNS)
        picture = frame[::step, ::step].flip(-1).contiguous().numpy()  # BGR, as OpenCV has it
        found += detector.process_frame(FrameTimecode(index, float(fps)), picture)
    cuts = joined(sorted({cut.frame_num for cut in found} - {0}), num_frames, round(shortest_s * fps))
    logger.info("The source has %d scenes; they begin at frames %s.", len(cuts) + 1, ", ".join(map(str, (0, *cuts))))
    return cuts


def joined(cuts: list[int], num_frames: int, shortest: int) -> tuple[int, ...]:
    """Rising cuts of a video of num_frames without those where fewer than `shortest` frames begin."""
    bounds = itertools.pairwise((0, *cuts, num_frames))
    kept = [start for start, stop in bounds if start and stop - start >= shortest]
    return tuple(kept[1:] if kept and kept[0] < shortest else kept)


def open_detector() -> Any:
    """What finds cuts, frame by frame. Raises: UnsupportedError where the package scenedetect is not installed."""
    try:
        from scenedetect.detectors import AdaptiveDetector
    except ImportError as error:
        raise UnsupportedError(
            f"scene_seg needs the package scenedetect, which cannot be used here ({error}). "
            "Install it (pip install scenedetect), or leave scene_seg out."
        ) from None
    return AdaptiveDetector(min_scene_len=1)
