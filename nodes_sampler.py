"""Nodes that sample, decode and give out the video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .nodes_base import Node, advanced, checked, choice, expect, flag, number, refuse, socket, unsupported, whole
from .nodes_common import RunProgress, inputs_of_others, temporary_file, video_from_file
from .nodes_conditioning import OUTPUT, SAMPLING
from .nodes_job import Extras, Job, is_talking_video, still_needed, talking_video_of
from .nodes_media import latents_of, samples_of, size_of
from .nodes_model_loading import ANY_VAE, run_vae, vae_of
from .nodes_options import SCHEDULER, Experimental, Schedule, check_schedule, make_schedule
from .nodes_preview import TinyPreview
from .wanvideo.engine.conditioning import Prompts, Speech
from .wanvideo.models.vae_tiling import Tiling
from .wanvideo.request import Apg, SkipLayers, StepCache
from .wanvideo.sampling.clip import encode_video
from .wanvideo.video.picture import to_images
from .wanvideo.video.soundtrack import Soundtrack, Waveform

SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True})


TILES = {
    "enable_vae_tiling": flag(False),
    "tile_x": whole(272, 40, 2048, 8),
    "tile_y": whole(272, 40, 2048, 8),
    "tile_stride_x": whole(144, 32, 2040, 8),
    "tile_stride_y": whole(128, 32, 2040, 8),
}


def _tiling(
    enable_vae_tiling: bool = False, tile_x: int = 272, tile_y: int = 272, tile_stride_x: int = 144,
    tile_stride_y: int = 128,
) -> Tiling | None:  # fmt: skip
    """What the widgets of TILES say."""
    return Tiling(tile_y, tile_x, tile_stride_y, tile_stride_x) if enable_vae_tiling else None


class TilesNode(Node):
    """A node that works in tiles."""

    @classmethod
    def VALIDATE_INPUTS(cls, enable_vae_tiling=None, tile_x=None, tile_y=None, tile_stride_x=None, tile_stride_y=None):
        sides = {"tile_x": tile_x, "tile_y": tile_y, "tile_stride_x": tile_stride_x, "tile_stride_y": tile_stride_y}

        def check() -> None:
            known = cls.known(**sides)
            if len(known) == len(sides):
                _tiling(bool(enable_vae_tiling), **known)

        return checked(check)


class WanVideoSamplerExtraArgs(Node):
    CATEGORY = SAMPLING
    OPTIONAL = {
        "riflex_freq_index": advanced(whole(0, 0, 1000)),
        "feta_args": unsupported("FETAARGS"),
        "context_options": unsupported("WANVIDCONTEXT"),
        "cache_args": socket("CACHEARGS"),
        "slg_args": socket("SLGARGS"),
        "rope_function": advanced(choice("comfy", "default", "comfy", "comfy_chunked")),
        "loop_args": unsupported("LOOPARGS"),
        "experimental_args": socket("EXPERIMENTALARGS"),
        "unianimate_poses": unsupported("UNIANIMATE_POSE"),
        "fantasytalking_embeds": unsupported("FANTASYTALKING_EMBEDS"),
        "uni3c_embeds": unsupported("UNI3C_EMBEDS"),
        "multitalk_embeds": socket("MULTITALK_EMBEDS"),
        "apg_args": socket("APGARGS"),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDSAMPLEREXTRAARGS",), ("extra_args",), "process"

    def process(
        self, riflex_freq_index=0, feta_args=None, context_options=None, cache_args=None, slg_args=None,
        rope_function="comfy", loop_args=None, experimental_args=None, unianimate_poses=None,
        fantasytalking_embeds=None, uni3c_embeds=None, multitalk_embeds=None, apg_args=None,
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
                apg_args and expect(apg_args, Apg, "apg_args"),
            ),
        )


class WanVideoSampler(Node):
    CATEGORY = SAMPLING
    SEARCH_ALIASES = ["ksampler", "wan sampler", "talking video"]
    REQUIRED = {
        "model": socket("WANVIDEOMODEL"),
        "image_embeds": socket("WANVIDIMAGE_EMBEDS", lazy=True),
        "steps": whole(30, 1, 1000),
        "cfg": number(6.0, 0.0, 30.0),
        "shift": number(5.0, 0.0, 1000.0),
        "seed": SEED,
        "force_offload": flag(True),
        "scheduler": SCHEDULER,
        "riflex_freq_index": advanced(whole(0, 0, 1000)),
    }
    OPTIONAL = {
        "text_embeds": socket("WANVIDEOTEXTEMBEDS", lazy=True),
        "samples": socket("LATENT", lazy=True),
        "denoise_strength": number(1.0, 0.0, 1.0),
        "feta_args": unsupported("FETAARGS"),
        "context_options": unsupported("WANVIDCONTEXT"),
        "cache_args": socket("CACHEARGS"),
        "flowedit_args": unsupported("FLOWEDITARGS"),
        "batched_cfg": advanced(flag(False)),
        "slg_args": socket("SLGARGS"),
        "rope_function": advanced(choice("comfy", "default", "comfy", "comfy_chunked")),
        "loop_args": unsupported("LOOPARGS"),
        "experimental_args": socket("EXPERIMENTALARGS"),
        "sigmas": socket("SIGMAS"),
        "unianimate_poses": unsupported("UNIANIMATE_POSE"),
        "fantasytalking_embeds": unsupported("FANTASYTALKING_EMBEDS"),
        "uni3c_embeds": unsupported("UNI3C_EMBEDS"),
        "multitalk_embeds": socket("MULTITALK_EMBEDS", lazy=True),
        "freeinit_args": unsupported("FREEINITARGS"),
        "start_step": whole(0, 0, 10000),
        "end_step": whole(-1, -1, 10000),
        "add_noise_to_samples": flag(False),
        "apg_args": socket("APGARGS"),
    }
    HIDDEN = {"unique_id": "UNIQUE_ID", "graph": "DYNPROMPT"}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("LATENT", "LATENT"), ("samples", "denoised_samples"), "process"

    @classmethod
    def VALIDATE_INPUTS(
        cls, scheduler=None, steps=None, cfg=None, shift=None, start_step=None, end_step=None, denoise_strength=None,
        riflex_freq_index=None, text_embeds=False, sigmas=False,
    ):  # fmt: skip
        def check() -> None:
            refuse(riflex_freq_index=riflex_freq_index or None)
            known = cls.known(steps=steps, shift=shift, start_step=start_step, end_step=end_step)
            cls.known(cfg=cfg, denoise_strength=denoise_strength)
            check_schedule(scheduler, known, has_sigmas=sigmas is not False)
            if text_embeds is False:
                expect(None, Prompts, "text_embeds")

        return checked(check)

    def process(
        self, model, image_embeds, steps=30, cfg=6.0, shift=5.0, seed=0, force_offload=True, scheduler="unipc",
        riflex_freq_index=0, text_embeds=None, samples=None, denoise_strength=1.0, feta_args=None,
        context_options=None, cache_args=None, flowedit_args=None, batched_cfg=False, slg_args=None,
        rope_function="comfy", loop_args=None, experimental_args=None, sigmas=None, unianimate_poses=None,
        fantasytalking_embeds=None, uni3c_embeds=None, multitalk_embeds=None, freeinit_args=None, start_step=0,
        end_step=-1, add_noise_to_samples=False, unique_id=None, use_tf32=False, force_contiguous_tensors=True,
        apg_args=None, graph=None,
    ):  # fmt: skip
        job = self._job(
            model=model, image_embeds=image_embeds, steps=steps, cfg=cfg, shift=shift, seed=seed, scheduler=scheduler,
            riflex_freq_index=riflex_freq_index, text_embeds=text_embeds, samples=samples,
            denoise_strength=denoise_strength, feta_args=feta_args, context_options=context_options,
            cache_args=cache_args, flowedit_args=flowedit_args, slg_args=slg_args, loop_args=loop_args,
            experimental_args=experimental_args, sigmas=sigmas, unianimate_poses=unianimate_poses,
            fantasytalking_embeds=fantasytalking_embeds, uni3c_embeds=uni3c_embeds, multitalk_embeds=multitalk_embeds,
            freeinit_args=freeinit_args, start_step=start_step, end_step=end_step,
            add_noise_to_samples=add_noise_to_samples, use_tf32=use_tf32, apg_args=apg_args,
        )  # fmt: skip
        return job.run(RunProgress(unique_id, TinyPreview()), force_offload)

    def check_lazy_status(self, unique_id=None, graph=None, **inputs):
        return still_needed(inputs, self._job(**inputs), inputs_of_others(graph, unique_id, Node))

    def _job(
        self, model, image_embeds=None, steps=30, cfg=6.0, shift=5.0, seed=0, scheduler="unipc", riflex_freq_index=0,
        text_embeds=None, samples=None, denoise_strength=1.0, feta_args=None, context_options=None, cache_args=None,
        flowedit_args=None, slg_args=None, loop_args=None, experimental_args=None, sigmas=None, unianimate_poses=None,
        fantasytalking_embeds=None, uni3c_embeds=None, multitalk_embeds=None, freeinit_args=None, start_step=0,
        end_step=-1, add_noise_to_samples=False, use_tf32=False, apg_args=None, **unused,
    ):  # fmt: skip
        refuse(flowedit_args=flowedit_args, freeinit_args=freeinit_args)
        (extras,) = WanVideoSamplerExtraArgs().process(
            riflex_freq_index, feta_args, context_options, cache_args, slg_args, "comfy", loop_args,
            experimental_args, unianimate_poses, fantasytalking_embeds, uni3c_embeds, multitalk_embeds, apg_args,
        )  # fmt: skip
        if use_tf32:
            extras = replace(extras, experimental=Experimental(use_tf32=True))
        schedule = make_schedule(scheduler, steps, shift, start_step, end_step, sigmas)
        return Job(
            model, image_embeds, text_embeds, schedule, cfg, seed, extras, samples, denoise_strength,
            add_noise_to_samples,
        )  # fmt: skip


class WanVideoSamplerv2(Node):
    CATEGORY = SAMPLING
    SEARCH_ALIASES = WanVideoSampler.SEARCH_ALIASES
    REQUIRED = {
        "model": socket("WANVIDEOMODEL"),
        "image_embeds": socket("WANVIDIMAGE_EMBEDS", lazy=True),
        "cfg": number(6.0, 0.0, 30.0),
        "seed": SEED,
        "force_offload": flag(True),
        "scheduler": socket("WANVIDEOSCHEDULER"),
    }
    OPTIONAL = {
        "text_embeds": socket("WANVIDEOTEXTEMBEDS", lazy=True),
        "samples": socket("LATENT", lazy=True),
        "add_noise_to_samples": flag(False),
        "extra_args": socket("WANVIDSAMPLEREXTRAARGS", lazy=True),
    }
    HIDDEN = {"unique_id": "UNIQUE_ID", "graph": "DYNPROMPT"}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("LATENT", "LATENT"), ("samples", "denoised_samples"), "process"

    @classmethod
    def VALIDATE_INPUTS(cls, cfg=None, text_embeds=False):
        def check() -> None:
            cls.known(cfg=cfg)
            if text_embeds is False:
                expect(None, Prompts, "text_embeds")

        return checked(check)

    def process(
        self, model, image_embeds, cfg=6.0, seed=0, force_offload=True, scheduler=None, text_embeds=None,
        samples=None, add_noise_to_samples=False, extra_args=None, unique_id=None, graph=None,
    ):  # fmt: skip
        job = self._job(
            model, image_embeds, cfg, seed, scheduler, text_embeds, samples, add_noise_to_samples, extra_args
        )
        return job.run(RunProgress(unique_id, TinyPreview()), force_offload)

    def check_lazy_status(self, unique_id=None, graph=None, **inputs):
        return still_needed(inputs, self._job(**inputs), inputs_of_others(graph, unique_id, Node))

    def _job(
        self, model, image_embeds=None, cfg=6.0, seed=0, scheduler=None, text_embeds=None, samples=None,
        add_noise_to_samples=False, extra_args=None, **unused,
    ):  # fmt: skip
        return Job(
            model, image_embeds, text_embeds, expect(scheduler, Schedule, "scheduler"), cfg, seed,
            expect(extra_args or Extras(), Extras, "extra_args"), samples, 1.0, add_noise_to_samples,
        )  # fmt: skip


class WanVideoEncode(TilesNode):
    CATEGORY = SAMPLING
    SEARCH_ALIASES = ["vae encode", "video to video"]
    REQUIRED = {"vae": socket(ANY_VAE), "image": socket("IMAGE"), **TILES}
    OPTIONAL = {
        "noise_aug_strength": advanced(number(0.0, 0.0, 10.0, 0.001)),
        "latent_strength": number(1.0, 0.0, 10.0, 0.001),
        "mask": unsupported("MASK"),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("LATENT",), ("samples",), "encode"

    def encode(
        self, vae, image, enable_vae_tiling=False, tile_x=272, tile_y=272, tile_stride_x=144, tile_stride_y=128,
        noise_aug_strength=0.0, latent_strength=1.0, mask=None,
    ):  # fmt: skip
        refuse(mask=mask, noise_aug_strength=noise_aug_strength or None)
        size_of(image)
        encoder = vae_of(vae)
        tiling = _tiling(enable_vae_tiling, tile_x, tile_y, tile_stride_x, tile_stride_y)
        count, height, width = image.shape[:3]
        latents = run_vae(encoder, (width, height, count), tiling, lambda vae, tiles: encode_video(vae, image, tiles))
        encoder.offload()
        return ({"samples": (latents * latent_strength)[None].cpu()},)


class WanVideoDecode(TilesNode):
    CATEGORY = OUTPUT
    SEARCH_ALIASES = ["vae decode"]
    REQUIRED = {"vae": socket(ANY_VAE), "samples": socket("LATENT"), **TILES}
    OPTIONAL = {"normalization": choice("default", "default", "minmax", "none")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("IMAGE",), ("images",), "decode"

    def decode(
        self, vae, samples, enable_vae_tiling=False, tile_x=272, tile_y=272, tile_stride_x=144, tile_stride_y=128,
        normalization="default",
    ):  # fmt: skip
        if is_talking_video(samples):
            return (samples["talking_video"].recording.images(),)
        latents, decoder = latents_of(samples), vae_of(vae, can_be_tiny=True)
        tiling = _tiling(enable_vae_tiling, tile_x, tile_y, tile_stride_x, tile_stride_y)
        height, width = latents.shape[-2:]
        pixels = run_vae(
            decoder, (8 * width, 8 * height, 4 * latents.shape[1] - 3), tiling,
            lambda vae, tiles: vae.decode(latents, tiling=tiles).float().cpu(),
        )  # fmt: skip
        decoder.offload()
        return (to_images(pixels.permute(1, 2, 3, 0), normalization),)


class WanVideoPassImagesFromSamples(Node):
    CATEGORY = OUTPUT
    SEARCH_ALIASES = ["frames", "images from samples"]
    REQUIRED = {"samples": socket("LATENT")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("IMAGE", "STRING"), ("images", "output_path"), "decode"

    def decode(self, samples):
        video = talking_video_of(samples)
        return video.recording.images(), samples["output_path"]


class WanVideoTalkingVideo(Node):
    CATEGORY = OUTPUT
    SEARCH_ALIASES = ["video from samples", "talking video", "long video"]
    REQUIRED = {"samples": socket("LATENT")}
    OPTIONAL = {"audio": socket("AUDIO")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("VIDEO",), ("video",), "process"

    def process(self, samples, audio=None):
        video = talking_video_of(samples)
        if audio is None:
            return (video_from_file(video.recording.path, Path(samples["output_path"])),)
        soundtrack = Soundtrack((Waveform(*samples_of(audio, "audio")),))
        return (video_from_file(video.recording.publish(temporary_file("talking_video", ".mp4"), soundtrack)),)


NODES = (
    WanVideoSamplerExtraArgs,
    WanVideoSampler,
    WanVideoSamplerv2,
    WanVideoEncode,
    WanVideoDecode,
    WanVideoPassImagesFromSamples,
    WanVideoTalkingVideo,
)
