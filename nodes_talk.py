"""One node from a picture and speech to a video: it finds the models and takes its numbers from a preset."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from .nodes_audio import Wav2VecModelLoader, check_regions, encode_speech, regions
from .nodes_base import CATEGORY, Node, advanced, checked, choice, expect, number, socket, text, whole
from .nodes_common import RunProgress, host, models_folder
from .nodes_conditioning import CUSTOM, WanVideoImageToVideoMultiTalk
from .nodes_files import ADAPTERS, AUDIO_ENCODERS, CLIP_VISIONS, LORAS, TEXT_ENCODERS, TRANSFORMERS, VAES, Files
from .nodes_job import Extras, Job
from .nodes_media import size_of
from .nodes_model_loading import (
    LastModel,
    LoadWanVideoClipTextEncoder,
    MultiTalkModelLoader,
    VideoModel,
    WanVideoLoraSelect,
    WanVideoModelLoader,
    WanVideoVAELoader,
)
from .nodes_options import BlockSwap, make_schedule
from .nodes_preview import TinyPreview
from .nodes_sampler import SEED, WanVideoTalkingVideo
from .nodes_source import SourceOptions
from .nodes_text import WanVideoTextEncodeCached
from .wanvideo.audio.speech import Preparation
from .wanvideo.checkpoints.dialects import Kind
from .wanvideo.engine import talk
from .wanvideo.engine.talk import NONE, Models, Numbers, Shelves, audio_cfg_scale_of
from .wanvideo.errors import InputError
from .wanvideo.geometry import SIZE_BUCKETS, VideoGeometry
from .wanvideo.presets import AUTO, Preset, preset_names
from .wanvideo.prompts import PromptList
from .wanvideo.request import AUDIO_TYPES, MAX_SPEAKERS, NEGATIVE_PROMPT

AUDIOS, MASKS = (tuple(f"{name}_{number}" for number in range(1, MAX_SPEAKERS + 1)) for name in ("audio", "mask"))
TALK_LORAS = Files(Kind.LORA, LORAS.folders, first=(AUTO, NONE))
SHELVES = Shelves(TRANSFORMERS, ADAPTERS, VAES, TEXT_ENCODERS, CLIP_VISIONS, AUDIO_ENCODERS, LORAS)


def settled_preset(name: str, lora: str) -> Preset:
    """See `talk.settled_preset`, here and now."""
    is_card = host().device.type == "cuda"
    return talk.settled_preset(SHELVES, name, lora, host().obtainable_bytes() if is_card else talk.UNLIMITED)


def find_models(preset: Preset, lora: str, num_speakers: int) -> Models:
    """See `talk.find_models`, in ComfyUI's folders."""
    return talk.find_models(SHELVES, preset, lora, num_speakers, models_folder())


def _stamp(models: Models) -> str:
    """What changes when one of the files, or what they are chosen from, does."""
    shelves = {field.name: (getattr(SHELVES, field.name), getattr(models, field.name)) for field in fields(models)}
    return " ".join(f"{name} {files.stamp(name)}" for files, name in shelves.values() if name)


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
        return f"{chosen.name} {_stamp(find_models(chosen, lora or AUTO, num_speakers))}"

    def talk(
        self, audio_1, prompt="A person looks into the camera and talks.", preset=AUTO, seed=0, image=None, video=None,
        audio_2=None, audio_3=None, audio_4=None, audio_5=None, audio_6=None, mask_1=None, mask_2=None, mask_3=None,
        mask_4=None, mask_5=None, mask_6=None, lora=AUTO, lora_strength=0.0, multi_audio_type="add", size=AUTO,
        width=832, height=480, steps=0, audio_scale=1.0, audio_cfg_scale=0.0, negative_prompt=NEGATIVE_PROMPT,
        source_options=None, unique_id=None,
    ):  # fmt: skip
        _check_sources(image is not None, video is not None)
        if image is not None:
            size_of(image)
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
        settings, numbers = chosen.settings, Numbers(lora_strength, steps, audio_cfg_scale, size).settled(chosen)
        guidance = audio_cfg_scale_of(numbers.audio_cfg_scale, settings.guidance_scale)
        schedule = make_schedule(settings.scheduler, numbers.steps, settings.shift, 0, -1, None)
        model = self._model(chosen, models, numbers.lora_strength)

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
            tiled_vae=settings.tiled_vae, clip_vision=clip, size=numbers.size,
            source_options=source_options,
        )  # fmt: skip
        progress = RunProgress(unique_id, TinyPreview())
        samples, _ = job(picture, prompts, Extras(speech=speech)).run(progress, force_offload=True)
        return WanVideoTalkingVideo().process(samples)

    def _model(self, preset: Preset, models: Models, strength: float) -> VideoModel:
        lora = None
        if models.lora:
            (lora,) = WanVideoLoraSelect().getlorapath(models.lora, strength)
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
