"""Nodes that turn prompts, pictures and speech into a video: encoders, sampling, decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .nodes_audio import samples_of
from .nodes_common import (
    CATEGORY,
    TEXT_ENCODERS,
    FileNode,
    Held,
    Node,
    RunProgress,
    cache_folder,
    choice,
    expect,
    flag,
    logger,
    number,
    output_folder,
    refuse,
    snapped,
    socket,
    stop_if_interrupted,
    temporary_file,
    text,
    video_from_file,
    whole,
)
from .nodes_model_loading import (
    SCHEDULER,
    ClipEncoder,
    Experimental,
    Schedule,
    VideoModel,
    check_scheduler,
    make_schedule,
    text_encoder,
)
from .wanvideo.checkpoints.download import TOKENIZER, download
from .wanvideo.engine.conditioning import Prompts, Speech, check_prompts, make_conditioning, work_of
from .wanvideo.errors import InputError
from .wanvideo.geometry import FPS, VideoGeometry, WindowPlan
from .wanvideo.models.clip_vision import encode_tiled
from .wanvideo.models.text_encoder import encode_prompts, without_padding
from .wanvideo.models.vae_tiling import Tiling
from .wanvideo.ops.precision import matmul_modes
from .wanvideo.request import COLOUR_METHODS, LoopSettings, SkipLayers, StepCache
from .wanvideo.sampling.clip import empty_condition, encode_video, picture_condition, sample_clip
from .wanvideo.sampling.loop import finished, run_windows, seeded_draw
from .wanvideo.sampling.schedulers import scheduler_of
from .wanvideo.text.cache import TextCache
from .wanvideo.text.tokenizer import EMBEDDED, load_tokenizer
from .wanvideo.video.picture import fit_images, shown
from .wanvideo.video.recording import Recording
from .wanvideo.video.soundtrack import Soundtrack, Waveform
from .wanvideo.video.writer import check_output, free_name

TEXT, IMAGE, SAMPLING, OUTPUT = (f"{CATEGORY}/{name}" for name in ("text", "image", "sampling", "output"))
MODES = ("auto", "multitalk", "infinitetalk")
COLOUR_WIDGET = ("disabled", *(name for name in COLOUR_METHODS if name not in ("disabled", "lab")), "lab")
SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True})
NUM_FRAMES = whole(81, 1, 10000, 4)
TILES = {
    "enable_vae_tiling": flag(False),
    "tile_x": whole(272, 40, 2048, 8),
    "tile_y": whole(272, 40, 2048, 8),
    "tile_stride_x": whole(144, 32, 2040, 8),
    "tile_stride_y": whole(128, 32, 2040, 8),
}


@dataclass(frozen=True)
class ClipEmbeds:
    """tokens [1 or R, 257, dim] of the reference pictures."""

    tokens: Tensor


@dataclass(frozen=True)
class TalkingPicture:
    """What a talking video of any length is made of beside its speech. references: [R, 3, H, W] in -1..1."""

    vae: Held
    references: Tensor
    window_frames: int
    motion_frames: int
    mode: str
    colour_match: str
    colour_strength: float
    tiled_vae: bool
    clip: ClipEmbeds | None
    folder: Path | None


@dataclass(frozen=True)
class PlainClip:
    """One clip of a given size. condition: [20, T, H/8, W/8], or None where nothing is known."""

    geometry: VideoGeometry
    condition: Tensor | None
    clip: ClipEmbeds | None


@dataclass(frozen=True)
class Extras:
    """What WanVideoSamplerExtraArgs adds to a sampler."""

    cache: StepCache | None = None
    skip_layers: SkipLayers | None = None
    experimental: Experimental | None = None
    speech: Speech | None = None


@dataclass(frozen=True)
class TalkingVideo:
    """A finished video: its frames in a file, and in memory while they are few."""

    recording: Recording
    soundtrack: Soundtrack | None


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

    def process(
        self, positive_prompt, negative_prompt, t5=None, force_offload=True, model_to_offload=None,
        use_disk_cache=False, device="gpu",
    ):  # fmt: skip
        encoder = expect(t5, Held, "t5")
        if model_to_offload is not None:
            expect(model_to_offload, VideoModel, "model_to_offload").held.rest()
        prompts = _split(positive_prompt)
        *positive, negative = _encode(encoder, [*prompts, negative_prompt], use_disk_cache, device)
        if force_offload:
            encoder.rest()
        return (Prompts(tuple(positive), negative),)


class WanVideoTextEncodeSingle(Node):
    CATEGORY = TEXT
    SEARCH_ALIASES = ["prompt"]
    REQUIRED = {"prompt": text(multiline=True)}
    OPTIONAL = WanVideoTextEncode.OPTIONAL
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDEOTEXTEMBEDS",), ("text_embeds",), "process"

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
    OPTIONAL = {"extender_args": socket("WANVIDEOPROMPTEXTENDER_ARGS")}
    RETURN_TYPES = ("WANVIDEOTEXTEMBEDS", "WANVIDEOTEXTEMBEDS", "STRING")
    RETURN_NAMES = ("text_embeds", "negative_text_embeds", "positive_prompt")
    FUNCTION = "process"

    @classmethod
    def VALIDATE_INPUTS(cls, model_name):
        return TEXT_ENCODERS.check(model_name)

    def process(
        self, model_name, precision, positive_prompt, negative_prompt, quantization="disabled", use_disk_cache=True,
        device="gpu", extender_args=None,
    ):  # fmt: skip
        refuse(extender_args=extender_args)
        encoder = text_encoder(model_name, precision, quantization)
        prompts = _split(positive_prompt)
        *positive, negative = _encode(encoder, [*prompts, negative_prompt], use_disk_cache, device)
        encoder.drop()
        return Prompts(tuple(positive), negative), Prompts((negative,)), positive_prompt


def _split(prompt: str) -> list[str]:
    """Prompts of the windows, parted by |."""
    return [part.strip() for part in prompt.split("|")]


def _encode(encoder: Held, prompts: list[str], use_disk_cache: bool, where: str) -> list[Tensor]:
    def encode(missing: list[str]) -> list[Tensor]:
        tokenizer = load_tokenizer(_tokenizer(encoder))
        model = encoder.ready(place=(lambda: None) if where == "cpu" else None)
        with torch.inference_mode():
            return [embeds.cpu() for embeds in encode_prompts(model, tokenizer, missing)]

    stop_if_interrupted()
    if not use_disk_cache:
        return encode(prompts)
    return TextCache(cache_folder(), encoder.paths, encoder.precision).get(prompts, encode)


def _tokenizer(encoder: Held) -> Path:
    """The encoder's own tokenizer where its file carries one, else the one that all UMT5-XXL files share."""
    if EMBEDDED in encoder.tensors:
        return encoder.paths[0]
    for place in (encoder.paths[0].parent, encoder.paths[0].parent / TOKENIZER, encoder.paths[0].parent / "umt5-xxl"):
        if any((place / name).is_file() for name in ("tokenizer.json", "spiece.model")):
            return place
    return download(TOKENIZER, encoder.paths[0].parent / TOKENIZER)


