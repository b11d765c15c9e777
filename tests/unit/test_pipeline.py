"""Whole runs on tiny models: what comes out for every kind of request, and what never gets as far as a model."""

import contextlib
import gc
import logging
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import host_memory, jobs, media_files

from wanvideo import TalkingVideoPipeline
from wanvideo.errors import CheckpointError, InputError, OutputError, TalkError
from wanvideo.request import Apg, LoopSettings, Speaker
from wanvideo.video.reader import VideoFrames, probe
from wanvideo.video.writer import VideoWriter

ONE_WINDOW = 0.4  # seconds: 10 frames of a window of 13


@pytest.fixture(scope="module")
def pipeline():
    return TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)


@pytest.fixture(scope="module")
def pair():
    """With the adapter for several speakers."""
    return TalkingVideoPipeline(jobs.official_files("multi"), jobs.OPTIONS)


@pytest.fixture(autouse=True)
def logged(caplog):
    jobs.capture_log(caplog)
    return caplog


def frames_of(pipeline, request, **arguments):
    windows = list(pipeline.run(request, **arguments))
    frames = torch.cat([window.frames for window in windows])
    starts = np.cumsum([0, *(len(window.frames) for window in windows)])
    assert [window.start for window in windows] == starts[:-1].tolist()
    assert [window.index for window in windows] == list(range(windows[0].num_windows))
    assert frames.dtype is torch.uint8 and frames.device.type == "cpu" and all(window.seconds > 0 for window in windows)
    return frames


def two(folder, sounds, **changes):
    """A request for two people, in the left and the right half of a wide picture."""
    boxes = ((10, 5, 60, 60), (10, 70, 60, 123))
    speakers = tuple(Speaker(sound, box) for sound, box in zip(sounds, boxes, strict=True))
    picture = jobs.picture(folder, 128, 64, "two.png")
    return jobs.request(folder, [], speakers=speakers, reference=picture, size=(96, 48), **changes)


def blocks(frames):
    """Means of 8 x 8 pixels: what a lossy encode of noise leaves as it is."""
    count, height, width, _ = frames.shape
    return frames.reshape(count, height // 8, 8, width // 8, 8, 3).mean((2, 4))


# What comes out


@pytest.mark.parametrize("seconds", [0.1, 0.4, 1.0])
def test_a_video_is_as_long_as_its_sound(tmp_path, pipeline, seconds):
    frames = frames_of(pipeline, jobs.request(tmp_path, [jobs.speech(tmp_path, seconds)]))
    assert frames.shape == (round(seconds * 25), 48, 48, 3)
    assert frames.float().std() > 1


@pytest.mark.parametrize(
    ("seconds", "rate", "fps", "expected"),
    [(0.02, 16000, 25, 1), (3.239, 44100, 25, 81), (3.3, 48000, 25, 82), (12.34, 22050, 25, 308), (2, 16000, 24, 48),
     (60.01, 16000, 25, 1500), (2, 16000, 29.97, 60)],
)  # fmt: skip
def test_lengths_are_exact_to_the_frame(tmp_path, pipeline, seconds, rate, fps, expected):
    sound = jobs.speech(tmp_path, seconds, rate=rate)
    assert pipeline.check(jobs.request(tmp_path, [sound], fps=fps)).plan.total_frames == expected


def test_a_file_has_the_pictures_that_were_made_and_the_sound_as_it_was(tmp_path, pipeline):
    sound = jobs.speech(tmp_path, 0.8, "stereo.wav", rate=44100, channels=2)
    request = jobs.request(tmp_path, [sound])
    path = pipeline.generate(request, tmp_path / "talk.mp4")
    info = probe(path)
    assert (info.frames, info.width, info.height, info.fps) == (20, 48, 48, 25)
    assert (info.audio_rate, info.audio_channels) == (44100, 2)
    assert abs(info.audio_duration_s - info.duration_s) <= 1 / 25
    made, shown = (
        blocks(frames) for frames in (frames_of(pipeline, request).numpy(), media_files.decoded_frames(path))
    )
    assert np.abs(made - shown).max() < 16 and np.abs(made[1:] - made[:-1]).max() > 32
    assert [file.name for file in tmp_path.glob("*.mp4")] == ["talk.mp4"] and not list(tmp_path.glob(".*"))


def test_the_same_frames_make_the_same_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (13, 112, 192, 3), np.uint8)
    shown = set()
    for number in range(12):
        with VideoWriter(tmp_path / f"{number}.mp4", 192, 112, 25) as writer:
            writer.write(pixels)
        shown.add(media_files.decoded_frames(writer.path).tobytes())
    assert len(shown) == 1


