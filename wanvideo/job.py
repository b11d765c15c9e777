"""Requests as JSON: job files of the reference implementation, and any dataclass from plain data."""

from __future__ import annotations

import dataclasses
import logging
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, Union

from . import checks
from .errors import InputError
from .prompts import PromptList
from .untrusted import read_json

KEYS = (
    "prompt", "negative_prompt", "cond_video", "cond_image", "cond_audio", "audio_type", "bbox", "mask", "tts_audio",
    "video_audio", "keep", "camera", "reanchor",
)  # fmt: skip
MOST_VOICES, MAX_SPEECH = 6, 20_000  # persons and characters of "tts_audio"
SILENT = (None, "None", "")  # how a job names the sound of a person who never speaks
SINGLE = "single"  # what some programs write for one person, where there is nothing to choose
NUMBERED = re.compile(r"person(\d{1,9})")

Box = tuple[int, int, int, int]
logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Job:
    """A job of MultiTalk / InfiniteTalk, its keys' values checked.

    Args:
        prompts: "prompt", one text, or a list with one a window or of {"from": seconds, "prompt": text}.
        reference: "cond_video" or "cond_image".
        audios: "cond_audio" {"person1": path, ...}, None for who is silent; person1, person2, ... by their numbers,
            other names in the order in which they are written.
        boxes: "bbox" {"person1": [row_min, col_min, row_max, col_max], ...} in the same order.
        masks: "mask" {"person1": path of a picture that is white where the person is, ...} in the same order.
        audio_type: para or add; decides nothing for one person.
        negative_prompt: what is not wanted; None: the usual text.
        keep, camera: fields of `keep.Keep` and `keep.Camera`, not checked yet, or None.
        reanchor: of `request.LoopSettings`, not checked yet, or None.
    """

    prompts: PromptList
    reference: str
    audios: tuple[str | None, ...]
    boxes: tuple[Box | None, ...]
    masks: tuple[str | None, ...]
    audio_type: str
    negative_prompt: str | None = None
    keep: Any = None
    camera: Any = None
    reanchor: Any = None


@dataclass(frozen=True)
class TextToSpeak:
    """ "tts_audio" of a job: what is said, in (s1) / (s2) turns, and a voice for each person."""

    text: str
    voices: tuple[str, ...]


def read_object(data: dict[str, Any] | str | Path, what: str) -> dict[str, Any]:
    """A JSON object: `data` itself, or from the UTF-8 file it names."""
    if isinstance(data, dict):
        return data
    name = checks.path(f"The path of {what}", data)
    parsed = read_json(name, f"{what} in JSON")
    if isinstance(parsed, list) and what == "a job":
        raise InputError(
            f"{name} holds a list, not an object: many jobs are for `python -m wanvideo batch`. "
            "Use that, or write {...} around the keys of one."
        )
    if not isinstance(parsed, dict):
        raise InputError(f"{name} holds a {type(parsed).__name__}, not an object. Write {{...}} around its keys.")
    return parsed


def parse_job(data: dict[str, Any] | str | Path) -> Job:
    """The job, or that of the JSON file of this path.

    Raises: InputError naming the key, what is allowed and what to do.
    """
    job = read_object(data, "a job")
    known_keys(job, KEYS, "The job")
    if job.get("tts_audio"):
        if not job.get("cond_audio"):
            raise InputError('The sound of the job is text, "tts_audio". Say --audio_mode tts, which speaks it.')
        logger.info('"tts_audio" of the job is not spoken without --audio_mode tts: "cond_audio" is used.')
    if job.get("video_audio") is not None:
        checks.path('"video_audio"', job["video_audio"])
        logger.info('"video_audio" of the job is not used: the video gets the sound of "cond_audio", unchanged.')
    audios = _people(job, "cond_audio")
    boxes, masks = (_regions(job, key, audios) for key in ("bbox", "mask"))
    if boxes and masks:
        raise InputError('The job places its persons by "bbox" and by "mask". Keep one of the two.')
    order = _order(audios)
    return Job(
        _prompts(job), _reference(job), tuple(_audio(name, audios[name]) for name in order),
        tuple(_box(name, boxes.get(name)) for name in order),
        tuple(_mask(name, masks.get(name)) for name in order), _audio_type(job, len(order)),
        job.get("negative_prompt"), job.get("keep"), job.get("camera"),
        job.get("reanchor"),
    )  # fmt: skip


