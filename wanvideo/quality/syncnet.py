"""Whether a mouth goes with its sound as SyncNet sees it, which was trained with speech.

Legend: F frames of a video, H W their rows and columns, P spans of five frames at 25 fps, O offsets between mouth and
sound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import median_filter
from torch import Tensor

from ..audio.load import SAMPLE_RATE, Sound
from ..audio.mfcc import mfccs
from ..models.syncnet import BATCH, SIDE, SPAN, SyncNet
from ..video.reader import VideoFrames

FPS = 25  # of the frames that it was trained with
MOST_FRAMES = 15  # by which mouth and sound are held against each other, to both sides
LEAST_S = (2 * MOST_FRAMES + SPAN + 1) / FPS
MARGIN = 0.4  # of a face's half side, that is added to it on each side, and twice below
STEADY = 13  # frames of which the middle place and size counts
SMOOTH = 9  # spans of which the middle confidence is shown
PAD = 110  # the gray around a frame


@dataclass(frozen=True)
class SyncNetScore:
    """How a mouth goes with a sound by SyncNet. Distances are between vectors, most of them 5 to 15; less is nearer.

    Args:
        lag_s, lag_frames: how much later the mouth moves than the sound says, less than 0 where it is early, in steps
            of 40 ms; frames are the video's. In frames at 25 fps it is the published program's "AV offset".
        confidence: by how much the distance there is less than the median of all, its "Confidence".
        distance: there, its "Min dist".
        distances: mean distance for each lag of -15 to 15 steps of 40 ms.
        confidences: by how much the distance of each 40 ms is less than that median.
    Source: syncnet_python, run_syncnet.py.
    """

    lag_s: float
    lag_frames: float
    confidence: float
    distance: float
    distances: tuple[float, ...]
    confidences: tuple[float, ...]


def measure_syncnet(
    net: SyncNet, video: str | Path, boxes: np.ndarray, sound: Sound, fps: float
) -> SyncNetScore | None:
    """Hold a face of a video against a sound; None where the two are shorter than 1.44 s together.

    Args: boxes: [F, 4] left, top, right, bottom of the face in pixels, NaN where it is not seen, somewhere it is.
        sound: from the first frame on. fps: of the video.
    """
    num_frames = min(int(len(boxes) / fps * FPS + 1e-6), sound.num_samples * FPS // SAMPLE_RATE)
    if num_frames < LEAST_S * FPS:
        return None
    places = track(boxes, fps, num_frames)
    with VideoFrames(video) as frames:
        # What is seen in the middle of each 40 ms, which of another rate is neither early nor late.
        faces = (crop(frames.frame_at((index + 0.5) / FPS), *place) for index, place in enumerate(places))
        return lag_of(distances(net, faces, sound, num_frames), fps)


def lag_of(each: Tensor, fps: float) -> SyncNetScore:
    """What distances [P, O] as of `distances` say. Args: fps: of the video."""
    mean = each.mean(0)
    best = int(mean.argmin())
    middle = mean.median()
    near = median_filter((middle - each[:, best]).numpy(), SMOOTH, mode="nearest")
    lag_s = (best - MOST_FRAMES) / FPS
    return SyncNetScore(
        lag_s, lag_s * fps, float(middle - mean[best]), float(mean[best]), tuple(mean.tolist()), tuple(near.tolist())
    )


def distances(net: SyncNet, faces: Iterable[Tensor], sound: Sound, num_frames: int) -> Tensor:
    """[P, O] float32: of each span of faces from the sounds -15 to 15 frames before it, P = num_frames - 5.

    Args: faces: at least num_frames of [224, 224, 3] uint8, of which some are held at once.
    Beyond the ends of the sound is the vector of zeros, and the last span is left out, as in the published program.
    """
    num_spans = num_frames - SPAN
    sounds = F.pad(net.sounds(torch.from_numpy(mfccs(sound)))[:num_spans], (0, 0, MOST_FRAMES, MOST_FRAMES))
    others = sounds.unfold(0, 2 * MOST_FRAMES + 1, 1).transpose(1, 2).flip(1)  # [P, O, D]
    rest, held, rows = iter(faces), list[Tensor](), []
    for part in others.split(BATCH):
        held += itertools.islice(rest, len(part) + SPAN - 1 - len(held))
        rows.append(F.pairwise_distance(net.mouths(torch.stack(held))[:, None], part))
        held = held[-(SPAN - 1) :]
    return torch.cat(rows)


def track(boxes: np.ndarray, fps: float, num_frames: int) -> Iterator[tuple[float, float, float]]:
    """Column and row of the middle, and half the side of a face in each of `num_frames` frames at 25 fps.

    Args: boxes: as in `measure_syncnet`. Where a face is not seen it is between the places before and after.
    """
    at = np.minimum((np.arange(num_frames) + 0.5) * fps / FPS, len(boxes) - 1).astype(int)
    left, top, right, bottom = boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3]
    rows = np.array([(left + right) / 2, (top + bottom) / 2, np.maximum(right - left, bottom - top) / 2])
    seen = np.flatnonzero(np.isfinite(rows[0]))
    whole = np.array([np.interp(np.arange(len(boxes)), seen, row[seen]) for row in rows])
    return zip(*median_filter(whole[:, at], (1, STEADY), mode="nearest").tolist(), strict=True)


def crop(frame: np.ndarray, column: float, row: float, half: float) -> Tensor:
    """[224, 224, 3] uint8 around a face of a frame [H, W, 3], as SyncNet was trained: the mouth is in its middle."""
    side = max(2, int(2 * half * (1 + MARGIN)))
    top, left = math.floor(row - half), math.floor(column - half * (1 + MARGIN))
    height, width = frame.shape[:2]
    above, before = min(max(-top, 0), side), min(max(-left, 0), side)
    inside = frame[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    face = np.full((side, side, 3), PAD, np.uint8)
    face[above : above + inside.shape[0], before : before + inside.shape[1]] = inside
    pixels = torch.from_numpy(face).permute(2, 0, 1)[None].float()
    scaled = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return scaled[0].permute(1, 2, 0).round().to(torch.uint8)
