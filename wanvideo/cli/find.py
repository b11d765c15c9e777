"""Model files that a command line with a preset does not name: found where users keep them, or asked for."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..presets import Preset
from ..presets.models import PARTS, SPEECH, Wanted, adapter, base
from ..presets.places import WHERE, Place, find_first, places
from .flags import FLAGS

logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class Missing:
    """What was looked for and is not there, and the flag that names it."""

    what: str
    flag: str


def find_models(flags: argparse.Namespace, preset: Preset, resolution: str, num_speakers: int) -> None:
    """Set the flags of the model files that are not named, and the preset's LoRAs.

    Args: resolution: "480" or "720". num_speakers: who speak; nobody needs no adapter.
    Raises: InputError naming all that is missing, and the command that fetches it.
    """
    among = list(places(_near(flags)))
    found, missing = [], []

    def look(wanted: Wanted, is_needed: bool = True) -> None:
        name = FLAGS[wanted.field].removeprefix("--")
        path = None if getattr(flags, name) else find_first(wanted.names, among)
        if path is not None:
            setattr(flags, name, str(path))
            found.append(str(path))
        elif is_needed and not getattr(flags, name):
            missing.append(Missing(wanted.what, FLAGS[wanted.field]))

    is_merged = bool(flags.quant_dir or flags.dit_path)  # base and adapter in one file
    chosen = bool(is_merged or flags.ckpt_dir)
    if not chosen:
        look(_base(resolution, among))
    place = Path(flags.ckpt_dir or "").expanduser()
    if num_speakers:
        if not chosen or (flags.ckpt_dir and place.is_dir() and not is_merged):
            look(adapter(num_speakers))
        look(SPEECH)
    if flags.ckpt_dir and not place.is_dir():
        for part in PARTS:
            look(part, is_needed=not chosen and part.field != "clip_vision")
    if not flags.lora_dir:
        paths = [find_first(lora.files, among) for lora in preset.loras]
        flags.lora_dir = [str(path) for path in paths if path is not None]
        found += flags.lora_dir
        missing += [
            Missing(f"the LoRA {lora.files[0]} ({lora.what})", FLAGS["lora.path"])
            for lora, path in zip(preset.loras, paths, strict=True)
            if path is None
        ]
    if missing:
        raise _lacking(preset.name, missing)
    if found:
        logger.info("Found %s.", ", ".join(found))


def _base(resolution: str, among: list[Place]) -> Wanted:
    """That of this resolution, or the other one where only that is there."""
    wanted, other = base(resolution), base("480" if resolution == "720" else "720")
    if find_first(wanted.names, among) is None and (path := find_first(other.names, among)) is not None:
        logger.warning("%s is used, since %s is not there: it was trained at another size.", path, wanted.what)
        return other
    return wanted


def _near(flags: argparse.Namespace) -> list[Path]:
    """The folders around the files that are named."""
    named = [Path(place).expanduser() for place in (flags.ckpt_dir, flags.infinitetalk_dir) if place]
    return list(dict.fromkeys(folder for place in named for folder in (place, place.parent)))


def _lacking(preset: str, missing: list[Missing]) -> InputError:
    names = "; ".join(part.what for part in missing)
    flags = ", ".join(dict.fromkeys(part.flag for part in missing))
    return InputError(
        f"The preset {preset} lacks {names}.\nLooked in {WHERE}.\n"
        f"Run python -m wanvideo download --preset {preset} to fetch what is missing, or name it with {flags}."
    )