def parse_speech(job: dict[str, Any]) -> TextToSpeak:
    """What a job's "tts_audio" asks for. Raises: InputError naming the key."""
    speech = job.get("tts_audio")
    if not isinstance(speech, dict):
        raise InputError(
            '--audio_mode tts needs "tts_audio". Add {"text": "what is said", "human1_voice": "af_heart"}.'
        )
    voices = [f"human{number}_voice" for number in range(1, MOST_VOICES + 1)]
    known_keys(speech, ("text", *voices), '"tts_audio"')
    checks.text('"text" of "tts_audio"', speech.get("text"), MAX_SPEECH)
    given = [name for name in voices if speech.get(name) not in (None, "")]
    missing = next((name for name in voices[: max(1, len(given))] if name not in given), None)
    if missing is not None:
        raise InputError(f'"tts_audio" has no "{missing}". Name a voice for each person, from the first on.')
    return TextToSpeak(speech["text"], tuple(checks.path(f'"{name}" of "tts_audio"', speech[name]) for name in given))


def named_sounds(job: dict[str, Any], sounds: Iterable[str | None]) -> dict[str, Any]:
    """The job with these files in place of its "tts_audio"; they are on one time line, so they start together."""
    people = {f"person{number}": sound for number, sound in enumerate(sounds, 1)}
    rest = {key: value for key, value in job.items() if key not in ("tts_audio", "cond_audio", "audio_type")}
    return {**rest, "cond_audio": people, "audio_type": "para"}


def _prompts(job: dict[str, Any]) -> PromptList:
    if "prompt" not in job:
        raise InputError('The job has no "prompt". Add "prompt": "what is seen and how they speak".')
    prompt = job["prompt"]
    if not isinstance(prompt, str | list | tuple):
        raise InputError(f'"prompt" {checks.brief(prompt)} is no text. Write one text in quotes, or a list of them.')
    items = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if not any(isinstance(item, dict) for item in items):
        return PromptList(items)
    for item in items:
        if not isinstance(item, dict) or set(item) != {"from", "prompt"}:
            raise InputError(
                f'"prompt" has {checks.brief(item)} among prompts for times. '
                'Write each as {"from": seconds, "prompt": "what is seen"}, or all as texts.'
            )
    return PromptList(tuple(item["prompt"] for item in items), tuple(item["from"] for item in items))


def _reference(job: dict[str, Any]) -> str:
    given = [key for key in ("cond_video", "cond_image") if job.get(key) not in (None, "")]
    if not given:
        raise InputError('The job names no picture. Add "cond_video": "path of a picture or video".')
    if len(given) == 2 and job["cond_video"] != job["cond_image"]:
        logger.info('The job names "cond_video" and "cond_image": "cond_video" is used.')
    return checks.path(f'"{given[0]}"', job[given[0]])


def _people(job: dict[str, Any], key: str) -> dict[str, Any]:
    people = {} if job.get(key) is None else job[key]
    if not isinstance(people, dict) or not all(isinstance(name, str) for name in people):
        raise InputError(
            f'"{key}" {checks.brief(people)} is no object of persons. Write {{"person1": ..., "person2": ...}}.'
        )
    return people


def _regions(job: dict[str, Any], key: str, audios: dict[str, Any]) -> dict[str, Any]:
    """Where each person is, by boxes or masks. Raises: InputError for others than those who have a sound."""
    regions = _people(job, key)
    if regions and set(regions) != set(audios):
        raise InputError(
            f"{key} names {_names(regions)} but cond_audio names {_names(audios)}. Both must name the same persons. "
            "Add or remove some."
        )
    return regions


