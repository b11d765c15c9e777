"""What the node Talking Video decides by itself: the preset, model files by their content, and the numbers of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from ..checkpoints.detect import Identity
from ..checkpoints.dialects import Kind
from ..checkpoints.load import open_checkpoint
from ..checkpoints.sets import ComfyFiles, RemoteFile
from ..errors import CheckpointError
from ..presets import AUTO, Preset, PresetLora, choose_preset, load_preset

NONE = "none"
WITHOUT_LORA, QUICK, BALANCED = "04_high_quality", "02_comfyui_equivalent", "03_balanced"
OTHER_MODEL = re.compile("(?i)wan_?2[._]?2|high_?noise|low_?noise")  # the LoRAs of Wan2.2 have the same shapes
PUBLISHED = ComfyFiles()
GuidanceScale = float | tuple[float, ...]  # as of LoopSettings: of all steps, or of each
UNLIMITED = 2**63  # bytes: of a device whose memory is that of the machine


class Shelf(Protocol):
    """Model files of one kind, by the names that ComfyUI lists them by."""

    def names(self) -> list[str]:
        """All files of its folders, whatever they are."""

    def identity(self, name: str) -> Identity | None:
        """What a file is; None where it is of another kind, cannot be used or is not there."""

    def find(self, name: str) -> Path:
        """The path of a file. Raises: CheckpointError when there is none."""


@dataclass(frozen=True)
class Shelves:
    """Where a video's models are looked for."""

    transformer: Shelf
    adapter: Shelf
    vae: Shelf
    text_encoder: Shelf
    clip_vision: Shelf
    audio_encoder: Shelf
    lora: Shelf


@dataclass(frozen=True)
class Models:
    """Names of a video's files on their shelves; no adapter where the transformer has it, and maybe no LoRA."""

    transformer: str
    adapter: str
    vae: str
    text_encoder: str
    clip_vision: str
    audio_encoder: str
    lora: str

    def paths(self, shelves: Shelves) -> dict[str, Path]:
        """Of each file that there is, by the field's name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {slot: getattr(shelves, slot).find(name) for slot, name in named.items() if name}


@dataclass(frozen=True)
class Numbers:
    """What the node's widgets leave to the preset: 0, or auto for the size, takes the preset's own."""

    lora_strength: float = 0.0
    steps: int = 0
    audio_cfg_scale: float = 0.0
    size: str = AUTO

    def settled(self, preset: Preset) -> Numbers:
        """With the preset's values where they were left to it."""
        tuned = preset.loras[0].strength if preset.loras else 1.0
        settings = preset.settings
        return Numbers(
            self.lora_strength or tuned, self.steps or settings.steps,
            self.audio_cfg_scale or settings.audio_guidance_scale, preset.size if self.size == AUTO else self.size,
        )  # fmt: skip


def audio_guidance_of(audio_cfg_scale: float, cfg: GuidanceScale) -> float:
    """The audio guidance that these two values of a graph mean: their product where neither is 1.

    With a cfg of each step audio_cfg_scale has to be 1.
    """
    return audio_cfg_scale if audio_cfg_scale == 1 or isinstance(cfg, tuple) or cfg == 1 else audio_cfg_scale * cfg


def audio_cfg_scale_of(audio_guidance_scale: float, guidance_scale: GuidanceScale) -> float:
    """What audio_cfg_scale of a graph has to be for this audio guidance."""
    if audio_guidance_scale == 1 or isinstance(guidance_scale, tuple) or guidance_scale in (0, 1):
        return audio_guidance_scale
    found = audio_guidance_scale / guidance_scale
    near = (found, math.nextafter(found, 0), math.nextafter(found, math.inf))
    return next((scale for scale in near if scale * guidance_scale == audio_guidance_scale), found)


def choose(
    shelf: Shelf, words: Sequence[str], fits: Callable[[str, Identity], bool] = lambda name, identity: True,
    is_named: Callable[[str], bool] = lambda name: True,
) -> str | None:  # fmt: skip
    """The file of a shelf whose name has most of `words`, in lower case; None where none is of its kind.

    Args: fits: what else it has to be. is_named: what its name has to be. As few headers as possible are read, and each
        only once.
    """
    ranked = sorted(filter(is_named, shelf.names()), key=lambda name: -sum(word in name.lower() for word in words))
    found = ((name, shelf.identity(name)) for name in ranked)
    return next((name for name, identity in found if identity is not None and fits(name, identity)), None)


