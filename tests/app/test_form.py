"""A form of the app is the command line that says the same: files, persons, regions, numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import jobs
from support.speech import install_kokoro

from wanvideo.app.form import (
    ALL,
    BOXES,
    MASKS,
    MOST_PEOPLE,
    MOUTHS,
    PAINTED,
    TEXT,
    Form,
    Knobs,
    Source,
    job_of,
    read_form,
)  # fmt: skip
from wanvideo.app.uploads import PICTURES, Uploads
from wanvideo.cli.generate import read_job
from wanvideo.errors import InputError
from wanvideo.request import TalkRequest

BASE = [
    "--mode=streaming", "--ckpt_dir", "weights/Wan2.1-I2V-14B-480P", "--wav2vec_dir", "weights/chinese-wav2vec2-base",
]  # fmt: skip


@pytest.fixture
def arriving(tmp_path):
    (tmp_path / "out" / ".arriving").mkdir(parents=True)
    return tmp_path / "out" / ".arriving"


@pytest.fixture
def uploads(arriving):
    return Uploads(arriving.parent / "uploads", arriving, 2_000_000)


@pytest.fixture
def form(arriving):
    return Form(jobs.picture(arriving, 96, 64), "She talks.", (jobs.speech(arriving),))


def read(form, uploads):
    return read_form(form, BASE, uploads, str(uploads.folder.parent / "speech"))


def painted(rows, columns, shape=(64, 96)):
    layer = np.zeros(shape, np.uint8)
    layer[rows, columns] = 200
    return layer


def test_the_same_values_are_the_same_request_as_on_the_command_line(form, uploads, tmp_path):
    knobs = Knobs(
        "infinitetalk-720", 4.0, 8.0, 7.0, 1.0, 2.5, None, "flowmatch_distill", 81, 13.0, True, None, None, 0.5
    )
    job = read(replace(form, knobs=knobs, negative_prompt="blurred"), uploads)
    stored = {"prompt": "She talks.", "cond_video": job.request.reference, "audio_type": "para",
              "cond_audio": {"person1": job.request.speakers[0].audio}}  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(stored))
    flags = (
        "--size infinitetalk-720 --max_frame_num 100 --sample_steps 8 --base_seed 7 --sample_text_guide_scale 1 "
        "--sample_audio_guide_scale 2.5 --scheduler flowmatch_distill --motion_frame 13 --use_teacache "
        "--color_correction_strength 0.5"
    )
    written = read_job([*BASE, "--input_json", str(tmp_path / "job.json"), *flags.split()])
    expected = replace(written.request, negative_prompt="blurred", output=job.request.output)
    assert job.request == expected and (job.files, job.options) == (written.files, written.options)
    assert job.request.settings.shift == 11.0, "of the size that was chosen"


def test_what_is_empty_is_as_the_app_was_started_and_the_form_wins_over_both(form, uploads):
    plain = read_form(form, [*BASE, "--sample_steps", "6"], uploads, "speech").request.settings
    assert (plain.steps, plain.guidance_scale, plain.audio_guidance_scale) == (6, 5.0, 4.0)
    started, three = [*BASE, "--sample_steps", "6"], replace(form, knobs=Knobs(sample_steps=3))
    assert read_form(three, started, uploads, "speech").request.settings.steps == 3
    assert read(replace(form, preset="04_high_quality"), uploads).request.settings.steps == 40
    assert read(replace(three, preset="04_high_quality"), uploads).request.settings.steps == 3


def test_files_are_kept_once_under_names_of_ours(form, uploads):
    first, second = read(form, uploads).request, read(form, uploads).request
    assert first == replace(second, output=first.output)
    for path in (first.reference, first.speakers[0].audio):
        assert Path(path).parent == uploads.folder and len(Path(path).stem) == 32
    Path(form.reference).unlink()
    assert Path(first.reference).is_file()
    assert uploads.keep(first.reference, PICTURES, "The picture") == first.reference


@pytest.mark.parametrize("name", ["/etc/passwd", "../../face.png", "~/face.png", "weights/face.png", "/dev/zero"])
def test_files_of_the_machine_are_not_read(form, uploads, tmp_path, name):
    outside = jobs.picture(tmp_path)
    for path in (name, outside, str(uploads.arriving / ".." / ".." / "face.png")):
        with pytest.raises(InputError, match="was not uploaded"):
            job_of(replace(form, reference=path), uploads)
        with pytest.raises(InputError, match="was not uploaded"):
            job_of(replace(form, sounds=(path,)), uploads)
    link = uploads.arriving / "link.png"
    link.symlink_to(outside)
    with pytest.raises(InputError, match="was not uploaded"):
        job_of(replace(form, reference=str(link)), uploads)
    with pytest.raises(InputError, match="no voice's name"):
        job_of(replace(form, speech=TEXT, text="Hi.", voices=(name,)), uploads)


def test_kinds_and_sizes_are_limited(form, uploads, arriving):
    (arriving / "graph.json").write_text("{}")
    (arriving / "large.png").write_bytes(b"x" * 2_000_001)
    for name, message in (("graph.json", ".json is not read. Use .png"), ("large.png", "2 MB are too much"),
                          ("gone.png", "There is no file")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            job_of(replace(form, reference=str(arriving / name)), uploads)
    with pytest.raises(InputError, match="Nobody is seen yet"):
        job_of(replace(form, reference=""), uploads)
    with pytest.raises(InputError, match=f"Choose 1 to {MOST_PEOPLE}"):
        job_of(replace(form, sounds=form.sounds * 4), uploads)


def test_what_is_painted_becomes_boxes_or_masks(form, uploads):
    layers = (painted(slice(8, 24), slice(6, 30)), painted(slice(32, 48), slice(60, 90)))
    two = replace(form, sounds=(form.sounds[0], None), audio_type="add", painted=layers, regions=BOXES)
    assert [speaker.box for speaker in read(two, uploads).request.speakers] == [(8, 6, 24, 30), (32, 60, 48, 90)]
    small = replace(two, painted=tuple(layer[::2, ::2] for layer in layers))
    assert [speaker.box for speaker in read(small, uploads).request.speakers] == [(8, 6, 24, 30), (32, 60, 48, 90)]
    request = read(replace(two, regions=MASKS), uploads).request
    for speaker, layer in zip(request.speakers, layers, strict=True):
        assert np.array_equal(np.asarray(Image.open(speaker.mask)) > 0, layer > 0) and speaker.box is None
    for wrong in (layers[:1], (layers[0], layers[1] * 0)):
        for regions in (BOXES, MASKS):
            with pytest.raises(InputError, match="Nothing is painted for person2"):
                read(replace(two, regions=regions, painted=wrong), uploads)


def test_text_is_spoken_with_a_voice_for_each_person(form, uploads, monkeypatch):
    asked = install_kokoro(monkeypatch)
    spoken = replace(form, speech=TEXT, text="(s1) Hello. (s2) Hi.", voices=("af_heart", "am_adam"))
    request = read(spoken, uploads).request
    assert [Path(speaker.audio).name for speaker in request.speakers] == ["s1.wav", "s2.wav"]
    assert read(spoken, uploads).request.speakers == request.speakers and len(asked.spoken) == 2
    assert all(Path(speaker.audio).is_relative_to(uploads.folder.parent) for speaker in request.speakers)


@pytest.mark.parametrize(
    ("knobs", "word"),
    [
        (Knobs(sample_steps=0), "--sample_steps"), (Knobs(sample_steps=2.5), "--sample_steps"),
        (Knobs(size="huge"), "size"),
        (Knobs(base_seed=2**70), "--base_seed"), (Knobs(scheduler="--help"), "scheduler"),
        (Knobs(size="--input_json=/etc/passwd"), "size"), (Knobs(seconds=1e9), "The length in seconds"),
        (Knobs(sample_text_guide_scale=float("nan")), "--sample_text_guide_scale"),
    ],
)  # fmt: skip
def test_wrong_numbers_are_answers_and_never_other_flags(form, uploads, knobs, word):
    with pytest.raises(InputError, match=word):
        read(replace(form, knobs=knobs), uploads)


def test_a_job_may_name_masks(tmp_path):
    job = {"prompt": "They talk.", "cond_image": "two.png", "cond_audio": {"person1": "a.wav", "person2": "b.wav"},
           "audio_type": "add", "mask": {"person2": "right.png", "person1": "left.png"}}  # fmt: skip
    assert [speaker.mask for speaker in TalkRequest.from_job(job).speakers] == ["left.png", "right.png"]
    with pytest.raises(InputError, match="mask names person1 but cond_audio names person1, person2"):
        TalkRequest.from_job({**job, "mask": {"person1": "left.png"}})


def test_what_stays_of_a_video_is_what_the_flags_say(form, uploads):
    left, right = np.zeros((2, 48, 64), np.uint8)
    left[10:20, 5:15], right[10:20, 40:50] = 255, 255
    assert read(form, uploads).request.keep is None and Source().flags((), uploads) == []
    dub = Source(PAINTED, 8.0, "loop", scene_seg=True)
    request = read(replace(form, source=dub, painted=(left, right)), uploads).request
    assert request.keep.feather == 8 and (request.source_end, request.scene_seg) == ("loop", True)
    assert np.array_equal(np.asarray(Image.open(request.keep.mask)) > 0, (left + right) > 0)
    assert read(replace(form, source=Source(MOUTHS)), uploads).request.keep.mouth == "auto"
    with pytest.raises(InputError, match="Nothing is painted that is made anew"):
        read(replace(form, source=Source(PAINTED), painted=(left * 0,)), uploads)
    assert Source().keep == ALL
    knobs = Knobs(use_apg=True, voice_activity=True, frame_num=41, base_seed=0)
    request = read(replace(form, knobs=knobs), uploads).request
    assert request.voice_activity and request.settings.window_frames == 41 and request.seed == 0


@pytest.mark.parametrize("seconds", [-5, 0, 0.01, float("inf"), float("nan")])
def test_a_length_that_no_video_has_is_refused_and_not_changed(form, uploads, seconds):
    with pytest.raises(InputError, match="The length in seconds"):
        read(replace(form, knobs=Knobs(seconds=seconds)), uploads)
    assert Knobs(seconds=0.04).flags() == ["--max_frame_num=1"]