def _order(audios: dict[str, Any]) -> list[str]:
    """person1, person2, ... by their numbers, as the reference takes them; other names as they are written."""
    found = {name: NUMBERED.fullmatch(name) for name in audios}
    numbers = {name: int(match[1]) for name, match in found.items() if match}
    return sorted(audios, key=numbers.__getitem__) if len(numbers) == len(audios) else list(audios)


def _audio(name: str, value: Any) -> str | None:
    if isinstance(value, str | None) and value in SILENT:
        return None
    return checks.path(f'"cond_audio" of {checks.brief(name)}', value)


def _mask(name: str, value: Any) -> str | None:
    return None if value is None else checks.path(f'"mask" of {checks.brief(name)}', value)


def _audio_type(job: dict[str, Any], num_people: int) -> str:
    kind: str | None = job.get("audio_type")
    if num_people < 2 and kind in (None, SINGLE):
        return "para"
    if kind is None:
        raise InputError('Two or more persons need "audio_type". Write "para" (together) or "add" (one after another).')
    return kind


def _box(name: str, value: Any) -> Box | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise InputError(
            f"The box of {name}, {checks.brief(value)}, is not usable. "
            "Give four numbers: row_min, col_min, row_max, col_max."
        )
    for edge, number in zip(("row_min", "col_min", "row_max", "col_max"), value, strict=True):
        checks.number(f"{edge} of the box of {name}", number, -(2**31), 2**31)
    row_min, col_min, row_max, col_max = map(int, value)
    if [row_min, col_min, row_max, col_max] != list(value):
        logger.info("The box of %s has parts of pixels: [%d, %d, %d, %d] is used.", name, *map(int, value))
    return row_min, col_min, row_max, col_max


def known_keys(data: dict[str, Any], known: Iterable[str], where: str) -> None:
    """Raises: InputError for a key that is not known, with the one that was meant."""
    names = tuple(known)
    for key in data:
        if key not in names:
            hint = checks.meant(key, names) or f" Known are {', '.join(names)}."
            raise InputError(f"{where} has the unknown key {checks.brief(key)}.{hint} Rename or remove it.")


class DataClass(Protocol):
    """What every dataclass has."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


Built = TypeVar("Built", bound=DataClass)


def build(cls: type[Built], data: Any, where: str) -> Built:
    """A dataclass from plain data, field by field, following the types that the fields are declared with.

    Args: where: the place of `data`, for messages.
    Raises: InputError for unknown and missing keys; what the class itself refuses.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where} {checks.brief(data)} is no object. Write {{...}} with its keys.")
    fields, inner = dataclasses.fields(cls), _inner_classes(cls)
    known_keys(data, [item.name for item in fields], where)
    missing = [item.name for item in fields if item.name not in data and _is_required(item)]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}. Add it.")
    return cls(**{name: _value(inner[name], value, f"{where}.{name}") for name, value in data.items()})


@cache
def _inner_classes(cls: type) -> dict[str, Any]:
    """The dataclass that each field's type has in it, or None."""
    hints = typing.get_type_hints(cls).items()
    return {name: next(filter(dataclasses.is_dataclass, _flat(hint)), None) for name, hint in hints}


def _value(inner: Any, value: Any, where: str) -> Any:
    """Plain data as a field's type has it: lists become tuples, objects the dataclass that is meant."""
    if isinstance(value, list | tuple):
        return tuple(build(inner, item, f"{where}[{i}]") if inner else item for i, item in enumerate(value))
    return build(inner, value, where) if inner and value is not None else value


def _flat(hint: Any) -> Iterable[type]:
    """The types that a union or a tuple is made of."""
    if typing.get_origin(hint) in (tuple, Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _flat(part)
    else:
        yield hint


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _names(mapping: dict[str, Any]) -> str:
    return ", ".join(mapping) or "nobody"
