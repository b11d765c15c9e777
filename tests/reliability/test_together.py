"""Features drawn at random, together: as planned, killed and gone on with, streamed, made longer - the same file.

`WANVIDEO_TOGETHER=300 pytest tests/reliability/test_together.py` draws as many.
"""

import functools
import math
import os
import random
from dataclasses import dataclass, replace

import av
import numpy as np
import pytest
from PIL import Image
from support import jobs
from support import media_files as media

from wanvideo import TalkingVideoPipeline
from wanvideo.errors import TalkError
from wanvideo.keep import SOURCE_ENDS, Camera, Keep
from wanvideo.request import (
    CACHES,
    COLOR_METHODS,
    MODES,
    Apg,
    EngineOptions,
    LoopSettings,
    LoraFile,
    SkipLayers,
    Speaker,
    StepCache,
    TalkRequest,
)
from wanvideo.runs.manifest import Manifest
from wanvideo.sampling.schedulers import SCHEDULERS

NUM_DRAWN = int(os.environ.get("WANVIDEO_TOGETHER", "9"))
STREAMED = {"blocks_to_stream": 1, "prefetch": 2}
MOST_DRAWS = 20  # until one is a request


class Stop(Exception):
    pass


@dataclass(frozen=True)
class Drawn:
    """A request, and how it is made: options but for streaming, and strengths of LoRAs."""

    request: TalkRequest
    options: tuple[tuple[str, object], ...]
    strengths: tuple[float | tuple[float, ...], ...]


@functools.cache
def pipeline(options, strengths):
    loras = tuple(LoraFile(jobs.lora_file(), strength) for strength in strengths)
    files = jobs.official_files("multi", loras=loras)
    return TalkingVideoPipeline(files, EngineOptions(device="cpu", **dict(options)), jobs.official() / "prompts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, videos and sounds of all draws."""
    folder = tmp_path_factory.mktemp("media")
    jobs.picture(folder, 96, 96, "square.png")
    jobs.picture(folder, 131, 70, "odd.png")
    for name, count, fps in (("a.mp4", 40, 25), ("b.mp4", 9, 12)):
        media.video(folder / name, media.numbered_frames(count), fps=fps)
    mask = np.zeros((48, 64), np.uint8)
    mask[12:36, 16:48] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    for number, (seconds, rate) in enumerate(((1.0, 16000), (0.36, 44100), (0.7, 8000))):
        jobs.speech(folder, seconds, f"{number}.wav", rate, frequency=150 + 60 * number)
    return folder


def draw(folder, number):
    """The first draw that is a request."""
    chance = random.Random(number)
    for _ in range(MOST_DRAWS):
        try:
            return _draw(folder, chance)
        except TalkError:
            continue
    raise AssertionError(f"none of {MOST_DRAWS} draws is a request")


def _draw(folder, chance):
    pick, sometimes = chance.choice, lambda share: chance.random() < share
    is_video, window, steps = sometimes(0.4), pick((5, 9)), pick((1, 2, 2, 6))
    settings = LoopSettings(
        mode=pick(MODES), window_frames=window, motion_frames=pick((1, 5)) if window > 5 else 1,
        scheduler=pick(SCHEDULERS), steps=steps, shift=pick((3.0, 7.0)),
        guidance_scale=pick((1.0, 1.0, 3.0, (1.0, 2.0), (3.0, 1.0))), audio_guidance_scale=pick((1.0, 2.0)),
        audio_scale=pick((1.0, 0.5)), apg=Apg() if sometimes(0.25) else None, color_match=pick(COLOR_METHODS),
        color_strength=pick((1.0, 0.5)), tiled_vae=sometimes(0.2), reanchor=pick((0, 0, 1, 2)),
        step_cache=StepCache(pick(CACHES), pick((0.3, 5.0))) if steps > 5 else None,
        skip_layers=SkipLayers((1,)) if sometimes(0.2) else None,
    )  # fmt: skip
    sounds = [str(folder / f"{pick(range(3))}.wav") if sometimes(0.8) else None for _ in range(pick((0, 1, 1, 2)))]
    prompts = ("She talks.", "He sings.")[: pick((1, 2))]
    keep = pick((Keep(box=(8, 8, 40, 50), feather=4), Keep(mask=str(folder / "mask.png"))))
    request = TalkRequest(
        prompts, str(folder / (pick(("a.mp4", "b.mp4")) if is_video else pick(("square.png", "odd.png")))),
        tuple(map(Speaker, sounds)), audio_type=pick(("para", "add")), size=pick(((32, 32), (48, 32))),
        fps=pick((25.0, 25.0, 24.0, 29.97)), max_frames=pick((0, 9, 13, 17)), settings=settings, seed=pick((42, None)),
        keep=keep if is_video and sometimes(0.5) else None, source_end=pick(SOURCE_ENDS) if is_video else "hold",
        camera=Camera(1.3, (0.5, -1.0), 1.0) if not is_video and sometimes(0.2) else None,
        prompt_starts=(0.0, 0.3)[: len(prompts)] if sometimes(0.3) else (), normalize_loudness=sometimes(0.7),
    )  # fmt: skip
    options = {"dtype": pick(("fp32", "fp32", "bf16")), "quantize": pick((None, None, "fp8", "int8", "fp4"))}
    strength = pick((0.5, (0.5,) * steps))
    drawn = Drawn(request, tuple(options.items()), (strength,) * pick((0, 1, 2)))
    pipeline(drawn.options, drawn.strengths).check(request)
    return drawn


def check_file(path, request, plan):
    """Size, number of frames, and sound that is as long as they."""
    frames = media.decoded_frames(path)
    assert frames.shape[:3] == (plan.windows.total_frames, plan.geometry.height, plan.geometry.width)
    with av.open(str(path)) as container:
        assert bool(container.streams.audio) == request.has_speech
    if request.has_speech:
        sound, rate = media.decoded_sound(path)
        assert abs(sound.shape[1] / rate - len(frames) / request.fps) <= 1024 / rate + 1e-3  # a frame of AAC


@pytest.mark.parametrize("number", range(NUM_DRAWN))
def test_a_drawn_request_is_one_video_however_it_is_made(folder, tmp_path, number):
    drawn, chance = draw(folder, number), random.Random(number)
    request, maker = drawn.request, pipeline(drawn.options, drawn.strengths)
    streaming = pipeline((*drawn.options, *STREAMED.items()), drawn.strengths)
    plan = maker.plan(request)
    assert math.isfinite(plan.memory.device_bytes) and math.isfinite(plan.host_bytes)
    last = chance.randrange(len(plan.windows))

    def stop(report):
        if report.window_index == last:
            raise Stop

    if last and sum(plan.windows[index].num_new for index in range(last)) + 1 < plan.windows.total_frames:
        first = replace(request, max_frames=plan.windows[last].new_start + 1)
        maker.generate(first, tmp_path / "short.mp4")
    with pytest.raises(Stop):
        maker.generate(request, tmp_path / "video.mp4", on_step=stop)
    video = streaming.generate(request, tmp_path / "video.mp4")
    seed = request.seed if request.seed is not None else Manifest.read(video.with_suffix(".run")).seed
    whole = maker.generate(replace(request, seed=seed), tmp_path / "whole.mp4", resume="never")
    assert whole.read_bytes() == video.read_bytes()
    check_file(whole, request, plan)
