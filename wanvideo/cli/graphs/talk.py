"""A graph around the node Talking Video as job and flags: what it decides by itself is decided here in the same way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ...engine.talk import UNLIMITED, Numbers, Shelves, find_models, settled_preset
from ...errors import CheckpointError, InputError
from ...presets import AUTO
from ...request import MAX_SPEAKERS
from ...sampling.conditions import mode_of_adapter
from .graph import CUSTOM, Graph, GraphNode
from .reader import Reader
from .shelf import folder_shelves
from .widgets import CONTROL, WIDGETS

AUDIOS, MASKS = ([f"{name}_{number}" for number in range(1, MAX_SPEAKERS + 1)] for name in ("audio", "mask"))
READ = {*WIDGETS["WanVideoTalk"], CONTROL, "image", "video", "source_options", *AUDIOS, *MASKS}
logger = logging.getLogger("wanvideo")


class TalkReader(Reader):
    """Reads a graph whose video WanVideoTalk makes."""

    def __init__(self, graph: Graph, node: GraphNode, models: str, inputs: str, prefix: str) -> None:
        super().__init__(graph, inputs, prefix)
        self.node, self.models = node, models
        self.num_speakers = sum(name in node.links for name in AUDIOS)
        self.shelves = Shelves(*folder_shelves(Path(models)))
        lora = self.value(node, "lora", AUTO)
        try:
            asked = str(self.value(node, "preset", AUTO))
            self.preset = settled_preset(self.shelves, asked, lora, _device_bytes())
            found = find_models(self.shelves, self.preset, lora, self.num_speakers, models)
            self.paths = {slot: str(path) for slot, path in found.paths(self.shelves).items()}
        except CheckpointError as error:
            raise InputError(
                f"{str(error).splitlines()[0]}\n{node.kind} takes models by what they are, so they have to be there: "
                "name ComfyUI's folder of models with --models."
            ) from None
        logger.info("preset %s is %s here.", asked, self.preset.name)

    def job(self) -> dict[str, Any]:
        node = self.node
        source = "video" if "video" in node.links else "image"
        return {
            **self.prompt_keys(self.value(node, "prompt", ""), self.value(node, "negative_prompt", None)),
            "cond_video": self.reference(node, source),
            **self.people(node, AUDIOS, MASKS, self.value(node, "multi_audio_type", "add")),
        }

    def flags(self) -> list[object]:
        node, settings = self.node, self.preset.settings
        names = ("lora_strength", "steps", "audio_cfg_scale")
        given = {name: self.value(node, name, 0) for name in names}
        numbers = Numbers(size=self.value(node, "size", AUTO), **given).settled(self.preset)
        size = numbers.size
        if size == CUSTOM:
            size = f"{self.value(node, 'width', 832)}x{self.value(node, 'height', 480)}"
        return [
            *self.model_flags(numbers.lora_strength),
            "--size", size, "--frame_num", settings.window_frames, "--motion_frame", settings.motion_frames,
            "--color_match", settings.color_match, "--color_correction_strength", settings.color_strength,
            *(("--tiled_vae", "true") if settings.tiled_vae else ()),
            *self.source_flags(node),
            "--scheduler", settings.scheduler, "--sample_steps", numbers.steps, "--sample_shift", settings.shift,
            "--sample_text_guide_scale", settings.guidance_scale, "--base_seed", self.value(node, "seed", 0),
            "--sample_audio_guide_scale", numbers.audio_cfg_scale,
            "--audio_scale", self.value(node, "audio_scale", 1.0), "--mode", "streaming", "--max_frame_num", 0,
        ]  # fmt: skip

    def model_flags(self, strength: float) -> list[object]:
        paths, options = self.paths, self.preset.options
        flags: list[object] = ["--dit_path", paths["transformer"]]
        if "adapter" in paths:
            flags += ["--infinitetalk_dir", paths["adapter"]]
        for slot, flag in (("vae", "--vae_path"), ("text_encoder", "--t5_path"), ("clip_vision", "--clip_path"),
                           ("audio_encoder", "--wav2vec_dir")):  # fmt: skip
            flags += [flag, paths[slot]]
        if "lora" in paths:
            flags += ["--lora_dir", paths["lora"], "--lora_scale", strength]
        mode = mode_of_adapter(Path(paths.get("adapter", "")).name)
        flags += ["--task", f"{mode}-14B", "--dtype", options.dtype, "--attention", options.attention]
        if options.quantize is not None:
            flags += ["--quant", options.quantize]
        return [*flags, "--t5_cpu"] if options.text_encoder_device == "cpu" else flags

    def note_rest(self) -> None:
        self.note_unread(self.node, READ)
        self.note_kinds(self.node)


def _device_bytes() -> int:
    """As ComfyUI's memory manager tells it to the node."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else UNLIMITED
