"""A sampler's work: what it is given, checked before anything is loaded, and what comes out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .nodes_base import expect
from .nodes_common import RunProgress, output_folder
from .nodes_conditioning import PlainClip, TalkingPicture
from .nodes_media import check_no_mask, latents_of
from .nodes_model_loading import VideoModel, run_vae
from .nodes_options import Experimental, Schedule
from .nodes_parallel import check_readable, renderer
from .wanvideo.checkpoints.checkpoint import check_image_to_video, check_speakers
from .wanvideo.engine.conditioning import Clip, Prompts, Speech, check_prompts, make_conditioning
from .wanvideo.engine.manifests import manifest_of_conditioning
from .wanvideo.engine.recorded import begin_run, record
from .wanvideo.engine.render import render_clip
from .wanvideo.engine.talk import audio_guidance_of
from .wanvideo.errors import InputError
from .wanvideo.geometry import DEFAULT_WINDOW, FPS, VideoGeometry
from .wanvideo.models.vae_tiling import Tiling
from .wanvideo.request import Apg, LoopSettings, SkipLayers, StepCache
from .wanvideo.runs.find import free_run
from .wanvideo.runs.store import VIDEO
from .wanvideo.sampling.clip import encode_video
from .wanvideo.sampling.sampler import check_samples
from .wanvideo.sampling.setup import SamplingSetup
from .wanvideo.video.recording import Recording
from .wanvideo.video.regions import say_if_other_shape


@dataclass(frozen=True)
class Extras:
    """What WanVideoSamplerExtraArgs adds to a sampler."""

    cache: StepCache | None = None
    skip_layers: SkipLayers | None = None
    experimental: Experimental | None = None
    speech: Speech | None = None
    apg: Apg | None = None


@dataclass(frozen=True)
class TalkingVideo:
    """A finished video: its frames in a file, and in memory while they are few.

    latents: [1, 16, T, h, w] of its only window; None where it has several.
    """

    recording: Recording
    latents: Tensor | None


# What is linked to a sampler in the order in which it is computed: what is most often wrong, sounds and masks, comes
# first, and what little costs most to encode last.
LAZY = (("extra_args", "multitalk_embeds"), ("image_embeds",), ("text_embeds", "samples"))


def still_needed(inputs: dict[str, Any], job: Job, unsure: Collection[str] = ()) -> list[str]:
    """What check_lazy_status answers: inputs to compute next, once what is there already has been checked.

    So nothing is encoded for a graph that cannot run.
    Args: inputs: None for those that are linked and not computed. unsure: of them those that come from other packs'
        nodes, a switch of which may have given None: ComfyUI takes what is there already out of the answer, and runs
        the node if nothing is left of it.
    """
    job.check()
    asked: list[str] = []
    for names in LAZY:
        missing = [name for name in names if name in inputs and inputs[name] is None]
        asked += missing
        if set(missing).difference(unsure):
            break
    return asked


class TalkingLatents(dict[str, Any]):
    """The LATENT of a talking video: its frames are in a file, and latents are kept of a single window only."""

    def __missing__(self, key: str) -> Any:
        if key == "video":  # what WanVideoWrapper has there: [F, H, W, 3] in 0..1
            return self["talking_video"].recording.images()
        if key == "samples":
            raise InputError(
                "These samples are a talking video of several windows, whose latents do not join to one video. "
                "Take its frames from WanVideoPassImagesFromSamples, WanVideoDecode or WanVideoTalkingVideo."
            )
        raise KeyError(key)

    def copy(self) -> TalkingLatents:
        """As nodes copy a LATENT before they change it."""
        return TalkingLatents(self)


@dataclass(frozen=True)
class Job:
    """Everything that a sampler node is given; None for what is not computed yet."""

    model: Any
    images: Any
    prompts: Any
    schedule: Schedule
    cfg: Any
    seed: int
    extras: Extras
    samples: Any
    denoise_strength: float
    add_noise_to_samples: bool

    def run(self, progress: RunProgress, force_offload: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """The LATENT of both outputs, which are one."""
        result = self._checked_run(progress)
        if force_offload:
            self.model.handle.offload()
        return result, result

    def check(self) -> SamplingSetup:
        """Everything that can be told before a model is loaded, as far as it is computed yet."""
        model = expect(self.model, VideoModel, "model")
        images = self.images or PlainClip(VideoGeometry(64, 64, DEFAULT_WINDOW), None, None)
        expect(images, (TalkingPicture, PlainClip), "image_embeds")
        if isinstance(images, TalkingPicture):
            check_readable(model, images.vae)
        if self.extras.speech and not model.mode:
            raise InputError("The model has no audio adapter, so nobody would speak. Connect MultiTalkModelLoader.")
        if self.extras.speech is not None:
            check_speakers(model.audio_checkpoint, self.extras.speech.audio.num_speakers)
            if isinstance(images, TalkingPicture):
                self.extras.speech.masks(images.picture_size, images.width, images.height)
        if isinstance(images, TalkingPicture) or images.condition is not None or images.clip is not None:
            check_image_to_video(model.handle.checkpoint)
        setup = SamplingSetup.of(self._settings(images), has_audio=self.extras.speech is not None)
        if self.prompts is not None:
            check_prompts(expect(self.prompts, Prompts, "text_embeds"), setup)
        return setup

    def _latents(self, width: int, height: int) -> Tensor | None:
        """[16, T, H/8, W/8] of a LATENT for a video of this size."""
        if self.samples is None:
            return None
        check_no_mask(self.samples)
        latents = latents_of(self.samples)
        check_samples(latents, VideoGeometry(width, height, DEFAULT_WINDOW))
        return latents

    def _checked_run(self, progress: RunProgress) -> dict[str, Any]:
        images = expect(self.images, (TalkingPicture, PlainClip), "image_embeds")
        expect(self.prompts, Prompts, "text_embeds")
        setup = self.check()
        use_tf32 = self.extras.experimental is not None and self.extras.experimental.use_tf32
        if isinstance(images, PlainClip):
            clip = Clip(
                images.geometry, images.condition, self.prompts, images.clip.tokens[:1] if images.clip else None,
                self.extras.speech, self._latents(images.geometry.width, images.geometry.height),
            )  # fmt: skip
            latents = render_clip(self.model.engine(None, use_tf32), clip, setup, self.seed, progress)
            return {"samples": latents[None].cpu()}
        return self._talk(images, setup, use_tf32, progress)

    def _settings(self, images: TalkingPicture | PlainClip) -> LoopSettings:
        speech = self.extras.speech
        audio_cfg = speech.guidance_scale if speech else 1.0
        cfg = tuple(self.cfg) if isinstance(self.cfg, list) else self.cfg
        if audio_cfg != 1 and isinstance(cfg, tuple):
            raise InputError(
                "A cfg list leaves no room for audio guidance. Set audio_cfg_scale to 1, or cfg to a number."
            )
        audio_cfg = audio_guidance_of(audio_cfg, cfg)
        mode = images.mode if images.mode != "auto" else self.model.mode
        return LoopSettings(
            mode=mode or "infinitetalk",
            window_frames=images.window_frames, motion_frames=images.motion_frames,
            scheduler=self.schedule.name, steps=self.schedule.steps, shift=self.schedule.shift,
            start_step=self.schedule.start_step, end_step=self.schedule.end_step, sigmas=self.schedule.sigmas,
            guidance_scale=cfg, audio_guidance_scale=audio_cfg, audio_scale=speech.scale if speech else 1.0,
            denoise_strength=self.denoise_strength, add_noise_to_samples=self.add_noise_to_samples,
            color_match=images.color_match, color_strength=images.color_strength, tiled_vae=images.tiled_vae,
            step_cache=self.extras.cache, skip_layers=self.extras.skip_layers, apg=self.extras.apg,
            reanchor=images.reanchor,
        )  # fmt: skip

    def _talk(
        self, images: TalkingPicture, setup: SamplingSetup, use_tf32: bool, progress: RunProgress
    ) -> dict[str, Any]:
        speech, settings, samples = self.extras.speech, setup.settings, self._latents(images.width, images.height)
        num_frames, fps = (speech.num_frames, speech.fps) if speech else (settings.window_frames, FPS)
        masks = speech.masks(images.picture_size, images.width, images.height) if speech else None
        if speech and masks is not None and speech.regions is not None:
            say_if_other_shape(speech.regions, images.picture_size, images.width, images.height)
        pictures = images.pictures(num_frames, fps)
        plan = pictures.plan
        conditioning = make_conditioning(
            setup, pictures.references, self.prompts, plan.total_frames or num_frames,
            audio=speech.audio if speech else None, speaker_masks=masks,
            image_embeds=images.image_embeds(pictures.references), samples=samples, fps=fps,
            source=pictures.source, cuts=plan.cuts,
        )  # fmt: skip
        engine, crf = self.model.engine(images.vae, use_tf32), images.source.file_crf
        manifest = manifest_of_conditioning(conditioning, setup, self.seed, engine, images.identity(), crf)
        folder = free_run((images.folder or output_folder()) / "talking_video")
        run, needed = begin_run(manifest, folder, lambda: conditioning, setup, speech.soundtrack if speech else None)
        recording = Recording(run.folder / VIDEO, images.width, images.height, fps, run.manifest.progress.num_frames)
        latents = None
        if run.manifest.progress.num_windows:
            progress.show(run.video or run.growing, run.manifest.progress.num_windows, len(plan))
        by = renderer(self.model, images.vae, engine)

        def show(num_windows: int) -> None:
            if num_windows < len(plan):  # behind the last one the file is joined with its sound, and goes away
                progress.show(run.growing, num_windows, len(plan))

        if needed is None:  # all windows are there
            run.close()
        else:
            for window in record(engine, needed, setup, self.seed, run, [recording], progress, by=by, on_commit=show):
                latents = window.latents
        path = run.folder / VIDEO
        if images.folder:
            path = run.save_as()
        assert run.video is not None, "its last window is there"
        recording.path = run.video
        progress.show(path, len(plan), len(plan))
        progress.finish(path, run.folder)
        kept = None
        if len(plan) == 1:
            if latents is None:  # an earlier run had the window and only did not finish the file
                latents = _encoded(images, recording, settings.tiled_vae)
            kept = latents[None].cpu()
        result = TalkingLatents(talking_video=TalkingVideo(recording, kept), output_path=str(path))
        return result if kept is None else TalkingLatents(result, samples=kept)


def _encoded(images: TalkingPicture, recording: Recording, tiled_vae: bool) -> Tensor:
    """Latents [16, T, H/8, W/8] of a video's frames."""
    return run_vae(
        images.vae, (images.width, images.height, recording.num_frames), Tiling.default() if tiled_vae else None,
        lambda vae, tiles: encode_video(vae, recording.read(0), tiles),
    )  # fmt: skip


def is_talking_video(samples: Any) -> bool:
    """Whether a LATENT is a talking video whose latents no other node has changed."""
    video = samples.get("talking_video") if isinstance(samples, dict) else None
    return video is not None and samples.get("samples") is video.latents


def talking_video_of(samples: Any) -> TalkingVideo:
    if not is_talking_video(samples):
        raise InputError("These samples are latents without finished frames. Use WanVideoDecode with a VAE for them.")
    video: TalkingVideo = samples["talking_video"]
    return video