class WanVideoTextEmbedBridge(Node):
    CATEGORY = TEXT
    SEARCH_ALIASES = ["conditioning", "clip text encode"]
    REQUIRED = {"positive": socket("CONDITIONING")}
    OPTIONAL = {"negative": socket("CONDITIONING")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDEOTEXTEMBEDS",), ("text_embeds",), "process"

    def process(self, positive, negative=None):
        prompts = tuple(without_padding(entry[0][0]) for entry in positive)
        return (Prompts(prompts, without_padding(negative[0][0][0]) if negative else None),)


class WanVideoClipVisionEncode(Node):
    CATEGORY = IMAGE
    SEARCH_ALIASES = ["clip vision", "image embeds"]
    REQUIRED = {
        "clip_vision": socket("CLIP_VISION"),
        "image_1": socket("IMAGE"),
        "strength_1": number(1.0, 0.0, 10.0, 0.001),
        "strength_2": number(1.0, 0.0, 10.0, 0.001),
        "crop": choice("center", "center", "disabled"),
        "combine_embeds": choice("average", "average", "sum", "concat", "batch"),
        "force_offload": flag(True),
    }
    OPTIONAL = {
        "image_2": socket("IMAGE"),
        "negative_image": socket("IMAGE"),
        "tiles": whole(0, 0, 16, 2),
        "ratio": number(0.5, 0.0, 1.0),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDIMAGE_CLIPEMBEDS",), ("image_embeds",), "process"

    def process(
        self, clip_vision, image_1, strength_1=1.0, strength_2=1.0, crop="center", combine_embeds="average",
        force_offload=True, image_2=None, negative_image=None, tiles=0, ratio=0.5,
    ):  # fmt: skip
        refuse(negative_image=negative_image)
        encode = _clip_encoder(clip_vision, crop)
        embeds = []
        with torch.inference_mode():
            for image, strength in ((image_1, strength_1), (image_2, strength_2)):
                if image is not None:
                    tokens = encode_tiled(encode, image, tiles, ratio) if tiles > 1 else encode(image)
                    embeds.append(tokens * strength)
        if force_offload and isinstance(clip_vision, ClipEncoder):
            clip_vision.held.rest()
        return (ClipEmbeds(_combined(embeds, combine_embeds)),)

    def encode(self, clip_vision, image):
        """process under the name that scripts use."""
        return self.process(clip_vision, image)


def _clip_encoder(clip_vision: Any, crop: str) -> Callable[[Tensor], Tensor]:
    if isinstance(clip_vision, ClipEncoder):
        return lambda images: clip_vision.tokens(images, crop)
    if not hasattr(clip_vision, "encode_image"):
        expect(clip_vision, ClipEncoder, "clip_vision")
    crop = "center" if crop == "center" else "none"
    return lambda images: clip_vision.encode_image(images[..., :3], crop=crop)["penultimate_hidden_states"]


def _combined(embeds: list[Tensor], how: str) -> Tensor:
    if len(embeds) == 1:
        return embeds[0]
    if how != "batch" and len(embeds[0]) != len(embeds[1]):
        raise InputError(
            f"image_1 holds {len(embeds[0])} pictures and image_2 {len(embeds[1])}: {how} needs as many. "
            "Use batch, or the same number."
        )
    if how in ("concat", "batch"):
        return torch.cat(embeds, 1 if how == "concat" else 0)
    total = embeds[0] + embeds[1]
    return total / 2 if how == "average" else total


class WanVideoImageToVideoMultiTalk(Node):
    CATEGORY = IMAGE
    SEARCH_ALIASES = ["talking video", "infinitetalk", "multitalk", "lip sync", "long video"]
    REQUIRED = {
        "vae": socket("WANVAE"),
        "width": whole(832, 64, 4096, 8),
        "height": whole(480, 64, 4096, 8),
        "frame_window_size": NUM_FRAMES,
        "motion_frame": whole(25, 1, 10000),
        "force_offload": flag(False),
        "colormatch": choice("disabled", *COLOUR_WIDGET),
    }
    OPTIONAL = {
        "start_image": socket("IMAGE"),
        "tiled_vae": flag(False),
        "clip_embeds": socket("WANVIDIMAGE_CLIPEMBEDS"),
        "mode": choice("auto", *MODES),
        "output_path": text(),
        "colormatch_strength": number(1.0, 0.0, 1.0),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDIMAGE_EMBEDS", "STRING"), ("image_embeds", "output_path"), "process"

    def process(
        self, vae, width=832, height=480, frame_window_size=81, motion_frame=25, force_offload=False,
        colormatch="disabled", start_image=None, tiled_vae=False, clip_embeds=None, mode="auto", output_path="",
        colormatch_strength=1.0,
    ):  # fmt: skip
        if start_image is None:
            raise InputError("start_image is not connected. A talking video needs the picture of who speaks.")
        window = snapped("frame_window_size", frame_window_size)
        motion = snapped("motion_frame", motion_frame)
        VideoGeometry(width, height, window)
        WindowPlan(1, window, motion)
        folder = output_folder() / output_path.strip() if output_path.strip() else None
        if folder:
            check_output(free_name(folder / "talking_video.mp4"))
        clip = clip_embeds and expect(clip_embeds, ClipEmbeds, "clip_embeds")
        picture = TalkingPicture(
            expect(vae, Held, "vae"), fit_images(start_image, width, height), window, motion, mode, colormatch,
            colormatch_strength, tiled_vae, clip, folder,
        )  # fmt: skip
        return picture, str(folder or "")


class WanVideoImageToVideoEncode(Node):
    CATEGORY = IMAGE
    SEARCH_ALIASES = ["image to video", "i2v"]
    REQUIRED = {
        "width": whole(832, 64, 8096, 8),
        "height": whole(480, 64, 8096, 8),
        "num_frames": NUM_FRAMES,
        "noise_aug_strength": number(0.0, 0.0, 10.0, 0.001),
        "start_latent_strength": number(1.0, 0.0, 10.0, 0.001),
        "end_latent_strength": number(1.0, 0.0, 10.0, 0.001),
        "force_offload": flag(True),
    }
    OPTIONAL = {
        "vae": socket("WANVAE"),
        "clip_embeds": socket("WANVIDIMAGE_CLIPEMBEDS"),
        "start_image": socket("IMAGE"),
        "end_image": socket("IMAGE"),
        "control_embeds": socket("WANVIDIMAGE_EMBEDS"),
        "fun_or_fl2v_model": flag(True),
        "temporal_mask": socket("MASK"),
        "extra_latents": socket("LATENT"),
        "tiled_vae": flag(False),
        "add_cond_latents": socket("ADD_COND_LATENTS"),
        "augment_empty_frames": number(0.0, 0.0, 10.0),
        "empty_frame_pad_image": socket("IMAGE"),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDIMAGE_EMBEDS",), ("image_embeds",), "process"

    def process(
        self, width=832, height=480, num_frames=81, noise_aug_strength=0.0, start_latent_strength=1.0,
        end_latent_strength=1.0, force_offload=True, vae=None, clip_embeds=None, start_image=None, end_image=None,
        control_embeds=None, fun_or_fl2v_model=True, temporal_mask=None, extra_latents=None, tiled_vae=False,
        add_cond_latents=None, augment_empty_frames=0.0, empty_frame_pad_image=None,
    ):  # fmt: skip
        refuse(
            control_embeds=control_embeds, temporal_mask=temporal_mask, extra_latents=extra_latents,
            add_cond_latents=add_cond_latents, empty_frame_pad_image=empty_frame_pad_image,
            augment_empty_frames=augment_empty_frames or None, noise_aug_strength=noise_aug_strength or None,
        )  # fmt: skip
        geometry = VideoGeometry(width, height, snapped("num_frames", num_frames))
        clip = clip_embeds and expect(clip_embeds, ClipEmbeds, "clip_embeds")
        if start_image is None and end_image is None:
            return (PlainClip(geometry, None, clip),)
        encoder = expect(vae, Held, "vae")
        start, end = (
            None if images is None else fit_images(images, width, height).transpose(0, 1)
            for images in (start_image, end_image)
        )
        with torch.inference_mode():
            condition = picture_condition(
                encoder.ready(), geometry, start, end, Tiling.default() if tiled_vae else None,
                start_latent_strength, end_latent_strength,
            )  # fmt: skip
        if force_offload:
            encoder.rest()
        return (PlainClip(geometry, condition.cpu(), clip),)


class WanVideoEmptyEmbeds(Node):
    CATEGORY = IMAGE
    SEARCH_ALIASES = ["text to video", "t2v"]
    REQUIRED = {"width": whole(832, 64, 8096, 8), "height": whole(480, 64, 8096, 8), "num_frames": NUM_FRAMES}
    OPTIONAL = {"control_embeds": socket("WANVIDIMAGE_EMBEDS"), "extra_latents": socket("LATENT")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDIMAGE_EMBEDS",), ("image_embeds",), "process"

    def process(self, width=832, height=480, num_frames=81, control_embeds=None, extra_latents=None):
        refuse(control_embeds=control_embeds, extra_latents=extra_latents)
        return (PlainClip(VideoGeometry(width, height, snapped("num_frames", num_frames)), None, None),)


class WanVideoSamplerExtraArgs(Node):
    CATEGORY = SAMPLING
    OPTIONAL = {
        "riflex_freq_index": whole(0, 0, 1000),
        "feta_args": socket("FETAARGS"),
        "context_options": socket("WANVIDCONTEXT"),
        "cache_args": socket("CACHEARGS"),
        "slg_args": socket("SLGARGS"),
        "rope_function": choice("comfy", "default", "comfy", "comfy_chunked"),
        "loop_args": socket("LOOPARGS"),
        "experimental_args": socket("EXPERIMENTALARGS"),
        "unianimate_poses": socket("UNIANIMATE_POSE"),
        "fantasytalking_embeds": socket("FANTASYTALKING_EMBEDS"),
        "uni3c_embeds": socket("UNI3C_EMBEDS"),
        "multitalk_embeds": socket("MULTITALK_EMBEDS"),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDSAMPLEREXTRAARGS",), ("extra_args",), "process"

    def process(
        self, riflex_freq_index=0, feta_args=None, context_options=None, cache_args=None, slg_args=None,
        rope_function="comfy", loop_args=None, experimental_args=None, unianimate_poses=None,
        fantasytalking_embeds=None, uni3c_embeds=None, multitalk_embeds=None,
    ):  # fmt: skip
        refuse(
            riflex_freq_index=riflex_freq_index or None, feta_args=feta_args, context_options=context_options,
            loop_args=loop_args, unianimate_poses=unianimate_poses, fantasytalking_embeds=fantasytalking_embeds,
            uni3c_embeds=uni3c_embeds,
        )  # fmt: skip
        return (
            Extras(
                cache_args and expect(cache_args, StepCache, "cache_args"),
                slg_args and expect(slg_args, SkipLayers, "slg_args"),
                experimental_args and expect(experimental_args, Experimental, "experimental_args"),
                multitalk_embeds and expect(multitalk_embeds, Speech, "multitalk_embeds"),
            ),
        )


class WanVideoSampler(Node):
    CATEGORY = SAMPLING
    SEARCH_ALIASES = ["ksampler", "wan sampler", "talking video"]
    REQUIRED = {
        "model": socket("WANVIDEOMODEL"),
        "image_embeds": socket("WANVIDIMAGE_EMBEDS"),
        "steps": whole(30, 1, 1000),
        "cfg": number(6.0, 0.0, 30.0),
        "shift": number(5.0, 0.0, 1000.0),
        "seed": SEED,
        "force_offload": flag(True),
        "scheduler": SCHEDULER,
        "riflex_freq_index": whole(0, 0, 1000),
    }
    OPTIONAL = {
        "text_embeds": socket("WANVIDEOTEXTEMBEDS"),
        "samples": socket("LATENT"),
        "denoise_strength": number(1.0, 0.0, 1.0),
        "feta_args": socket("FETAARGS"),
        "context_options": socket("WANVIDCONTEXT"),
        "cache_args": socket("CACHEARGS"),
        "flowedit_args": socket("FLOWEDITARGS"),
        "batched_cfg": flag(False),
        "slg_args": socket("SLGARGS"),
        "rope_function": choice("comfy", "default", "comfy", "comfy_chunked"),
        "loop_args": socket("LOOPARGS"),
        "experimental_args": socket("EXPERIMENTALARGS"),
        "sigmas": socket("SIGMAS"),
        "unianimate_poses": socket("UNIANIMATE_POSE"),
        "fantasytalking_embeds": socket("FANTASYTALKING_EMBEDS"),
        "uni3c_embeds": socket("UNI3C_EMBEDS"),
        "multitalk_embeds": socket("MULTITALK_EMBEDS"),
        "freeinit_args": socket("FREEINITARGS"),
        "start_step": whole(0, 0, 10000),
        "end_step": whole(-1, -1, 10000),
        "add_noise_to_samples": flag(False),
    }
    HIDDEN = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("LATENT", "LATENT"), ("samples", "denoised_samples"), "process"

    @classmethod
    def VALIDATE_INPUTS(cls, scheduler=None):
        return check_scheduler(scheduler)

    def process(
        self, model, image_embeds, steps=30, cfg=6.0, shift=5.0, seed=0, force_offload=True, scheduler="unipc",
        riflex_freq_index=0, text_embeds=None, samples=None, denoise_strength=1.0, feta_args=None,
        context_options=None, cache_args=None, flowedit_args=None, batched_cfg=False, slg_args=None,
        rope_function="comfy", loop_args=None, experimental_args=None, sigmas=None, unianimate_poses=None,
        fantasytalking_embeds=None, uni3c_embeds=None, multitalk_embeds=None, freeinit_args=None, start_step=0,
        end_step=-1, add_noise_to_samples=False, unique_id=None, use_tf32=False, force_contiguous_tensors=True,
    ):  # fmt: skip
        refuse(flowedit_args=flowedit_args, freeinit_args=freeinit_args)
        (extras,) = WanVideoSamplerExtraArgs().process(
            riflex_freq_index, feta_args, context_options, cache_args, slg_args, rope_function, loop_args,
            experimental_args, unianimate_poses, fantasytalking_embeds, uni3c_embeds, multitalk_embeds,
        )  # fmt: skip
        if use_tf32:
            extras = replace(extras, experimental=Experimental(use_tf32=True))
        schedule = make_schedule(scheduler, steps, shift, start_step, end_step, sigmas)
        job = Job(
            expect(model, VideoModel, "model"), image_embeds, expect(text_embeds, Prompts, "text_embeds"),
            schedule, cfg, seed, extras, _latents(samples), denoise_strength, add_noise_to_samples,
        )  # fmt: skip
        return job.run(RunProgress(unique_id), force_offload)


class WanVideoSamplerv2(Node):
    CATEGORY = SAMPLING
    SEARCH_ALIASES = WanVideoSampler.SEARCH_ALIASES
    REQUIRED = {
        "model": socket("WANVIDEOMODEL"),
        "image_embeds": socket("WANVIDIMAGE_EMBEDS"),
        "cfg": number(6.0, 0.0, 30.0),
        "seed": SEED,
        "force_offload": flag(True),
        "scheduler": socket("WANVIDEOSCHEDULER"),
    }
    OPTIONAL = {
        "text_embeds": socket("WANVIDEOTEXTEMBEDS"),
        "samples": socket("LATENT"),
        "add_noise_to_samples": flag(False),
        "extra_args": socket("WANVIDSAMPLEREXTRAARGS"),
    }
    HIDDEN = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("LATENT", "LATENT"), ("samples", "denoised_samples"), "process"

    def process(
        self, model, image_embeds, cfg=6.0, seed=0, force_offload=True, scheduler=None, text_embeds=None,
        samples=None, add_noise_to_samples=False, extra_args=None, unique_id=None,
    ):  # fmt: skip
        job = Job(
            expect(model, VideoModel, "model"), image_embeds, expect(text_embeds, Prompts, "text_embeds"),
            expect(scheduler, Schedule, "scheduler"), cfg, seed, expect(extra_args or Extras(), Extras, "extra_args"),
            _latents(samples), 1.0, add_noise_to_samples,
        )  # fmt: skip
        return job.run(RunProgress(unique_id), force_offload)


def _latents(samples: Any) -> Tensor | None:
    """[16, T, H/8, W/8] of a LATENT."""
    if samples is None:
        return None
    return samples["samples"][0]


@dataclass(frozen=True)
class Job:
    """Everything that a sampler node is given."""

    model: VideoModel
    images: Any
    prompts: Prompts
    schedule: Schedule
    cfg: float
    seed: int
    extras: Extras
    samples: Tensor | None
    denoise_strength: float
    add_noise_to_samples: bool

    def run(self, progress: RunProgress, force_offload: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """The LATENT of both outputs, which are one."""
        result = self._checked_run(progress)
        if force_offload:
            self.model.held.rest()
        return result, result

    def _checked_run(self, progress: RunProgress) -> dict[str, Any]:
        images = expect(self.images, (TalkingPicture, PlainClip), "image_embeds")
        settings = self._settings(images)
        scheduler_of(settings)
        speech = self.extras.speech
        if speech and not self.model.mode:
            raise InputError("The model has no audio adapter, so nobody would speak. Connect MultiTalkModelLoader.")
        check_prompts(self.prompts, settings, has_audio=speech is not None)
        experimental = self.extras.experimental or Experimental()
        with torch.inference_mode(), matmul_modes(experimental.use_tf32, self.model.fp16_accumulation):
            if isinstance(images, PlainClip):
                return self._clip(images, settings, progress)
            return self._talk(images, settings, progress)

    def _settings(self, images: TalkingPicture | PlainClip) -> LoopSettings:
        speech, talking = self.extras.speech, isinstance(images, TalkingPicture)
        audio_cfg = speech.guidance_scale if speech else 1.0
        if speech and self.cfg != 1 and audio_cfg != 1:
            audio_cfg *= self.cfg  # what the graphs of WanVideoWrapper mean by these two numbers
        mode = images.mode if talking and images.mode != "auto" else self.model.mode
        return LoopSettings(
            mode=mode or "infinitetalk",
            window_frames=images.window_frames if talking else images.geometry.num_frames,
            motion_frames=images.motion_frames if talking else 1,
            scheduler=self.schedule.name, steps=self.schedule.steps, shift=self.schedule.shift,
            start_step=self.schedule.start_step, end_step=self.schedule.end_step, sigmas=self.schedule.sigmas,
            guidance_scale=self.cfg, audio_guidance_scale=audio_cfg, audio_scale=speech.scale if speech else 1.0,
            denoise_strength=self.denoise_strength, add_noise_to_samples=self.add_noise_to_samples,
            colour_match=images.colour_match if talking else "disabled",
            colour_strength=images.colour_strength if talking else 1.0,
            tiled_vae=images.tiled_vae if talking else False,
            step_cache=self.extras.cache, skip_layers=self.extras.skip_layers,
        )  # fmt: skip

    def _talk(self, images: TalkingPicture, settings: LoopSettings, progress: RunProgress) -> dict[str, Any]:
        height, width = images.references.shape[-2:]
        speech = self.extras.speech
        conditioning = make_conditioning(
            settings, images.references, self.prompts, speech.num_frames if speech else settings.window_frames,
            features=speech and speech.features, silence=speech and speech.silence,
            speaker_masks=speech and speech.masks(width, height), image_embeds=images.clip and images.clip.tokens,
            samples=self.samples,
        )  # fmt: skip
        geometry = VideoGeometry(width, height, settings.window_frames)
        plan = WindowPlan(conditioning.total_frames, settings.window_frames, settings.motion_frames)
        fps = speech.fps if speech else FPS
        work = work_of(settings, len(speech.features) if speech else 0, min(len(images.references), len(plan)))
        transformer, expected = self.model.ready(plan, geometry, settings, work, images.vae)
        settings = replace(settings, tiled_vae=expected.tiled_vae)
        recording = Recording(temporary_file("talking_video", ".mp4"), width, height, fps)
        with recording:
            vae = images.vae.ready()
            windows = run_windows(
                transformer, vae, conditioning, settings, self.seed, progress, self.model.stream_more
            )  # fmt: skip
            for window in windows:
                recording.write(finished(window, plan))
                last = window.latents
        video = TalkingVideo(recording, speech and speech.soundtrack)
        path = recording.path
        if images.folder:
            path = recording.publish(free_name(images.folder / "talking_video.mp4"), video.soundtrack)
            logger.info("The video is in %s", path)
        return {"samples": last[None].cpu(), "talking_video": video, "output_path": str(path)}

    def _clip(self, images: PlainClip, settings: LoopSettings, progress: RunProgress) -> dict[str, Any]:
        geometry, speech = images.geometry, self.extras.speech
        work = work_of(settings, len(speech.features) if speech else 0, 0)
        windows = WindowPlan(geometry.num_frames, geometry.num_frames, 1)
        transformer, _ = self.model.ready(windows, geometry, settings, work, None)
        condition = images.condition
        if condition is None and transformer.config.in_dim > geometry.latent_shape[0]:
            condition = empty_condition(geometry)
        latents = sample_clip(
            transformer, geometry, condition, settings, seeded_draw(self.seed, 0), text_embeds=self.prompts.positive[0],
            negative_text_embeds=self.prompts.negative, image_embeds=images.clip and images.clip.tokens[:1],
            audio=speech and speech.features, speaker_masks=speech and speech.masks(geometry.width, geometry.height),
            samples=self.samples, on_step=progress,
        )  # fmt: skip
        return {"samples": latents[None].cpu()}


class WanVideoEncode(Node):
    CATEGORY = SAMPLING
    SEARCH_ALIASES = ["vae encode", "video to video"]
    REQUIRED = {"vae": socket("WANVAE"), "image": socket("IMAGE"), **TILES}
    OPTIONAL = {
        "noise_aug_strength": number(0.0, 0.0, 10.0, 0.001),
        "latent_strength": number(1.0, 0.0, 10.0, 0.001),
        "mask": socket("MASK"),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("LATENT",), ("samples",), "encode"

    def encode(
        self, vae, image, enable_vae_tiling=False, tile_x=272, tile_y=272, tile_stride_x=144, tile_stride_y=128,
        noise_aug_strength=0.0, latent_strength=1.0, mask=None,
    ):  # fmt: skip
        refuse(mask=mask, noise_aug_strength=noise_aug_strength or None)
        encoder = expect(vae, Held, "vae")
        tiling = Tiling(tile_y, tile_x, tile_stride_y, tile_stride_x) if enable_vae_tiling else None
        with torch.inference_mode():
            latents = encode_video(encoder.ready(), image, tiling)
        encoder.rest()
        return ({"samples": (latents * latent_strength)[None].cpu()},)


class WanVideoDecode(Node):
    CATEGORY = OUTPUT
    SEARCH_ALIASES = ["vae decode"]
    REQUIRED = {"vae": socket("WANVAE"), "samples": socket("LATENT"), **TILES}
    OPTIONAL = {"normalization": choice("default", "default", "minmax", "none")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("IMAGE",), ("images",), "decode"

    def decode(
        self, vae, samples, enable_vae_tiling=False, tile_x=272, tile_y=272, tile_stride_x=144, tile_stride_y=128,
        normalization="default",
    ):  # fmt: skip
        if "talking_video" in samples:
            return (samples["talking_video"].recording.images(),)
        decoder = expect(vae, Held, "vae")
        tiling = Tiling(tile_y, tile_x, tile_stride_y, tile_stride_x) if enable_vae_tiling else None
        with torch.inference_mode():
            pixels = decoder.ready().decode(samples["samples"][0], tiling=tiling).float().cpu()
        decoder.rest()
        return (shown(pixels.permute(1, 2, 3, 0), normalization),)


class WanVideoPassImagesFromSamples(Node):
    CATEGORY = OUTPUT
    SEARCH_ALIASES = ["frames", "images from samples"]
    REQUIRED = {"samples": socket("LATENT")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("IMAGE", "STRING"), ("images", "output_path"), "decode"

    def decode(self, samples):
        video = _talking_video(samples)
        return video.recording.images(), samples["output_path"]


class WanVideoTalkingVideo(Node):
    CATEGORY = OUTPUT
    SEARCH_ALIASES = ["video from samples", "talking video", "long video"]
    REQUIRED = {"samples": socket("LATENT")}
    OPTIONAL = {"audio": socket("AUDIO")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("VIDEO",), ("video",), "process"

    def process(self, samples, audio=None):
        video = _talking_video(samples)
        soundtrack = Soundtrack((Waveform(*samples_of(audio, "audio")),)) if audio else video.soundtrack
        return (video_from_file(video.recording.publish(temporary_file("talking_video", ".mp4"), soundtrack)),)


def _talking_video(samples: Any) -> TalkingVideo:
    if "talking_video" not in samples:
        raise InputError("These samples are latents without finished frames. Use WanVideoDecode with a VAE for them.")
    return samples["talking_video"]


NODES = (
    WanVideoTextEncode,
    WanVideoTextEncodeSingle,
    WanVideoTextEncodeCached,
    WanVideoTextEmbedBridge,
    WanVideoClipVisionEncode,
    WanVideoImageToVideoMultiTalk,
    WanVideoImageToVideoEncode,
    WanVideoEmptyEmbeds,
    WanVideoSamplerExtraArgs,
    WanVideoSampler,
    WanVideoSamplerv2,
    WanVideoEncode,
    WanVideoDecode,
    WanVideoPassImagesFromSamples,
    WanVideoTalkingVideo,
)
