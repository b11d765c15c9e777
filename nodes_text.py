"""Nodes that encode prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .nodes_base import CATEGORY, Node, checked, choice, expect, flag, refuse, socket, text, unsupported
from .nodes_common import cache_folder, stop_if_interrupted
from .nodes_files import TEXT_ENCODERS, FileNode
from .nodes_model_loading import VideoModel, text_encoder
from .wanvideo.checkpoints.download import TOKENIZER, download
from .wanvideo.checkpoints.folders import TOKENIZER_FILES
from .wanvideo.engine.conditioning import Prompts
from .wanvideo.engine.encoders import Encoders
from .wanvideo.engine.host import ModelHandle
from .wanvideo.errors import InputError
from .wanvideo.models.text_encoder import without_padding
from .wanvideo.prompts import PromptList
from .wanvideo.text.tokenizer import EMBEDDED

TEXT = f"{CATEGORY}/text"


class WanVideoTextEncode(Node):
    CATEGORY = TEXT
    SEARCH_ALIASES = ["prompt", "text encode"]
    REQUIRED = {"positive_prompt": text(multiline=True), "negative_prompt": text(multiline=True)}
    OPTIONAL = {
        "t5": socket("WANTEXTENCODER"),
        "force_offload": flag(True),
        "model_to_offload": socket("WANVIDEOMODEL"),
        "use_disk_cache": flag(False),
        "device": choice("gpu", "gpu", "cpu"),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDEOTEXTEMBEDS",), ("text_embeds",), "process"

    @classmethod
    def VALIDATE_INPUTS(cls, positive_prompt=None):
        return check_prompt(positive_prompt)

    def process(
        self, positive_prompt, negative_prompt, t5=None, force_offload=True, model_to_offload=None,
        use_disk_cache=False, device="gpu",
    ):  # fmt: skip
        encoder = expect(t5, ModelHandle, "t5")
        if model_to_offload is not None:
            expect(model_to_offload, VideoModel, "model_to_offload").handle.offload()
        prompts = PromptList.parse(positive_prompt)
        *positive, negative = _encode(encoder, [*prompts.texts, negative_prompt], use_disk_cache, device)
        if force_offload:
            encoder.offload()
        return (Prompts(tuple(positive), negative, prompts.starts),)


class WanVideoTextEncodeSingle(Node):
    CATEGORY = TEXT
    SEARCH_ALIASES = ["prompt"]
    REQUIRED = {"prompt": text(multiline=True)}
    OPTIONAL = WanVideoTextEncode.OPTIONAL
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDEOTEXTEMBEDS",), ("text_embeds",), "process"

    @classmethod
    def VALIDATE_INPUTS(cls, prompt=None):
        return check_prompt(prompt)

    def process(self, prompt, t5=None, force_offload=True, model_to_offload=None, use_disk_cache=False, device="gpu"):
        (embeds,) = WanVideoTextEncode().process(
            prompt, "", t5, force_offload, model_to_offload, use_disk_cache, device
        )
        return (replace(embeds, negative=None),)


class WanVideoTextEncodeCached(FileNode):
    CATEGORY = TEXT
    SEARCH_ALIASES = ["prompt", "text encode", "umt5"]
    REQUIRED = {
        "model_name": TEXT_ENCODERS,
        "precision": choice("bf16", "fp32", "bf16"),
        "positive_prompt": text(multiline=True),
        "negative_prompt": text(multiline=True),
        "quantization": choice("disabled", "disabled", "fp8_e4m3fn"),
        "use_disk_cache": flag(True),
        "device": choice("gpu", "gpu", "cpu"),
    }
    OPTIONAL = {"extender_args": unsupported("WANVIDEOPROMPTEXTENDER_ARGS")}
    RETURN_TYPES = ("WANVIDEOTEXTEMBEDS", "WANVIDEOTEXTEMBEDS", "STRING")
    RETURN_NAMES = ("text_embeds", "negative_text_embeds", "positive_prompt")
    FUNCTION = "process"

    @classmethod
    def VALIDATE_INPUTS(cls, model_name=None, positive_prompt=None):
        found = cls.check_files(model_name=model_name)
        return check_prompt(positive_prompt) if found is True else found

    def process(
        self, model_name, precision, positive_prompt, negative_prompt, quantization="disabled", use_disk_cache=True,
        device="gpu", extender_args=None,
    ):  # fmt: skip
        refuse(extender_args=extender_args)
        encoder = text_encoder(model_name, precision, quantization)
        prompts = PromptList.parse(positive_prompt)
        *positive, negative = _encode(encoder, [*prompts.texts, negative_prompt], use_disk_cache, device)
        encoder.unload()
        return Prompts(tuple(positive), negative, prompts.starts), Prompts((negative,)), positive_prompt


def check_prompt(prompt: str | None) -> bool | str:
    """What VALIDATE_INPUTS answers of a text with prompts; None: it is not known yet."""
    return checked(lambda: prompt is None or PromptList.parse(prompt))


def _encode(encoder: ModelHandle, prompts: list[str], use_disk_cache: bool, where: str) -> list[Tensor]:
    stop_if_interrupted()
    cache = cache_folder() if use_disk_cache else None
    return Encoders(encoder, _tokenizer(encoder), None, None, where == "cpu", cache).embeds_of(prompts)


def _tokenizer(encoder: ModelHandle) -> Path:
    """The encoder's own tokenizer where its file carries one, else the one that all UMT5-XXL files share."""
    file = encoder.checkpoint.paths[0]
    if EMBEDDED in encoder.checkpoint.source:
        return file
    places = (file.parent / TOKENIZER, file.parent, file.parent / "umt5-xxl")
    found = next((path for place in places for name in TOKENIZER_FILES if (path := place / name).is_file()), None)
    return found or download(TOKENIZER, file.parent / TOKENIZER) / "tokenizer.json"


class WanVideoTextEmbedBridge(Node):
    CATEGORY = TEXT
    SEARCH_ALIASES = ["conditioning", "clip text encode"]
    REQUIRED = {"positive": socket("CONDITIONING")}
    OPTIONAL = {"negative": socket("CONDITIONING")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDEOTEXTEMBEDS",), ("text_embeds",), "process"

    def process(self, positive, negative=None):
        negatives = _conditions(negative, "negative") if negative else ()
        return (Prompts(_conditions(positive, "positive"), negatives[0] if negatives else None),)


def _conditions(entries: Any, name: str) -> tuple[Tensor, ...]:
    """[n, dim] of each entry of a CONDITIONING. Raises: InputError where there is none, or one is no encoded text."""
    entries = entries if isinstance(entries, list | tuple) else ()
    found = [entry[0] if isinstance(entry, list | tuple) and entry else None for entry in entries]
    embeds = [item for item in found if isinstance(item, Tensor) and item.ndim == 3 and item.numel()]
    if not found or len(embeds) < len(found):
        raise InputError(f"{name} holds no encoded text. Connect CLIP Text Encode with a UMT5 encoder.")
    return tuple(without_padding(item[0]) for item in embeds)


NODES = (WanVideoTextEncode, WanVideoTextEncodeSingle, WanVideoTextEncodeCached, WanVideoTextEmbedBridge)