def settled_preset(shelves: Shelves, name: str, lora: str, device_bytes: int) -> Preset:
    """The preset of a name; auto: what suits the chosen LoRA, or else the card and the LoRAs that are there."""
    if name != AUTO:
        return load_preset(name)
    if lora == NONE:
        return load_preset(WITHOUT_LORA)
    small = choose_preset(device_bytes)
    names = [QUICK, BALANCED] if small.name == BALANCED else [small.name, QUICK, BALANCED]
    presets = [load_preset(name) for name in names]
    if lora != AUTO:
        found = (preset for preset in presets if _family(preset.loras[0]) in lora.lower())
    else:
        found = (preset for preset in presets if _lora_of(shelves.lora, preset.loras[0]) is not None)
    return next(found, presets[0])


def find_models(shelves: Shelves, preset: Preset, lora: str, num_speakers: int, models_folder: str | Path) -> Models:
    """The files for a video, by their content; of several the ones whose names suit the preset best.

    Args: models_folder: ComfyUI's, for the message.
    Raises: CheckpointError with everything that is missing.
    """
    missing: list[RemoteFile] = []

    def found(name: str | None, published: RemoteFile) -> str:
        if name is None:
            missing.append(published)
        return name or ""

    is_large, is_packed = "720" in preset.size, preset.options.quantize is not None
    storage = ("fp8", "scaled") if is_packed else ("bf16", "fp16")
    words = ("wan", "i2v", "720p" if is_large else "480p", *storage)
    transformers = shelves.transformer
    base = choose(transformers, words, lambda _, found: not found.has_audio) or choose(transformers, words)
    transformer = found(base, PUBLISHED.transformer_720 if is_large else PUBLISHED.transformer)
    identity = transformers.identity(transformer) if transformer else None
    adapter = ""
    if identity is None or not identity.has_audio:
        several = num_speakers > 1
        wanted = ("infini", "multi" if several else "single")
        fitting = choose(shelves.adapter, wanted, _fits(shelves.adapter, identity, several))
        adapter = found(fitting, PUBLISHED.multi if several else PUBLISHED.single)
    chosen = lora if lora not in (AUTO, NONE) else ""
    if lora == AUTO and preset.loras:
        is_fusion = _family(preset.loras[0]) in PUBLISHED.fusionx.name.lower()
        chosen = found(_lora_of(shelves.lora, preset.loras[0]), PUBLISHED.fusionx if is_fusion else PUBLISHED.lightx2v)
    models = Models(
        transformer, adapter,
        found(choose(shelves.vae, ("wan", "2.1", "2_1")), PUBLISHED.vae),
        found(choose(shelves.text_encoder, ("umt5", *storage)), PUBLISHED.text_encoder),
        found(choose(shelves.clip_vision, ("clip_vision_h", "vit-h", "vit_h")), PUBLISHED.clip_vision),
        found(choose(shelves.audio_encoder, ("chinese", "base")), PUBLISHED.audio_encoder),
        chosen,
    )  # fmt: skip
    if missing:
        raise CheckpointError(
            f"Models are missing: {_listed(missing)}.\n"
            f"Put each into its folder in {models_folder}, press R in the page and run again."
        )
    return models


def _fits(adapters: Shelf, base: Identity | None, several: bool) -> Callable[[str, Identity], bool]:
    """Whether an adapter is made for a transformer of this size and for so many speakers."""

    def fits(name: str, found: Identity) -> bool:
        if base is not None and (found.dim, found.num_layers) != (base.dim, base.num_layers):
            return False
        return not (several and open_checkpoint(adapters.find(name), Kind.ADAPTER).is_single)

    return fits


def _listed(missing: Sequence[RemoteFile]) -> str:
    """Names, sizes and folders, those of one repository together with its address."""
    parts = []
    for repository, files in groupby(sorted(missing, key=lambda file: file.repository), lambda file: file.repository):
        placed = [(PurePosixPath(file.local), file.size_bytes / 1e9) for file in files]
        names = ", ".join(f"{path.name} ({size:.2g} GB) into {path.parent}" for path, size in placed)
        parts.append(f"{names} from https://huggingface.co/{repository}")
    return "; ".join(parts)


def _family(lora: PresetLora) -> str:
    """What the names of a preset's LoRAs have in common."""
    return lora.what.partition(",")[0].lower()


def _lora_of(loras: Shelf, lora: PresetLora) -> str | None:
    """The first of a preset's LoRAs that is there, under whatever folder, else another one of its family."""
    there = {PureWindowsPath(name).name: name for name in loras.names()}
    known = (there.get(PureWindowsPath(file).name) for file in lora.files)
    name = next((name for name in known if name is not None), None)
    word = _family(lora)

    def is_named(name: str) -> bool:
        return word in name.lower() and not OTHER_MODEL.search(name)

    return name or choose(loras, (word, "i2v"), is_named=is_named)