def test_one_seed_gives_one_video(tmp_path, pipeline):
    request = jobs.request(tmp_path)
    first, again = frames_of(pipeline, request), frames_of(pipeline, request)
    fresh = frames_of(TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS), request)
    assert torch.equal(first, again) and torch.equal(first, fresh)
    assert not torch.equal(first, frames_of(pipeline, replace(request, seed=43)))


def test_both_layouts_of_the_same_models_give_one_video(tmp_path, pipeline):
    request = jobs.request(tmp_path, [jobs.speech(tmp_path, ONE_WINDOW)])
    single = next((jobs.comfy() / "diffusion_models").glob("*Single*"))
    other = TalkingVideoPipeline(jobs.comfy_files(adapter=str(single)), jobs.OPTIONS)
    assert torch.equal(frames_of(pipeline, request), frames_of(other, request))


def test_what_is_said_and_what_is_written_matter(tmp_path, pipeline):
    sound = jobs.speech(tmp_path, ONE_WINDOW)
    request = jobs.request(tmp_path, [sound])
    frames = frames_of(pipeline, request)
    other = jobs.speech(tmp_path, ONE_WINDOW, "other.wav", frequency=900)
    assert not torch.equal(frames, frames_of(pipeline, replace(request, speakers=(Speaker(other),))))
    assert not torch.equal(frames, frames_of(pipeline, replace(request, prompts=("Un hombre canta en la calle.",))))


def test_every_window_may_have_its_own_prompt(tmp_path, pipeline):
    one = frames_of(pipeline, jobs.request(tmp_path, prompts=("She talks.",)))
    three = frames_of(pipeline, jobs.request(tmp_path, prompts=("She talks.", "她在唱歌。", "Ella se ríe.")))
    assert torch.equal(one[:13], three[:13]) and not torch.equal(one[13:], three[13:])


@pytest.mark.parametrize("placement", ["para", "add"])
def test_two_people_speak_together_or_in_turn(tmp_path, pair, placement):
    sounds = [jobs.speech(tmp_path, 0.2, "one.wav"), jobs.speech(tmp_path, 0.3, "two.wav", frequency=500)]
    request = two(tmp_path, sounds, audio_type=placement)
    frames = frames_of(pair, request)
    assert len(frames) == (8 if placement == "para" else 12)  # round(7.5) and round(12.5)
    assert not torch.equal(frames, frames_of(pair, two(tmp_path, sounds[::-1], audio_type=placement)))
    info = probe(pair.generate(request, tmp_path / "two.mp4"))
    assert info.frames == len(frames) and abs(info.audio_duration_s - info.duration_s) <= 1 / 25


def test_a_partner_without_sound_is_silent_for_as_long(tmp_path, pair):
    sound = jobs.speech(tmp_path, ONE_WINDOW)
    request = two(tmp_path, [None, sound])
    tracks = pair.check(request).tracks
    assert len(tracks[0]) == len(tracks[1]) and not tracks[0][:].any() and tracks[1][:].any()
    assert len(frames_of(pair, request)) == 10
    assert not torch.equal(frames_of(pair, request), frames_of(pair, two(tmp_path, [sound, None])))


def test_two_people_need_no_boxes_and_may_have_masks(tmp_path, pair):
    sounds = [jobs.speech(tmp_path, 0.2, "one.wav"), jobs.speech(tmp_path, 0.2, "two.wav", frequency=500)]
    request = two(tmp_path, sounds)
    halves = replace(request, speakers=tuple(Speaker(sound) for sound in sounds))
    assert len(frames_of(pair, halves)) == 5
    paths = []
    for number, columns in enumerate((slice(5, 60), slice(70, 123))):
        mask = np.zeros((64, 128, 3), np.uint8)
        mask[10:60, columns] = 255
        paths.append(str(tmp_path / f"mask{number}.png"))
        jobs.Image.fromarray(mask).save(paths[-1])
    masked = tuple(Speaker(sound, mask=path) for sound, path in zip(sounds, paths, strict=True))
    assert torch.equal(frames_of(pair, replace(request, speakers=masked)), frames_of(pair, request))


