"""VIDEOs of a graph as files: where their frames are, and which part of the file is meant."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from .nodes_common import stop_if_interrupted, temporary_file
from .wanvideo.errors import InputError
from .wanvideo.keep import WHOLE, Trim
from .wanvideo.runs.identity import identify_media
from .wanvideo.video.lossless import SUFFIX, write_lossless
from .wanvideo.video.picture import check_levels
from .wanvideo.video.reader import probe

SAME_S = 1e-6  # by which two durations may differ
FPS_DENOMINATOR = 1001


@dataclass(frozen=True)
class VideoFile:
    """A VIDEO: a file, whose frames are read as they are needed, and the part of it that ComfyUI has trimmed it to."""

    path: Path
    trim: Trim = WHOLE

    def identity(self) -> str:
        """What decides its frames."""
        part = "" if self.trim.is_whole else f", from {self.trim.start_s!r} s, {self.trim.duration_s!r} s"
        return identify_media(self.path) + part


def video_file(video: Any) -> VideoFile:
    """The frames that `get_components` of a VIDEO gives, in a file.

    A file stays where it is, one in memory is written into the temporary folder as it is. Frames that are only in
    memory, or that differ from those of their file in ways that ComfyUI does not tell, are written there without loss.
    Raises: InputError for what is no VIDEO, or one without frames.
    """
    source = _source(video)
    if isinstance(source, BytesIO):
        path = temporary_file("source", ".mp4")
        source.seek(0)
        with path.open("wb") as file:
            shutil.copyfileobj(source, file)
    elif isinstance(source, str | Path):
        path = Path(source)
    else:
        return VideoFile(_written(video))
    if _is_cropped(video, path) or _is_trimmed_untold(video, source):
        return VideoFile(_written(video))
    tell = getattr(video, "get_active_trim_window", None)
    return VideoFile(path, Trim(*tell()) if tell is not None else WHOLE)


def _source(video: Any) -> Any:
    """What a VIDEO is read from; None for frames in memory, which ComfyUI's base class would encode there."""
    owner = next((kind for kind in type(video).__mro__ if "get_stream_source" in vars(kind)), None)
    return None if owner is not None and inspect.isabstract(owner) else _call(video, "get_stream_source")


def _is_cropped(video: Any, path: Path) -> bool:
    """Versions of ComfyUI that crop a VIDEO may leave its file as it is."""
    if not hasattr(video, "as_cropped"):
        return False
    found = probe(path)
    return sorted(video.get_dimensions()) != sorted((found.width, found.height))  # one may be before, one behind a turn


def _is_trimmed_untold(video: Any, source: Any) -> bool:
    """Of a version of ComfyUI that trims and does not say how: whether it is shorter than its file."""
    if hasattr(video, "get_active_trim_window") or not hasattr(video, "as_trimmed"):
        return False
    try:
        return abs(type(video)(source).get_duration() - video.get_duration()) > SAME_S
    except TypeError:  # a class of another pack, of which nothing is known
        return True


def _written(video: Any) -> Path:
    components = _call(video, "get_components")
    if components is None or not len(components.images):
        raise InputError(
            f"The video has no frames, or is no VIDEO but {type(video).__name__}. Connect what Load Video gives, or "
            "trim it less."
        )
    rate = Fraction(components.frame_rate).limit_denominator(FPS_DENOMINATOR)
    path = temporary_file("source", SUFFIX)
    write_lossless(path, _pictures(components.images), rate)
    return path


def _pictures(images: Any) -> Iterator[np.ndarray]:
    for image in images:
        stop_if_interrupted()
        levels = image[..., :3]
        check_levels(levels)
        yield levels.float().mul(255).round().clamp(0, 255).byte().cpu().numpy()


def _call(video: Any, name: str) -> Any:
    method = getattr(video, name, None)
    return None if method is None else method()
