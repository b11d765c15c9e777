"""What a page asks for, as what a command line asks for: a job file and the flags of `generate`.

So both faces make the same request of the same values. Legend: H W rows and columns of the painted picture.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from PIL import Image

from .. import checks
from ..cli.generate import Job, read_job
from ..errors import InputError
from ..geometry import FPS
from ..keep import AUTO, DEFAULT_FEATHER, SOURCE_ENDS
from ..request import NEGATIVE_PROMPT
from ..video.reader import picture_size
from .uploads import PICTURES, SOUNDS, VIDEOS, Uploads

MOST_PEOPLE, MOST_SECONDS = 3, 10**6
FILES, TEXT = "files", "text"
NO_REGIONS, BOXES, MASKS = "none", "boxes", "masks"
ALL, MOUTHS, PAINTED = "all", "mouths", "painted"
PROGRAM = "the app"
SCHEDULERS = ("multitalk", "flowmatch_distill", "euler", "unipc", "dpm++")


@dataclass(frozen=True)
class Knobs:
    """Numbers of a form; None: as the preset or the command line has it."""

    size: str | None = None
    seconds: float | None = None
    sample_steps: int | None = None
    base_seed: int | None = None
    sample_text_guide_scale: float | None = None
    sample_audio_guide_scale: float | None = None
    sample_shift: float | None = None
    scheduler: str | None = None
    frame_num: int | None = None
    motion_frame: int | None = None
    use_teacache: bool | None = None
    use_apg: bool | None = None
    voice_activity: bool | None = None
    color_correction_strength: float | None = None

    @classmethod
    def names(cls) -> list[str]:
        """Of all of them."""
        return [item.name for item in fields(cls)]

    def flags(self) -> list[str]:
        """As flags of `generate`."""
        given = {name: getattr(self, name) for name in self.names()}
        seconds = given.pop("seconds")
        if seconds is not None:
            checks.number("The length in seconds", seconds, 1 / FPS, MOST_SECONDS)
            given["max_frame_num"] = round(seconds * FPS)
        return [f"--{name}={_plain(value)}" for name, value in given.items() if value is not None]


@dataclass(frozen=True)
class Source:
    """What is done with a source video.

    Args:
        keep: ALL of it is made anew, only MOUTHS, or only what is PAINTED for any person.
        dub_feather: pixels around that part over which new fades into old.
        source_end: what follows its end. scene_seg: whether it is cut into its scenes.
    """

    keep: str = ALL
    dub_feather: int = DEFAULT_FEATHER
    source_end: str = SOURCE_ENDS[0]
    scene_seg: bool = False

    def flags(self, painted: Sequence[np.ndarray], uploads: Uploads) -> list[str]:
        """As flags of `generate`. Raises: InputError where nothing is painted that should be."""
        given = [] if self.source_end == SOURCE_ENDS[0] else [f"--source_end={self.source_end}"]
        given += ["--scene_seg=yes"] if self.scene_seg else []
        if self.keep == ALL:
            return given
        where = AUTO if self.keep == MOUTHS else uploads.write(_union(painted), ".png")
        return [*given, f"--dub={where}", f"--dub_feather={_plain(self.dub_feather)}"]


@dataclass(frozen=True)
class Form:
    """What a user filled in.

    Args:
        reference: path of the picture or video that was uploaded.
        sounds: one for each person, None for who is silent; not used where text is spoken.
        speech: FILES or TEXT. text, voices: what is said, and by which voices.
        audio_type: para or add.
        regions: NO_REGIONS, BOXES around what is painted, or MASKS as they are painted.
        painted: for each person an array [H, W] that is not 0 where the person is.
        preset: name of one, or None. source: where the reference is a video.
    """

    reference: str
    prompt: str
    sounds: tuple[str | None, ...] = (None,)
    speech: str = FILES
    text: str = ""
    voices: tuple[str, ...] = ()
    audio_type: str = "para"
    regions: str = NO_REGIONS
    painted: tuple[np.ndarray, ...] = ()
    preset: str | None = None
    negative_prompt: str = NEGATIVE_PROMPT
    source: Source = field(default_factory=Source)
    knobs: Knobs = field(default_factory=Knobs)


def read_form(form: Form, base: Sequence[str], uploads: Uploads, speech_folder: str) -> Job:
    """The job of a form, as `generate` would read it.

    Args: base: flags that the app was started with. speech_folder: where speech goes that is made from text.
    Raises: InputError, UnsupportedError.
    """
    job = uploads.write(json.dumps(job_of(form, uploads), indent=1).encode(), ".json")
    mode = ["--audio_mode", "tts", "--audio_save_dir", speech_folder] if form.speech == TEXT else []
    preset = [f"--preset={form.preset}"] if form.preset else []
    source = form.source.flags(form.painted, uploads)
    read = read_job([*base, *preset, *form.knobs.flags(), *source, *mode, f"--input_json={job}"], PROGRAM)
    return replace(read, request=replace(read.request, negative_prompt=form.negative_prompt))


def job_of(form: Form, uploads: Uploads) -> dict[str, Any]:
    """The job file of a form, whose files are all in the store of uploads."""
    if not form.reference:
        raise InputError("Nobody is seen yet. Choose a picture or a video to upload.")
    reference = uploads.keep(form.reference, (*PICTURES, *VIDEOS), "The picture or video")
    people = len(form.voices if form.speech == TEXT else form.sounds)
    if not 1 <= people <= MOST_PEOPLE:
        raise InputError(f"{people} persons are asked for. Choose 1 to {MOST_PEOPLE}.")
    job: dict[str, Any] = {"prompt": form.prompt, "cond_video": reference}
    if form.speech == TEXT:
        voices = {f"human{number}_voice": _name(voice) for number, voice in enumerate(form.voices, 1)}
        job |= {"cond_audio": {}, "tts_audio": {"text": form.text, **voices}}
    else:
        job |= {"cond_audio": _sounds(form, uploads), "audio_type": form.audio_type}
    if form.regions == BOXES:
        size = picture_size(reference)
        job["bbox"] = {name: list(box_of(who, size, name)) for name, who in _painted(form, people)}
    elif form.regions == MASKS:
        job["mask"] = {name: uploads.write(_mask(who, name), ".png") for name, who in _painted(form, people)}
    return job


def box_of(painted: np.ndarray, size: tuple[int, int], name: str) -> tuple[int, int, int, int]:
    """row_min, col_min, row_max, col_max around what is painted [H, W], in pixels of the picture.

    Args: size: width and height of the picture, which the painted one may be smaller than.
    """
    rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
    if not len(rows):
        raise _unpainted(name)
    down, right = size[1] / painted.shape[0], size[0] / painted.shape[1]
    return (
        round(rows[0] * down), round(columns[0] * right), round((rows[-1] + 1) * down), round((columns[-1] + 1) * right)
    )  # fmt: skip


def _sounds(form: Form, uploads: Uploads) -> dict[str, str | None]:
    return {
        f"person{number}": sound and uploads.keep(sound, SOUNDS, f"The sound of person {number}")
        for number, sound in enumerate(form.sounds, 1)
    }


def _painted(form: Form, people: int) -> list[tuple[str, np.ndarray]]:
    if len(form.painted) < people:
        raise _unpainted(f"person{len(form.painted) + 1}")
    return [(f"person{number}", who) for number, who in enumerate(form.painted[:people], 1)]


def _union(painted: Sequence[np.ndarray]) -> bytes:
    layers = [layer for layer in painted if layer.any()]
    if not layers:
        raise InputError("Nothing is painted that is made anew. Paint it on any layer, or choose what stays otherwise.")
    return _png(np.any([layer > 0 for layer in layers], axis=0))


def _mask(painted: np.ndarray, name: str) -> bytes:
    if not painted.any():
        raise _unpainted(name)
    return _png(painted > 0)


def _png(painted: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(painted.astype(np.uint8) * 255).save(file, "PNG")
    return file.getvalue()


def _unpainted(name: str) -> InputError:
    return InputError(
        f"Nothing is painted for {name}. Paint each person on the layer of that number, or choose no regions."
    )


def _name(voice: str) -> str:
    """A voice by its name: files of this machine are not named through a page."""
    if not voice or set(voice) & set("/\\.~"):
        raise InputError(f"{voice[:80]!r} is no voice's name. Choose one of the list.")
    return voice


def _plain(value: object) -> object:
    """8.0, as a page may have it, is 8."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
