"""Presets: what a video is made with, as data. One JSON file each, which lists every number it sets and no other."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..request import EngineOptions, LoopSettings

FOLDER = Path(__file__).parent
GIB = 2**30
AUTO = "auto"
SMALL_GB, SMALL, LARGE = 16, "05_low_vram", "03_balanced"  # what auto takes below and from so much free memory


@dataclass(frozen=True)
class PresetLora:
    """A LoRA that a preset was tuned for: names it goes by (see `places`), best first, its strength, and what it is."""

    files: tuple[str, ...]
    strength: float
    what: str


@dataclass(frozen=True)
class Preset:
    """A named choice.

    Args:
        about: one sentence for the user. memory_gb: device memory that it needs, 10^9 bytes.
        size: table of picture sizes (see geometry.SIZE_BUCKETS).
        settings, options: with all their fields. sets: names and values of those that the preset sets.
        loras: which it needs.
    """

    name: str
    about: str
    memory_gb: float
    size: str
    settings: LoopSettings
    options: EngineOptions
    sets: tuple[tuple[str, Any], ...]
    loras: tuple[PresetLora, ...]

    def apply(self, settings: LoopSettings, options: EngineOptions) -> tuple[LoopSettings, EngineOptions]:
        """The given values with those replaced that the preset sets."""
        return _taken(settings, self.settings, self.sets), _taken(options, self.options, self.sets)

    def describe(self) -> str:
        """All that it sets, on a few lines."""
        loras = [f"{lora.files[0]} at {lora.strength} ({lora.what})" for lora in self.loras] or ["none"]
        sets = ", ".join(f"{name} {json.dumps(value)}" for name, value in self.sets)
        return (
            f"{self.name}: {self.about} {self.memory_gb:g} GB.\n  size {self.size}, {sets}\n  LoRA: {', '.join(loras)}"
        )


def preset_names() -> list[str]:
    """Names of all presets, in order."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_preset(name: str) -> Preset:
    """A preset by its name, its number or what follows that. Raises: InputError naming those there are."""
    names = preset_names()
    found = [known for known in names if name in (known, *known.split("_", 1))]
    if not found:
        close = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise InputError(f"There is no preset {name!r}.{hint} Use one of {', '.join(names)}.")
    data = json.loads((FOLDER / f"{found[0]}.json").read_text(encoding="utf-8"))
    return Preset(
        found[0],
        data["about"],
        data["memory_gb"],
        data["size"],
        LoopSettings(**data["settings"]),
        EngineOptions(**data["options"]),
        (*data["settings"].items(), *data["options"].items()),
        tuple(PresetLora(tuple(lora["files"]), lora["strength"], lora["what"]) for lora in data["loras"]),
    )


def choose_preset(free_bytes: int) -> Preset:
    """The preset for everyday use with so much free device memory; what a video is for is not known here."""
    return load_preset(SMALL if free_bytes < SMALL_GB * 1e9 else LARGE)


def _taken(into: Any, given: Any, sets: tuple[tuple[str, Any], ...]) -> Any:
    names = {field.name for field in dataclasses.fields(into)}
    return replace(into, **{name: getattr(given, name) for name, _ in sets if name in names})