def test_without_sound_the_length_is_one_window_or_what_is_asked(tmp_path, pipeline):
    still = jobs.request(tmp_path, [])
    assert len(frames_of(pipeline, still)) == 13
    assert len(frames_of(pipeline, replace(still, max_frames=15))) == 15
    assert probe(pipeline.generate(still, tmp_path / "still.mp4")).audio_rate is None


def test_plain_image_to_video_needs_no_adapter(tmp_path):
    plain = TalkingVideoPipeline(jobs.official_files(adapter=None, wav2vec=None), jobs.OPTIONS)
    assert len(frames_of(plain, jobs.request(tmp_path, []))) == 13
    with pytest.raises(CheckpointError, match="no model for speech"):
        plain.run(jobs.request(tmp_path))


def test_a_video_as_reference_is_followed_window_by_window(tmp_path, pipeline):
    moving = media_files.video(tmp_path / "moving.mp4", media_files.numbered_frames(30, 96, 96))
    request = jobs.request(tmp_path, reference=str(moving))
    references = pipeline.check(request).references
    levels = [media_files.index_of((references[k].numpy() + 1) * 127.5) for k in range(3)]
    assert levels == [0, 8, 16]  # the windows' first frames
    with VideoFrames(moving) as video:
        jobs.Image.fromarray(video.frame_at(0.0)).save(tmp_path / "first.png")
    still = frames_of(pipeline, replace(request, reference=str(tmp_path / "first.png")))
    frames = frames_of(pipeline, request)
    assert len(frames) == 25 and not torch.equal(frames[13:], still[13:])


def test_max_frames_ends_a_video_early(tmp_path, pipeline):
    request = jobs.request(tmp_path, [jobs.speech(tmp_path, 2.0)], max_frames=16)
    assert len(frames_of(pipeline, request)) == 16
    info = probe(pipeline.generate(request, tmp_path / "short.mp4"))
    assert info.frames == 16 and abs(info.audio_duration_s - 16 / 25) <= 1 / 25


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "multitalk"},
        {"guidance_scale": 3.0, "audio_guidance_scale": 2.0},
        {"audio_guidance_scale": 2.0, "apg": Apg()},
        {"scheduler": "unipc", "color_match": "mkl", "color_strength": 0.5},
        {"scheduler": "dpm++_sde", "start_step": 1, "steps": 3},
        {"tiled_vae": True},
    ],
    ids=lambda changes: ",".join(changes),
)  # fmt: skip
def test_every_way_of_sampling_runs_through(tmp_path, pipeline, changes):
    settings = replace(jobs.SETTINGS, **changes)
    frames = frames_of(pipeline, jobs.request(tmp_path, [jobs.speech(tmp_path, 0.72)], settings=settings))
    assert len(frames) == 18 and frames.float().std() > 1


def test_steps_are_reported(tmp_path, pipeline):
    reports = []
    frames_of(pipeline, jobs.request(tmp_path), on_step=reports.append)
    assert [(r.window_index, r.step_index) for r in reports] == [(w, s) for w in range(3) for s in range(2)]
    assert {(r.num_windows, r.num_steps) for r in reports} == {(3, 2)}


def test_the_caller_is_left_as_it_was(tmp_path, pipeline):
    """A run that waits for its next window must not switch off autograd, or freeze tensors, for whoever waits."""
    windows = pipeline.run(jobs.request(tmp_path))
    window = next(windows)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    window.frames.add_(1)
    windows.close()
    assert not any(parameter.is_inference() for parameter in pipeline.engine.transformer.parameters())


def test_no_clip_model_is_said_once(tmp_path, logged):
    bare = TalkingVideoPipeline(jobs.comfy_files(clip_vision=None), jobs.OPTIONS)
    assert len(frames_of(bare, jobs.request(tmp_path, [jobs.speech(tmp_path, 0.1)]))) == 2
    assert logged.text.count("No CLIP vision model") == 1


# What never gets as far as a model


def refused(pipeline, request, output, logged, *words):
    logged.clear()
    with pytest.raises(TalkError) as caught:
        pipeline.generate(request, output)
    assert not jobs.loads(logged), "weights were read before the error"
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.count("\n") <= 2
    return message


