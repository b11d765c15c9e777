"""One node from a picture and speech to a video: it finds the models and takes its numbers from a preset."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from .nodes_audio import Wav2VecModelLoader, check_regions, encode_speech, regions
from .nodes_base import CATEGORY, Node, advanced, checked, choice, expect, number, socket, text, whole
from .nodes_common import RunProgress, host, models_folder
from .nodes_conditioning import CUSTOM, WanVideoImageToVideoMultiTalk
from .nodes_files import ADAPTERS, AUDIO_ENCODERS, CLIP_VISIONS, LORAS, TEXT_ENCODERS, TRANSFORMERS, VAES, Files
from .nodes_job import Extras, Job
from .nodes_model_loading import (
    LastModel,
    LoadWanVideoClipTextEncoder,
    MultiTalkModelLoader,
    VideoModel,
    WanVideoLoraSelect,
    WanVideoModelLoader,
    WanVideoVAELoader,
)
from .nodes_options import BlockSwap, audio_guidance, make_schedule
from .nodes_preview import TinyPreview
from .nodes_sampler import SEED, WanVideoTalkingVideo
from .nodes_source import SourceOptions
from .nodes_text import WanVideoTextEncodeCached
from .wanvideo.audio.speech import Preparation
from .wanvideo.checkpoints.detect import Identity
from .wanvideo.checkpoints.dialects import Kind
from .wanvideo.checkpoints.load import open_checkpoint
from .wanvideo.checkpoints.sets import ComfyFiles, RemoteFile
from .wanvideo.errors import CheckpointError, InputError
from .wanvideo.geometry import SIZE_BUCKETS, VideoGeometry
from .wanvideo.presets import AUTO, Preset, PresetLora, choose_preset, load_preset, preset_names
from .wanvideo.prompts import PromptList
from .wanvideo.request import AUDIO_TYPES, MAX_SPEAKERS, NEGATIVE_PROMPT

NONE = "none"
AUDIOS, MASKS = (tuple(f"{name}_{number}" for number in range(1, MAX_SPEAKERS + 1)) for name in ("audio", "mask"))
WITHOUT_LORA, QUICK, BALANCED = "04_high_quality", "02_comfyui_equivalent", "03_balanced"
OTHER_MODEL = re.compile("(?i)wan_?2[._]?2|high_?noise|low_?noise")  # the LoRAs of Wan2.2 have the same shapes
TALK_LORAS = Files(Kind.LORA, LORAS.folders, first=(AUTO, NONE))
PUBLISHED = ComfyFiles()


@dataclass(frozen=True)
class Models:
    """Names of a video's files in ComfyUI's folders; no adapter where the transformer has it, and maybe no LoRA."""

    transformer: str
    adapter: str
    vae: str
    text_encoder: str
    clip_vision: str
    audio_encoder: str
    lora: str

    def stamp(self) -> str:
        """What changes when one of the files, or what they are chosen from, does."""
        named = [getattr(self, field.name) for field in fields(self)]
        return " ".join(f"{name} {slot.stamp(name)}" for name, slot in zip(named, SLOTS, strict=True) if name)


SLOTS = (TRANSFORMERS, ADAPTERS, VAES, TEXT_ENCODERS, CLIP_VISIONS, AUDIO_ENCODERS, LORAS)


def settled_preset(name: str, lora: str) -> Preset:
    """The preset of a name; auto: what suits the chosen LoRA, or else the card and the LoRAs that are there."""
    if name != AUTO:
        return load_preset(name)
    if lora == NONE:
        return load_preset(WITHOUT_LORA)
    device = host().device
    small = choose_preset(host().obtainable_bytes() if device.type == "cuda" else 2**63)
    names = [QUICK, BALANCED] if small.name == BALANCED else [small.name, QUICK, BALANCED]
    presets = [load_preset(name) for name in names]
    if lora != AUTO:
        found = (preset for preset in presets if _family(preset.loras[0]) in lora.lower())
    else:
        found = (preset for preset in presets if _lora_of(preset.loras[0]) is not None)
    return next(found, presets[0])


def find_models(preset: Preset, lora: str, num_speakers: int) -> Models:
    """The files for a video, by their content; of several the ones whose names suit the preset best.

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
    base = TRANSFORMERS.choose(words, lambda _, found: not found.has_audio) or TRANSFORMERS.choose(words)
    transformer = found(base, PUBLISHED.transformer_720 if is_large else PUBLISHED.transformer)
    identity = TRANSFORMERS.identity(transformer) if transformer else None
    adapter = ""
    if identity is None or not identity.has_audio:
        several = num_speakers > 1
        fitting = ADAPTERS.choose(("infini", "multi" if several else "single"), _fits(identity, several))
        adapter = found(fitting, PUBLISHED.multi if several else PUBLISHED.single)
    chosen = lora if lora not in (AUTO, NONE) else ""
    if lora == AUTO and preset.loras:
        is_fusion = _family(preset.loras[0]) in PUBLISHED.fusionx.name.lower()
        chosen = found(_lora_of(preset.loras[0]), PUBLISHED.fusionx if is_fusion else PUBLISHED.lightx2v)
    models = Models(
        transformer, adapter,
        found(VAES.choose(("wan", "2.1", "2_1")), PUBLISHED.vae),
        found(TEXT_ENCODERS.choose(("umt5", *storage)), PUBLISHED.text_encoder),
        found(CLIP_VISIONS.choose(("clip_vision_h", "vit-h", "vit_h")), PUBLISHED.clip_vision),
        found(AUDIO_ENCODERS.choose(("chinese", "base")), PUBLISHED.audio_encoder),
        chosen,
    )  # fmt: skip
    if missing:
        raise CheckpointError(
            f"Models are missing: {_listed(missing)}.\n"
            f"Put each into its folder in {models_folder()}, press R in the page and run again."
        )
    return models


