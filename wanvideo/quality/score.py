"""What came out, measured: does the mouth go with the sound, is it one person, are the colors steady.

Legend: F frames, H W rows and columns.
"""

from __future__ import annotations

import collections
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..audio.load import Sound, load_audio
from ..durable import write_atomically
from ..errors import OutputError
from ..models.syncnet import SPAN, SyncNet
from ..sampling.measures import FRAMES, PixelMeasures, measure_frames
from ..video.picture import load_picture
from ..video.reader import VideoFrames, VideoInfo, probe
from .identity import FaceVector, Identity, compare
from .lips import LipOpening, Lips
from .plot import Curve, plot
from .sync import GRID as SYNC_GRID
from .sync import Sync, loudness, measure_sync
from .syncnet import FPS as SYNCNET_FPS
from .syncnet import LEAST_S, SyncNetScore, measure_syncnet

STEADY_DELTA_E = 5.0  # of the mean color; about twice what is just seen between two pictures side by side
NO_RECOGNIZER = "no face recognizer is given"
NO_SYNCNET = "its file is not named"
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Colors:
    """Colors over time, second by second.

    Args:
        starts_s: where each second begins. lab, sharpness: as of `measures.PixelMeasures`.
        delta_e: distance of each second's mean color from the first one's, or from the reference picture's.
        is_against_reference: which of both.
    """

    starts_s: tuple[float, ...]
    lab: tuple[tuple[float, ...], ...]
    sharpness: tuple[float, ...]
    delta_e: tuple[float, ...]
    is_against_reference: bool

    @property
    def most(self) -> float:
        return max(self.delta_e)

    @property
    def is_steady(self) -> bool:
        return self.most <= STEADY_DELTA_E


@dataclass(frozen=True)
class Score:
    """All that was measured of a video.

    Args:
        syncs: of each sound with the face that is meant to speak it; none where `sync_note` says why.
        syncnets: the same of those sounds and faces by SyncNet; none where `syncnet_note` says why.
        followed_by: for each sound the face, counted from the left, whose mouth follows it best.
        openings: of each face's mouth, frame by frame, None where it is not seen. louds: of each sound, frame by frame.
        identity: None where `identity_note` says why.
    """

    num_frames: int
    fps: float
    syncs: tuple[Sync, ...]
    followed_by: tuple[int, ...]
    sync_note: str
    syncnets: tuple[SyncNetScore, ...]
    syncnet_note: str
    colors: Colors
    identity: Identity | None
    identity_note: str
    openings: tuple[tuple[float | None, ...], ...]
    louds: tuple[tuple[float, ...], ...]

    @property
    def is_swapped(self) -> bool:
        """Whether some face speaks what another one is meant to."""
        return len(self.syncs) > 1 and self.followed_by != tuple(range(len(self.syncs)))


def score_video(
    video: str | Path, lips: LipOpening | str, reference: str | Path | None = None,
    audios: Sequence[str | Path] = (), recognizer: FaceVector | str = NO_RECOGNIZER, syncnet: SyncNet | None = None,
) -> Score:  # fmt: skip
    """Measure a video; one second of frames is held at a time.

    Args:
        lips, recognizer: what measures mouths and recognizes faces, or why nothing can.
        reference: a picture that colors and face are compared with; None: the video's first second.
        audios: the sound of each speaker, from the left to the right; none: the video's own, whoever speaks it.
        syncnet: sees the faces that `lips` finds, if it is given; the video is read a second time.
    Raises: InputError for files that cannot be read.
    """
    picture = None if reference is None else load_picture(reference)
    facts = probe(video)
    sounds, note = _sounds(video, facts, audios)
    measure = None if isinstance(lips, str) or not sounds else lips
    recognize = None if isinstance(recognizer, str) else recognizer
    seen: list[Sequence[Lips]] = []
    measured: list[PixelMeasures] = []
    vectors: list[np.ndarray | None] = []
    with VideoFrames(video) as frames:
        for second in _seconds(frames, facts.frames, facts.fps):
            seen += [measure(frame) for frame in second] if measure else []
            vectors += [recognize(second[0])] if recognize else []
            chosen = second[:: math.ceil(len(second) / FRAMES)]
            measured.append(measure_frames(torch.from_numpy(np.stack(chosen))))
    target = None if picture is None else measure_frames(torch.from_numpy(picture[None])).lab_mean
    known = recognize(picture) if recognize and picture is not None else None
    is_blank = bool(recognize) and picture is not None and known is None
    identity = None if is_blank else compare(vectors, known)
    faces = _faces(seen, len(sounds))
    openings = faces[..., 0]
    syncs, followed_by = _syncs(openings, sounds, facts.fps)
    if sounds:
        note = lips if isinstance(lips, str) else "" if syncs else "no frame has a face for each sound"
    boxes = [faces[face, :, 1:] for face in (followed_by if len(sounds) == 1 else range(len(syncs)))]
    syncnets, syncnet_note = _syncnets(syncnet, video, boxes, sounds, facts.fps, note)
    return Score(
        facts.frames, facts.fps, syncs, followed_by, note, syncnets, syncnet_note, _colors(measured, target), identity,
        recognizer if isinstance(recognizer, str) else _identity_note(identity, is_blank),
        tuple(tuple(None if math.isnan(value) else value for value in face.tolist()) for face in openings),
        tuple(tuple(_loudness(sound, facts.frames, facts.fps).tolist()) for sound in sounds),
    )  # fmt: skip