@pytest.fixture
def fresh():
    return TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)


def sound_of(folder, samples, name="bad.wav", subtype="FLOAT"):
    return str(media_files.wav(folder / name, samples.astype(np.float32), 16000, subtype))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: sound_of(folder, np.zeros((16000, 1))), ["speaker 1", "silent"]),
        (lambda folder: sound_of(folder, np.full((16000, 1), np.nan)), ["bad.wav", "NaN"]),
        (lambda folder: sound_of(folder, np.zeros((0, 1))), ["bad.wav", "empty"]),
        (lambda folder: str(folder / "nowhere.wav"), ["no file", "nowhere.wav", "a sound file"]),
        (lambda folder: str(Path(__file__)), ["test_pipeline.py", "sound"]),
        (lambda folder: jobs.picture(folder, name="loud.png"), ["loud.png"]),
        (lambda folder: str(folder), ["is a folder", "a sound file"]),
    ],
    ids=["silent", "nan", "empty", "missing", "text", "picture", "folder"],
)  # fmt: skip
def test_unusable_sound(tmp_path, fresh, logged, make, words):
    refused(fresh, jobs.request(tmp_path, [make(tmp_path)]), tmp_path / "out.mp4", logged, *words)
    assert not list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: str(folder / "nobody.png"), ["nobody.png"]),
        (lambda folder: str(Path(__file__)), ["test_pipeline.py"]),
        (lambda folder: jobs.speech(folder, 1.0, "voice.wav"), ["voice.wav"]),
    ],
    ids=["missing", "text", "sound"],
)  # fmt: skip
def test_unusable_pictures(tmp_path, fresh, logged, make, words):
    refused(fresh, jobs.request(tmp_path, reference=make(tmp_path)), tmp_path / "out.mp4", logged, *words)


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        (((0, 0, 60, 60), (0, 200, 60, 260)), ["speaker 2", "outside the picture"]),
        (((0, 0, 60, 90), (0, 50, 60, 128)), ["overlap"]),
        (((0, 0, 3, 3), (0, 70, 60, 120)), ["speaker 1", "empty"]),
    ],
    ids=["outside", "overlapping", "tiny"],
)
def test_unusable_boxes(tmp_path, fresh, logged, boxes, words):
    if words[0] == "speaker 1":
        boxes = ((1, 1, 3, 3), boxes[1])
    request = two(tmp_path, [jobs.speech(tmp_path)] * 2)
    speakers = tuple(replace(speaker, box=box) for speaker, box in zip(request.speakers, boxes, strict=True))
    refused(fresh, replace(request, speakers=speakers), tmp_path / "out.mp4", logged, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": (833, 480)}, ["833", "832", "848"]),
        ({"settings": {"window_frames": 80}}, ["80", "77", "81"]),
        ({"settings": {"motion_frames": 81}}, ["81", "smaller than the window"]),
        ({"settings": {"scheduler": "eular"}}, ["eular", "euler"]),
        ({"settings": {"steps": 0}}, ["steps 0"]),
        ({"settings": {"start_step": 5, "steps": 4}}, ["start"]),
        ({"size": "infinitetalk-481"}, ["infinitetalk-481"]),
        ({"audio_type": "both"}, ["both", "para, add"]),
        ({"fps": float("nan")}, ["fps"]),
        ({"seed": -1}, ["seed -1"]),
        ({"prompts": ()}, ["prompt"]),
        ({"reference": ""}, ["reference"]),
        ({"speakers": tuple(Speaker("x.wav", box=(0, 0, 9, 9) if n < 2 else None) for n in range(3))}, ["3", "2"]),
    ],
    ids=str,
)
def test_unusable_numbers_and_names(tmp_path, fresh, logged, change, words):
    with pytest.raises(InputError) as caught:
        change = {**change}
        if "settings" in change:
            change["settings"] = LoopSettings(**change["settings"])
        fresh.generate(jobs.request(tmp_path, **change), tmp_path / "out.mp4")
    assert all(word in str(caught.value) for word in words), caught.value
    assert not jobs.loads(logged)