def _fits(base: Identity | None, several: bool) -> Callable[[str, Identity], bool]:
    """Whether an adapter is made for a transformer of this size and for so many speakers."""

    def fits(name: str, found: Identity) -> bool:
        if base is not None and (found.dim, found.num_layers) != (base.dim, base.num_layers):
            return False
        return not (several and open_checkpoint(ADAPTERS.find(name), Kind.ADAPTER).is_single)

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


def _lora_of(lora: PresetLora) -> str | None:
    """The first of a preset's LoRAs that is there, under whatever folder, else another one of its family."""
    there = {PureWindowsPath(name).name: name for name in LORAS.names()}
    known = (there.get(PureWindowsPath(file).name) for file in lora.files)
    name = next((name for name in known if name is not None), None)
    word = _family(lora)
    return name or LORAS.choose((word, "i2v"), lambda name, _: word in name.lower() and not OTHER_MODEL.search(name))


class WanVideoTalk(Node):
    CATEGORY = CATEGORY
    ESSENTIALS_CATEGORY = "Video Generation"
    SEARCH_ALIASES = ["talking video", "lip sync", "infinitetalk", "multitalk", "quick start", "avatar", "数字人"]
    REQUIRED = {
        "audio_1": socket("AUDIO"),
        "prompt": text("A person looks into the camera and talks.", multiline=True),
        "preset": choice(AUTO, AUTO, *preset_names()),
        "seed": SEED,
    }
    OPTIONAL = {
        "image": socket("IMAGE"),
        "video": socket("VIDEO"),
        **{name: socket("AUDIO") for name in AUDIOS[1:]},
        **{name: socket("MASK") for name in MASKS},
        "lora": TALK_LORAS,
        "lora_strength": advanced(number(0.0, 0.0, 2.0, 0.05)),
        "multi_audio_type": choice("add", *reversed(AUDIO_TYPES)),
        "size": advanced(choice(AUTO, AUTO, *SIZE_BUCKETS, CUSTOM)),
        "width": advanced(whole(832, 64, 4096, 16)),
        "height": advanced(whole(480, 64, 4096, 16)),
        "steps": advanced(whole(0, 0, 1000)),
        "audio_scale": advanced(number(1.0, 0.0, 100.0, 0.05)),
        "audio_cfg_scale": advanced(number(0.0, 0.0, 100.0, 0.1)),
        "negative_prompt": advanced(text(NEGATIVE_PROMPT, multiline=True)),
        "source_options": socket("WANVIDSOURCEOPTIONS"),
    }
    HIDDEN = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("VIDEO",), ("video",), "talk"

    def __init__(self) -> None:
        self._loader = WanVideoModelLoader()
        self._vae, self._clip, self._audio = LastModel(), LastModel(), LastModel()

    @classmethod
    def VALIDATE_INPUTS(
        cls, preset=None, seed=None, prompt=None, lora=AUTO, lora_strength=None, multi_audio_type=None, size=None,
        width=None, height=None, steps=None, audio_scale=None, audio_cfg_scale=None, image=False, video=False,
        audio_2=False, audio_3=False, audio_4=False, audio_5=False, audio_6=False, mask_1=False, mask_2=False,
        mask_3=False, mask_4=False, mask_5=False, mask_6=False,
    ):  # fmt: skip
        audios, masks = (audio_2, audio_3, audio_4, audio_5, audio_6), (mask_1, mask_2, mask_3, mask_4, mask_5, mask_6)

        def check() -> None:
            cls.known(seed=seed, lora_strength=lora_strength, multi_audio_type=multi_audio_type)
            cls.known(steps=steps, audio_scale=audio_scale, audio_cfg_scale=audio_cfg_scale, preset=preset)
            known = cls.known(size=size, width=width, height=height)
            if known.get("size") == CUSTOM:
                VideoGeometry(known.get("width", 64), known.get("height", 64), 1)
            num_speakers = 1 + sum(audio is not False for audio in audios)
            _check_sources(image is not False, video is not False)
            check_regions(sum(mask is not False for mask in masks), num_speakers)
            if prompt is not None:
                PromptList.parse(prompt)
            if preset is not None and lora is not None:
                TALK_LORAS.check(lora)
                find_models(settled_preset(preset, lora), lora, num_speakers)

        return checked(check)

    @classmethod
    def IS_CHANGED(cls, preset=AUTO, lora=AUTO, **inputs: Any) -> str:
        num_speakers = sum(name in inputs for name in AUDIOS)
        chosen = settled_preset(preset or AUTO, lora or AUTO)
        return f"{chosen.name} {find_models(chosen, lora or AUTO, num_speakers).stamp()}"

    def talk(
        self, audio_1, prompt="A person looks into the camera and talks.", preset=AUTO, seed=0, image=None, video=None,
        audio_2=None, audio_3=None, audio_4=None, audio_5=None, audio_6=None, mask_1=None, mask_2=None, mask_3=None,
        mask_4=None, mask_5=None, mask_6=None, lora=AUTO, lora_strength=0.0, multi_audio_type="add", size=AUTO,
        width=832, height=480, steps=0, audio_scale=1.0, audio_cfg_scale=0.0, negative_prompt=NEGATIVE_PROMPT,
        source_options=None, unique_id=None,
    ):  # fmt: skip
        _check_sources(image is not None, video is not None)
        if source_options is not None:
            expect(source_options, SourceOptions, "source_options").check(
                video is not None, 0 if image is None else len(image)
            )
        audios = (audio_1, audio_2, audio_3, audio_4, audio_5, audio_6)
        given = {name: audio for name, audio in zip(AUDIOS, audios, strict=True) if audio is not None}
        masks = regions(None, dict(zip(MASKS, (mask_1, mask_2, mask_3, mask_4, mask_5, mask_6), strict=True)))
        check_regions(0 if masks is None else len(masks), len(given))
        chosen = settled_preset(preset, lora)
        models = find_models(chosen, lora, len(given))
        settings = chosen.settings
        guidance = audio_guidance(settings, audio_cfg_scale or settings.audio_guidance_scale)
        schedule = make_schedule(settings.scheduler, steps or settings.steps, settings.shift, 0, -1, None)
        model = self._model(chosen, models, lora_strength)

        def job(picture: Any, prompts: Any, extras: Extras) -> Job:
            return Job(model, picture, prompts, schedule, settings.guidance_scale, seed, extras, None, 1.0, False)

        job(None, None, Extras()).check()
        how = Preparation(normalize_loudness=True)
        speech = encode_speech(self._encoder(models), given, masks, multi_audio_type, how)
        speech = replace(speech, scale=audio_scale, guidance_scale=guidance)
        prompts = _prompts(chosen, models, prompt, negative_prompt)
        vae, clip = self._picture_encoders(models)
        picture, _ = WanVideoImageToVideoMultiTalk().process(
            vae, width, height, settings.window_frames, settings.motion_frames, colormatch=settings.color_match,
            colormatch_strength=settings.color_strength, start_image=image, source_video=video,
            tiled_vae=settings.tiled_vae, clip_vision=clip, size=chosen.size if size == AUTO else size,
            source_options=source_options,
        )  # fmt: skip
        progress = RunProgress(unique_id, TinyPreview())
        samples, _ = job(picture, prompts, Extras(speech=speech)).run(progress, force_offload=True)
        return WanVideoTalkingVideo().process(samples)

    def _model(self, preset: Preset, models: Models, strength: float) -> VideoModel:
        lora = None
        if models.lora:
            tuned = preset.loras[0].strength if preset.loras else 1.0
            (lora,) = WanVideoLoraSelect().getlorapath(models.lora, strength or tuned)
        adapter = MultiTalkModelLoader().loadmodel(models.adapter)[0] if models.adapter else None
        quantization = {None: "disabled", "fp8": "fp8_e4m3fn"}.get(preset.options.quantize, preset.options.quantize)
        swap = BlockSwap(-1, preset.options.prefetch)  # as many blocks as the card has room for stay on it
        return self._loader.loadmodel(
            models.transformer, preset.options.dtype, quantization, attention_mode=preset.options.attention,
            block_swap_args=swap, lora=lora, multitalk_model=adapter,
        )[0]  # fmt: skip

    def _encoder(self, models: Models) -> Any:
        name = models.audio_encoder
        return self._audio.get((name, AUDIO_ENCODERS.stamp(name)), lambda: Wav2VecModelLoader().loadmodel(name)[0])

    def _picture_encoders(self, models: Models) -> tuple[Any, Any]:
        """The VAE and the CLIP vision model."""
        vae, clip = models.vae, models.clip_vision
        return (
            self._vae.get((vae, VAES.stamp(vae)), lambda: WanVideoVAELoader().loadmodel(vae)[0]),
            self._clip.get(
                (clip, CLIP_VISIONS.stamp(clip)), lambda: LoadWanVideoClipTextEncoder().loadmodel(clip, "bf16")[0]
            ),
        )


def _check_sources(has_picture: bool, has_video: bool) -> None:
    if has_picture == has_video:
        raise InputError("Somebody has to be seen. Connect image (a picture) or video, one of both.")


def _prompts(preset: Preset, models: Models, prompt: str, negative_prompt: str) -> Any:
    quantization = "fp8_e4m3fn" if preset.options.quantize else "disabled"
    where = preset.options.text_encoder_device or "gpu"
    return WanVideoTextEncodeCached().process(
        models.text_encoder, "bf16", prompt, negative_prompt, quantization, device=where
    )[0]


NODES = (WanVideoTalk,)
