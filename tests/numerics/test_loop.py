"""The window loop, end to end, against reference vectors; and its own promises."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support import recipes
from support.checks import psnr
from support.tiny import tiny_transformer

from wanvideo import Conditioning, LoopSettings, run_windows
from wanvideo.errors import InputError

DATA = Path(__file__).parent / "data"
LOOPS = ("infinitetalk_distill", "infinitetalk_audio_cfg", "multitalk_two")
SAMPLER_LOOPS = (
    "infinitetalk",
    "infinitetalk_audio_cfg",
    "infinitetalk_prompts",
    "infinitetalk_short",
    "multitalk_two",
)
FEATURE = recipes.TINY_AUDIO["layers"], recipes.TINY_AUDIO["channels"]


def read(name):
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        case = json.loads(file.metadata()["case"])
    return case, load_file(DATA / f"{name}.safetensors")


def compare(windows, vectors, num_frames, checked=None):
    frames = torch.cat([window.pixels[-window.num_new :] for window in windows])
    for window in windows[:checked]:
        assert (window.latents - vectors[f"latents.{window.index}"]).abs().max() <= 1e-3
    assert psnr(frames[:num_frames], vectors["frames"][:num_frames].float()) >= 60


@pytest.mark.parametrize("name", LOOPS)
def test_loop(models, name):
    case, vectors = read(f"loop_{name}")
    height, width, seed, speakers = case["H"], case["W"], case["seed"], case["speakers"]
    pictures = recipes.tensor("in.image", (1, 3, case["images"], height, width), seed, 0.4).clamp(-1, 1)[0]
    conditioning = Conditioning(
        references=pictures.transpose(0, 1),
        text_embeds=[recipes.tensor("in.text_embeds", (37, 48), seed)],
        image_embeds=recipes.tensor("in.image_embeds", (1, 257, 1280), seed),
        audio=[recipes.tensor(f"in.audio.{s}", (case["frames"], *FEATURE), seed) for s in range(speakers)],
        silence=recipes.tensor("in.silence", (1, *FEATURE), seed),
        speaker_masks=recipes.speaker_masks(height // 8, width // 8, speakers),
    )
    settings = LoopSettings(
        mode=case["mode"], window_frames=case["F"], motion_frames=case["m"], scheduler=case["scheduler"],
        steps=case["steps"], shift=case["shift"], guidance_scale=1.0, audio_guidance_scale=case["audio_cfg"],
        color_match=case["colormatch"],
    )  # fmt: skip
    asked = []

    def draw(shape):
        asked.append(list(shape))
        return recipes.tensor(f"draw.{len(asked) - 1}", shape, seed)

    windows = list(run_windows(*models, conditioning, settings, draw))
    assert asked == case["draws"] and len(windows) == case["windows"]
    compare(windows, vectors, case["frames"])


def sampler_inputs(case):
    """The inputs of a case as the vectors were made from them."""
    seed, height, width, speakers = case["seed"], case["height"], case["width"], case["speakers"]
    pictures = torch.stack([recipes.image(f"start.{k}", height, width, seed) for k in range(case["images"])])
    return Conditioning(
        references=pictures.permute(0, 3, 1, 2) * 2 - 1,
        text_embeds=[recipes.tensor(f"in.text_embeds.{p}", (37, 48), seed) for p in range(case["prompts"])],
        negative_text_embeds=recipes.tensor("in.negative_text_embeds", (21, 48), seed),
        image_embeds=recipes.tensor("in.image_embeds", (1, 257, 1280), seed),
        audio=[recipes.tensor(f"in.audio.{s}", (case["audio_frames"], *FEATURE), seed) for s in range(speakers)],
        silence=recipes.tensor("in.silence", (90, *FEATURE), seed),
        speaker_masks=recipes.speaker_masks(height // 8, width // 8, speakers),
    )


def sampler_settings(case):
    # The vectors' three-pass form multiplies the audio term by the text scale too.
    text, audio = case["cfg"], case["audio_cfg_scale"]
    return LoopSettings(
        mode=case["mode"], window_frames=case["window"], motion_frames=case["motion_frame"],
        scheduler=case["scheduler"], steps=case["steps"], shift=case["shift"], guidance_scale=text,
        audio_guidance_scale=audio * text if text != 1 and audio != 1 else audio, audio_scale=case["audio_scale"],
        start_step=case["start_step"], denoise_strength=case["denoise_strength"], color_match=case["colormatch"],
    )  # fmt: skip


@pytest.mark.parametrize("name", SAMPLER_LOOPS)
def test_sampler_loop(models, name):
    case, vectors = read(f"sampler_loop_{name}")
    names = iter(name for name, _ in case["draws"][1:])  # the first draw is thrown away by the reference
    windows = list(
        run_windows(
            *models, sampler_inputs(case), sampler_settings(case),
            lambda shape: recipes.tensor(next(names), shape, case["seed"]),
        )
    )  # fmt: skip
    assert next(names, None) is None
    assert [w.start for w in windows] == [w["audio_range"][0] for w in case["windows"]]
    assert [w.num_new for w in windows] == [w["frames"][1] - w["frames"][0] for w in case["windows"]]
    reversed_tail = case["audio_tail"] == "reversed"
    checked = len(windows) - 1 if reversed_tail else len(windows)
    frames = case["windows"][checked - 1]["frames"][1]
    compare(windows, vectors, frames, checked)


def small(**changes):
    return Conditioning(
        **{
            **dict(
                references=torch.zeros(1, 3, 32, 32),
                text_embeds=[recipes.tensor("text", (5, 48), 1)],
                audio=[recipes.tensor("audio", (22, *FEATURE), 1)],
                silence=recipes.tensor("silence", (4, *FEATURE), 1),
            ),
            **changes,
        }
    )


FAST = LoopSettings(
    window_frames=13,
    motion_frames=5,
    scheduler="euler",
    steps=2,
    shift=3.0,
    guidance_scale=1.0,
    audio_guidance_scale=1.0,
)


def test_same_seed_same_frames_and_another_seed_others(models):
    first, again, other = (
        torch.cat([w.pixels for w in run_windows(*models, small(), FAST, seed)]) for seed in (7, 7, 8)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_without_sound_a_video_has_the_length_that_is_asked_for(models):
    windows = list(run_windows(*models, small(audio=None, num_frames=21), FAST, 1))
    assert [w.num_new for w in windows] == [13, 8]
    with pytest.raises(InputError, match="num_frames"):
        next(run_windows(*models, small(audio=None), FAST, 1))


def test_a_transformer_without_adapter_animates_a_picture(models):
    windows = list(run_windows(tiny_transformer(adapter=False), models[1], small(audio=None, num_frames=13), FAST, 1))
    assert len(windows) == 1 and windows[0].pixels.isfinite().all()


def test_steps_are_reported_and_can_end_a_run(models):
    seen = []

    def watch(report):
        seen.append((report.window_index, report.num_windows, report.step_index, report.num_steps))
        assert report.denoised.shape == (16, 4, 4, 4)
        if len(seen) == 3:
            raise KeyboardInterrupt

    run = run_windows(*models, small(), FAST, 1, watch)
    next(run)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    assert seen == [(0, 3, 0, 2), (0, 3, 1, 2), (1, 3, 0, 2)]


def test_a_source_video_is_the_start(models):
    """With little noise the result stays near the source; past its end the last latent repeats."""
    from dataclasses import replace

    samples = recipes.tensor("samples", (16, 3, 4, 4), 2)
    near, far = (
        next(run_windows(*models, small(samples=samples), replace(FAST, denoise_strength=d, steps=8), 1)).latents[:, 1:]
        for d in (0.2, 1.0)
    )
    target = samples[:, [1, 2, 2]]
    assert (near - target).norm() < (far - target).norm()


def test_guidance_needs_a_negative_prompt(models):
    from dataclasses import replace

    with pytest.raises(InputError, match="negative"):
        next(run_windows(*models, small(), replace(FAST, guidance_scale=5.0), 1))


@pytest.mark.parametrize("method", ["mkl", "lab", "reinhard"])
def test_colors_are_held_to_the_reference(models, method):
    from dataclasses import replace

    picture = recipes.image("p", 32, 32, 1).permute(2, 0, 1)[None] * 2 - 1
    conditioning = small(references=picture)
    plain, matched = (
        next(run_windows(*models, conditioning, replace(FAST, color_match=m), 1)).pixels for m in ("disabled", method)
    )
    target = picture[0].mean((1, 2))
    assert (matched.mean((0, 1, 2)) - target).abs().max() < (plain.mean((0, 1, 2)) - target).abs().max()