def test_models_that_are_needed_are_named(tmp_path, logged):
    request = jobs.request(tmp_path)
    for slot, word in (("vae", "Wan2.1_VAE.pth"), ("text_encoder", "t5"), ("wav2vec", "wav2vec2"), ("adapter", "infi")):
        bare = TalkingVideoPipeline(jobs.comfy_files(**{slot: None}), jobs.OPTIONS)
        refused(bare, request, tmp_path / "out.mp4", logged, word)


# Where it is written


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path, fresh, logged):
    request = jobs.request(tmp_path)
    (tmp_path / "file.txt").write_text("not a folder")
    refused(fresh, request, tmp_path / "file.txt" / "out.mp4", logged, "cannot be written")
    refused(fresh, request, "/proc/out.mp4", logged, "cannot be written")
    refused(fresh, request, tmp_path / "out.avi", logged, ".mp4")
    (tmp_path / "old.mp4").write_bytes(b"someone's only copy")
    refused(fresh, request, tmp_path / "old.mp4", logged, "exists", "old_2.mp4")
    assert (tmp_path / "old.mp4").read_bytes() == b"someone's only copy"


def test_an_interrupted_run_keeps_what_it_finished(tmp_path, pipeline, logged):
    def stop(report):
        if report.window_index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(jobs.request(tmp_path), tmp_path / "talk.mp4", on_step=stop)
    (kept,) = tmp_path.glob("talk.run/*.mp4")
    assert len(media_files.decoded_frames(kept)) == 13
    (line,) = [record.getMessage() for record in logged.records if record.levelno >= logging.WARNING]
    assert "first 13 frames" in line and str(kept) in line
    assert not list(tmp_path.glob("[!.]*.mp4"))


def test_a_run_that_is_interrupted_at_once_leaves_nothing(tmp_path, pipeline):
    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(jobs.request(tmp_path), tmp_path / "talk.mp4", on_step=stop)
    assert not list(tmp_path.glob("*.mp4")) and not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.run"))


@contextlib.contextmanager
def disk_of(size):
    """No file may grow beyond `size` bytes, which the writer reports as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_keeps_what_was_written(tmp_path, pipeline):
    request = jobs.request(tmp_path, [jobs.speech(tmp_path, 2.5)])
    free = probe(pipeline.generate(request, tmp_path / "whole.mp4"))
    assert free.frames == 62
    with (
        disk_of((tmp_path / "whole.mp4").stat().st_size // 2),
        pytest.raises(OutputError, match="disk is full") as caught,
    ):
        pipeline.generate(request, tmp_path / "talk.mp4")
    (kept,) = tmp_path.glob("talk.run/*.mp4")
    assert str(kept) in str(caught.value) and 0 < len(media_files.decoded_frames(kept)) < 62


# Memory


def live_bytes():
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        # Subclasses that compilers leave behind have no memory of their own.
        if type(item) in (torch.Tensor, torch.nn.Parameter) and item.device.type != "meta":
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
    return sum(storages.values())


def test_nothing_that_a_window_made_outlives_it(tmp_path, pipeline):
    """What is held after the second window is what is held after the last."""
    settings = replace(jobs.SETTINGS, window_frames=9, steps=1)
    held = []
    request = jobs.request(tmp_path, [], max_frames=9 + 7 * 4, settings=settings, size=(32, 32))
    for window in pipeline.run(request):
        del window
        held.append(live_bytes())
    assert len(held) == 8 and held[1] == held[-2]


MEMORY = """
import sys
from dataclasses import replace
from support import jobs
from support.host_memory import anonymous
from wanvideo import TalkingVideoPipeline

folder, windows = sys.argv[1], int(sys.argv[2])
pipeline = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)
settings = replace(jobs.SETTINGS, window_frames=9, motion_frames=5, steps=1)
sound = jobs.speech(folder, (9 + (windows - 1) * 4) / 25, f"{windows}.wav")
request = jobs.request(folder, [sound], settings=settings, size=(32, 32))
peak = 0

def look(report):
    global peak
    peak = max(peak, anonymous())
    assert report.num_windows == windows

pipeline.generate(request, f"{folder}/{windows}.mp4", on_step=look)
print(peak)
"""


@host_memory.NEEDS_PROC
def test_host_memory_does_not_depend_on_the_number_of_windows(tmp_path):
    peaks = {windows: host_memory.run(MEMORY, tmp_path, windows)[0] for windows in (2, 40)}
    assert abs(peaks[40] / peaks[2] - 1) <= 0.05, peaks
