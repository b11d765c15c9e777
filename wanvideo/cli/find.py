"""Model files that a command line with a preset does not name: found where users keep them, or asked for."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..presets import Preset, PresetLora
from ..presets.models import ENCODERS, PARTS, SHARD, SPEECH, Wanted, adapter, base, quantized
from ..presets.places import WHERE, Place, find_first, places
from .flags import FLAGS

logger = logging.getLogger("wanvideo")


@dataclass(frozen=True)
class _Search:
    """Sets flags that are not given, and notes what was found and what is missing, each with the flag that names it."""

    flags: argparse.Namespace
    among: list[Place]
    found: list[str] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)

    def look(self, wanted: Wanted, is_needed: bool = True) -> None:
        name = FLAGS[wanted.field].removeprefix("--")
        if getattr(self.flags, name):
            return
        path = find_first(wanted.names, self.among)
        if path is not None:
            self.take(name, path.parent if path.name.startswith(SHARD) else path)
        elif is_needed:
            self.missing.append((wanted.what, FLAGS[wanted.field]))

    def take(self, name: str, path: Path) -> None:
        setattr(self.flags, name, str(path))
        self.found.append(str(path))

    def base(self, resolution: str, num_speakers: int) -> None:
        """The transformer: as quantized with its adapter if the preset quantizes so, else that of the resolution."""
        if self.flags.quant and resolution == "480":
            merged = find_first(quantized(self.flags.quant, num_speakers), self.among)
            if merged is not None:
                self.take("quant_dir", merged)
                if (encoders := find_first(ENCODERS, self.among)) is not None:
                    self.take("ckpt_dir", encoders.parent)
                return
        wanted, other = base(resolution), base("480" if resolution == "720" else "720")
        if find_first(wanted.names, self.among) is None and find_first(other.names, self.among) is not None:
            logger.warning("%s is not there; %s is used, which was trained at another size.", wanted.what, other.what)
            wanted = other
        self.look(wanted)

    def loras(self, loras: tuple[PresetLora, ...]) -> None:
        for lora in loras:
            if (path := find_first(lora.files, self.among)) is not None:
                self.flags.lora_dir = [*self.flags.lora_dir, str(path)]
                self.found.append(str(path))
            else:
                self.missing.append((f"the LoRA {lora.files[0]} ({lora.what})", FLAGS["lora.path"]))


def find_models(flags: argparse.Namespace, preset: Preset, resolution: str, num_speakers: int) -> None:
    """Set the flags of the model files that are not named, and the preset's LoRAs.

    Args: resolution: "480" or "720". num_speakers: who speak; nobody needs no adapter.
    Raises: InputError naming all that is missing, and the command that fetches it.
    """
    search = _Search(flags, list(places(_near(flags))))
    is_named = bool(flags.quant_dir or flags.dit_path or flags.ckpt_dir)
    if not is_named:
        search.base(resolution, num_speakers)
    has_folder = bool(flags.ckpt_dir) and Path(flags.ckpt_dir).expanduser().is_dir()
    if num_speakers:
        if not (flags.quant_dir or flags.dit_path) and (has_folder or not is_named):  # a file may be a merged one
            search.look(adapter(num_speakers))
        search.look(SPEECH)
    if not has_folder and (flags.ckpt_dir or flags.quant_dir or flags.dit_path):
        flags.t5_path = flags.t5_path or matching_text_encoder(flags.quant_dir, flags.quant)
        for part in PARTS:
            search.look(part, is_needed=not is_named and part.field != "clip_vision")
    if not flags.lora_dir:
        search.loras(preset.loras)
    if search.missing:
        raise _lacking(preset.name, resolution, num_speakers, search.missing)
    if search.found:
        logger.info("Found %s.", ", ".join(search.found))


def matching_text_encoder(quantized: str | None, quant: str | None) -> str | None:
    """The text encoder that lies beside a quantized transformer, under the name that the published set gives it."""
    if quantized is None or quant is None:
        return None
    place = Path(quantized).expanduser()
    path = (place if place.is_dir() else place.parent) / f"t5_{quant}.safetensors"
    return str(path) if path.is_file() else None


def _near(flags: argparse.Namespace) -> list[Path]:
    """The folders around the files that are named."""
    named = [Path(place).expanduser() for place in (flags.ckpt_dir, flags.infinitetalk_dir) if place]
    return list(dict.fromkeys(folder for place in named for folder in (place, place.parent)))


def _lacking(preset: str, resolution: str, num_speakers: int, missing: list[tuple[str, str]]) -> InputError:
    names = "; ".join(what for what, _ in missing)
    flags = ", ".join(dict.fromkeys(flag for _, flag in missing))
    more = f" --set base-{resolution}p t5-{resolution}p infinitetalk-multi" if num_speakers > 1 else ""
    return InputError(
        f"The preset {preset} lacks {names}.\nLooked in {WHERE}.\n"
        f"Run python -m wanvideo download --preset {preset}{more} to fetch what is missing, or name it with {flags}."
    )
