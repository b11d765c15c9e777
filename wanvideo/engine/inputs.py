"""A request's pictures and sounds, opened and checked before any model is.

Legend: S speakers, H W pixel rows and columns.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor

from ..audio.activity import load_detector
from ..audio.load import SAMPLE_RATE, Sound, load_audio
from ..audio.speech import Preparation, SpeechTrack, prepare_tracks
from ..geometry import VideoGeometry, WindowPlan, bucket_size, frames_of, parse_size
from ..protocols import References, SourceFrames
from ..request import TalkRequest
from ..sampling.setup import SamplingSetup
from ..untrusted import answered
from ..video.reader import picture_size
from ..video.regions import speaker_masks
from ..video.soundtrack import Soundtrack
from .pictures import open_pictures, open_source

# In the names of adapters as they are published.
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Inputs:
    """What a video is made of.

    Args:
        references: [3, H, W] in -1..1 for each window, read when asked for.
        tracks: each speaker's sound at 16 kHz, all of one length, silence where one does not speak; None for no sound.
        soundtrack: the sound of the result, or None.
        speaker_masks: [S + 1, H, W], or None for fewer than two speakers.
        source: a video of which parts are kept, or None.
        geometry: of one window. plan: all windows; its total is the video's length. setup: how they are sampled.
    """

    references: References
    tracks: list[SpeechTrack] | None
    soundtrack: Soundtrack | None
    speaker_masks: Tensor | None
    source: SourceFrames | None
    geometry: VideoGeometry
    plan: WindowPlan
    setup: SamplingSetup

    @property
    def num_frames(self) -> int:
        """Of the video."""
        return cast(int, self.plan.total_frames)  # files have an end


def open_inputs(request: TalkRequest) -> Inputs:
    """Open everything that a request names.

    Raises: InputError for whatever cannot be used, before anything heavy happens.
    """
    settings = request.settings
    setup = SamplingSetup.of(settings, request.has_speech)
    with answered(request.reference):
        source_size = picture_size(request.reference)
    size = parse_size(request.size) if isinstance(request.size, str) else request.size
    width, height = bucket_size(size, *source_size) if isinstance(size, str) else size
    geometry = VideoGeometry(width, height, settings.window_frames)
    masks = speaker_masks(request.speakers, source_size, width, height)
    with answered(request.reference):
        video = open_source(request, width, height)
    tracks = _open_tracks(request)
    length = settings.window_frames if tracks is None else frames_of(len(tracks[0]) / SAMPLE_RATE, request.fps)
    if request.max_frames:
        length = request.max_frames if tracks is None else min(length, request.max_frames)
    if video is not None and video.frame_limit is not None:
        length = min(length, video.frame_limit)
    _say_what_is_cut(request, tracks, length, None if video is None else video.frame_limit)
    plan = WindowPlan(length, settings.window_frames, settings.motion_frames)
    with answered(request.reference):
        pictures = open_pictures(request, video, width, height, plan)
    return Inputs(
        pictures.references, tracks, _soundtrack(request), masks, pictures.source, geometry, pictures.plan, setup
    )  # fmt: skip


def _open_tracks(request: TalkRequest) -> list[SpeechTrack] | None:
    """Speakers' samples at 16 kHz on one time line; None when nobody has any."""
    sounds = [None if speaker.audio is None else _open_sound(speaker.audio) for speaker in request.speakers]
    if all(sound is None for sound in sounds):
        return None
    if request.voice_activity:
        load_detector()  # or say now that there is none
    return prepare_tracks(sounds, request.audio_type, Preparation(request.normalize_loudness))


def _open_sound(path: str) -> Sound:
    with answered(path):
        return load_audio(path)


def _say_what_is_cut(
    request: TalkRequest, tracks: list[SpeechTrack] | None, length: int, frame_limit: int | None
) -> None:
    """A video that is silent or ends before its speech does is said to be so. frame_limit: where its source ends."""
    length_s = length / request.fps
    if tracks is None:
        logger.info("Nobody speaks: the video is %.2f s of silence, %d frames.", length_s, length)
    elif (speech_s := len(tracks[0]) / SAMPLE_RATE) <= length_s + 1 / request.fps:
        return
    elif length == frame_limit:
        logger.info("The speech lasts %.2f s; the video ends with its source after %.2f s.", speech_s, length_s)
    else:
        logger.warning(
            "The speech lasts %.2f s, but the video ends after %d frames, %.2f s. For all of it raise max_frames: "
            "--mode streaming, --max_frame_num %d.",
            speech_s, length, length_s, frames_of(speech_s, request.fps),
        )  # fmt: skip


def _soundtrack(request: TalkRequest) -> Soundtrack | None:
    files = tuple(Path(speaker.audio) for speaker in request.speakers if speaker.audio is not None)
    return Soundtrack(files, request.audio_type) if files else None
