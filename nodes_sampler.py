"""Nodes that sample, decode and give out the video."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .nodes_audio import samples_of
from .nodes_common import (
    Node,
    RunProgress,
    choice,
    expect,
    flag,
    logger,
    number,
    refuse,
    socket,
    temporary_file,
    video_from_file,
    whole,
)
from .nodes_conditioning import OUTPUT, SAMPLING, PlainClip, TalkingPicture
from .nodes_model_loading import VideoModel
from .nodes_options import SCHEDULER, Experimental, Schedule, check_scheduler, make_schedule
from .wanvideo.engine.conditioning import Clip, Prompts, Speech, make_conditioning
from .wanvideo.engine.host import ModelHandle
from .wanvideo.engine.render import render, render_clip
from .wanvideo.errors import InputError
from .wanvideo.geometry import FPS, WindowPlan
from .wanvideo.models.vae_tiling import Tiling
from .wanvideo.request import LoopSettings, SkipLayers, StepCache
from .wanvideo.sampling.clip import encode_video
from .wanvideo.sampling.setup import SamplingSetup
from .wanvideo.video.picture import to_images
from .wanvideo.video.recording import Recording
from .wanvideo.video.soundtrack import Soundtrack, Waveform
from .wanvideo.video.writer import free_name

SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True})


TILES = {
    "enable_vae_tiling": flag(False),
    "tile_x": whole(272, 40, 2048, 8),
    "tile_y": whole(272, 40, 2048, 8),
    "tile_stride_x": whole(144, 32, 2040, 8),
    "tile_stride_y": whole(128, 32, 2040, 8),
}


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
            self.model.handle.offload()
        return result, result

    def _checked_run(self, progress: RunProgress) -> dict[str, Any]:
        images = expect(self.images, (TalkingPicture, PlainClip), "image_embeds")
        if self.extras.speech and not self.model.mode:
            raise InputError("The model has no audio adapter, so nobody would speak. Connect MultiTalkModelLoader.")
        setup = SamplingSetup.of(self._settings(images), has_audio=self.extras.speech is not None)
        use_tf32 = self.extras.experimental is not None and self.extras.experimental.use_tf32
        if isinstance(images, PlainClip):
            clip = Clip(
                images.geometry, images.condition, self.prompts, images.clip and images.clip.tokens[:1],
                self.extras.speech, self.samples,
            )  # fmt: skip
            latents = render_clip(self.model.engine(None, use_tf32), clip, setup, self.seed, progress)
            return {"samples": latents[None].cpu()}
        return self._talk(images, setup, use_tf32, progress)

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
            color_match=images.color_match if talking else "disabled",
            color_strength=images.color_strength if talking else 1.0,
            tiled_vae=images.tiled_vae if talking else False,
            step_cache=self.extras.cache, skip_layers=self.extras.skip_layers,
        )  # fmt: skip

    def _talk(
        self, images: TalkingPicture, setup: SamplingSetup, use_tf32: bool, progress: RunProgress
    ) -> dict[str, Any]:
        speech, settings = self.extras.speech, setup.settings
        num_frames, fps = (speech.num_frames, speech.fps) if speech else (settings.window_frames, FPS)
        masks = speech and speech.masks(images.picture_size, images.width, images.height)
        pictures, source = images.pictures(WindowPlan(num_frames, settings.window_frames, settings.motion_frames), fps)
        conditioning = make_conditioning(
            setup, pictures, self.prompts, num_frames, audio=speech and speech.audio, speaker_masks=masks,
            image_embeds=images.image_embeds(pictures), samples=self.samples, fps=fps,
            source=source,
        )  # fmt: skip
        recording = Recording(temporary_file("talking_video", ".mp4"), images.width, images.height, fps)
        engine = self.model.engine(images.vae, use_tf32)
        for window in render(engine, conditioning, setup, self.seed, [recording], progress):
            latents = window.latents
        video = TalkingVideo(recording, speech and speech.soundtrack)
        path = recording.path
        if images.folder:
            path = recording.publish(free_name(images.folder / "talking_video.mp4"), video.soundtrack)
            logger.info("The video is in %s", path)
        return {"samples": latents[None].cpu(), "talking_video": video, "output_path": str(path)}


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
        encoder = expect(vae, ModelHandle, "vae")
        tiling = Tiling(tile_y, tile_x, tile_stride_y, tile_stride_x) if enable_vae_tiling else None
        with torch.inference_mode():
            latents = encode_video(encoder.load(), image, tiling)
        encoder.offload()
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
        decoder = expect(vae, ModelHandle, "vae")
        tiling = Tiling(tile_y, tile_x, tile_stride_y, tile_stride_x) if enable_vae_tiling else None
        with torch.inference_mode():
            pixels = decoder.load().decode(samples["samples"][0], tiling=tiling).float().cpu()
        decoder.offload()
        return (to_images(pixels.permute(1, 2, 3, 0), normalization),)


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
    WanVideoSamplerExtraArgs,
    WanVideoSampler,
    WanVideoSamplerv2,
    WanVideoEncode,
    WanVideoDecode,
    WanVideoPassImagesFromSamples,
    WanVideoTalkingVideo,
)