def _identity_note(identity: Identity | None, is_blank: bool) -> str:
    if identity is not None:
        return ""
    return "no face is found in the reference" if is_blank else "no frame has a face"


def _faces(seen: list[Sequence[Lips]], num_sounds: int) -> np.ndarray:
    """[faces, F, 5]: opening and box of as many faces as most frames have, NaN in frames with another number."""
    counts = collections.Counter(len(frame) for frame in seen if len(frame) >= max(num_sounds, 1))
    if not counts:
        return np.zeros((0, len(seen), 5))
    num_faces = counts.most_common(1)[0][0]
    nobody = [(math.nan,) * 5] * num_faces
    rows = [[(lips.opening, *lips.box) for lips in frame] if len(frame) == num_faces else nobody for frame in seen]
    return np.array(rows, np.float64).swapaxes(0, 1)


def _syncs(faces: np.ndarray, sounds: list[Sound], fps: float) -> tuple[tuple[Sync, ...], tuple[int, ...]]:
    """Each sound with its face, and the face that follows it best: of one sound the same."""
    if not len(faces):
        return (), ()
    syncs, best = [], []
    for number, sound in enumerate(sounds):
        each = [measure_sync(face, sound, fps) for face in faces]
        best.append(max(range(len(each)), key=lambda face: each[face].correlation))
        syncs.append(each[number if len(sounds) > 1 else best[-1]])
    return tuple(syncs), tuple(best)


def _syncnets(
    net: SyncNet | None, video: str | Path, boxes: Sequence[np.ndarray], sounds: Sequence[Sound], fps: float, note: str
) -> tuple[tuple[SyncNetScore, ...], str]:
    """Each sound with its face, none of them where one cannot be measured, and why. Args: note: where no face is."""
    if net is None or not boxes:
        return (), note if net else NO_SYNCNET
    found = [measure_syncnet(net, video, box, sound, fps) for box, sound in zip(boxes, sounds, strict=True)]
    measured = tuple(item for item in found if item is not None)
    return (measured, "") if len(measured) == len(found) else ((), f"they last less than {LEAST_S:g} s together")


def _loudness(sound: Sound, num_frames: int, fps: float) -> np.ndarray:
    """[F]: while each frame is on screen."""
    points = loudness(sound, int(num_frames / fps * SYNC_GRID) + SYNC_GRID)
    return points[((np.arange(num_frames) + 0.5) / fps * SYNC_GRID).astype(int)]


def _seconds(frames: VideoFrames, num_frames: int, fps: float) -> Iterator[list[np.ndarray]]:
    """Frames of one second after the other."""
    step = max(1, round(fps))
    for start in range(0, num_frames, step):
        yield [frames.frame_at(index / fps) for index in range(start, min(start + step, num_frames))]


def _sounds(video: str | Path, facts: VideoInfo, audios: Sequence[str | Path]) -> tuple[list[Sound], str]:
    """The sounds that are spoken, from the first frame on, or why there are none."""
    if audios:
        return [load_audio(audio) for audio in audios], ""
    if facts.audio_start_s is None:
        return [], "the video has no sound"
    return [load_audio(video).delayed(min(facts.audio_start_s, facts.duration_s))], ""


def _colors(measured: list[PixelMeasures], target: tuple[float, ...] | None) -> Colors:
    against = target or measured[0].lab_mean
    return Colors(
        tuple(float(second) for second in range(len(measured))), tuple(item.lab_mean for item in measured),
        tuple(item.sharpness for item in measured), tuple(math.dist(item.lab_mean, against) for item in measured),
        target is not None,
    )  # fmt: skip


def save_score(score: Score, path: Path) -> list[Path]:
    """Write a score as JSON, and its curves as a PNG beside it; returns what was written.

    Raises: OutputError when the folder cannot be written to.
    """
    record = asdict(score)
    record["colors"] |= {"most": score.colors.most, "is_steady": score.colors.is_steady}
    record["is_swapped"] = score.is_swapped
    for told, sync in zip(record["syncs"], score.syncs, strict=True):
        told |= {"is_in_sync": sync.is_in_sync, "is_shut_in_silence": sync.is_shut_in_silence}
    if score.identity is not None:
        record["identity"] |= {"most": score.identity.most, "is_one_person": score.identity.is_one_person}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record, indent=1).encode())
        picture = path.with_suffix(".png")
        write_atomically(picture, plot("second", _curves(score)))
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}). Choose another folder.") from error
    return [path, picture]


def _curves(score: Score) -> list[Curve]:
    colors, curves = score.colors, []
    seconds = [(index + 0.5) / score.fps for index in range(score.num_frames)]
    for name, rows in (("opening", score.openings), ("loudness", score.louds)):
        for number, values in enumerate(rows, 1):
            label = name if len(rows) == 1 else f"{name} {number}"
            curves.append(Curve(label, seconds, _with_gaps(values)))
    for number, near in enumerate(score.syncnets, 1):
        label = "SyncNet confidence" if len(score.syncnets) == 1 else f"SyncNet confidence {number}"
        middles = [(index + SPAN / 2) / SYNCNET_FPS for index in range(len(near.confidences))]
        curves.append(Curve(label, middles, near.confidences))
    if score.identity is not None:
        curves.append(Curve("same person", colors.starts_s, _with_gaps(score.identity.cosines)))
    return [
        *curves, *(Curve(name, colors.starts_s, [lab[i] for lab in colors.lab]) for i, name in enumerate("Lab")),
        Curve("color change", colors.starts_s, colors.delta_e), Curve("sharpness", colors.starts_s, colors.sharpness),
    ]  # fmt: skip


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
