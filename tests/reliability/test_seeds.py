"""A seed that the request leaves open: drawn once for a run, kept by whoever goes on, drawn anew for another one."""

import functools
from dataclasses import replace

import pytest
from support import jobs

from wanvideo import TalkingVideoPipeline
from wanvideo.errors import OutputError
from wanvideo.runs import find
from wanvideo.runs.manifest import NAME, Manifest


class Stop(Exception):
    pass


@functools.cache
def pipeline():
    return TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)


def request(folder, **changes):
    return jobs.request(folder, [jobs.speech(folder, 0.9)], **{"seed": None, **changes})


def stop(report):
    if report.window_index == 1:
        raise Stop


def seed_of(folder):
    return Manifest.read(folder).seed


def test_an_unfinished_run_keeps_its_seed_and_a_finished_one_does_not(tmp_path):
    with pytest.raises(Stop):
        pipeline().generate(request(tmp_path), tmp_path / "talk.mp4", on_step=stop)
    seed = seed_of(tmp_path / "talk.run")
    drawn = pipeline().generate(request(tmp_path), tmp_path / "talk.mp4")
    assert seed_of(tmp_path / "talk.run") == seed
    named = pipeline().generate(request(tmp_path, seed=seed), tmp_path / "named.mp4")
    assert named.read_bytes() == drawn.read_bytes() and seed_of(tmp_path / "named.run") is None
    again = pipeline().generate(request(tmp_path), tmp_path / "talk.mp4", overwrite=True)
    assert seed_of(tmp_path / "talk.run") != seed and again.read_bytes() != named.read_bytes()


def test_a_finished_video_without_its_name_keeps_its_seed(tmp_path):
    """Ranks that are started anew between the last window and the link to the result make no other video."""
    path = pipeline().generate(request(tmp_path), tmp_path / "talk.mp4")
    before, seed = path.read_bytes(), seed_of(tmp_path / "talk.run")
    path.unlink()
    assert pipeline().generate(request(tmp_path), path).read_bytes() == before
    assert seed_of(tmp_path / "talk.run") == seed


def test_a_longer_video_keeps_the_seed_of_the_windows_that_it_takes(tmp_path):
    sounds = [jobs.speech(tmp_path, 1.4)]
    short, longer = (
        jobs.request(tmp_path, sounds, seed=None, max_frames=num_frames, settings=replace(jobs.SETTINGS, steps=1))
        for num_frames in (21, 29)
    )
    pipeline().generate(short, tmp_path / "talk.mp4")
    seed, sampled = seed_of(tmp_path / "talk.run"), []
    drawn = pipeline().generate(longer, tmp_path / "longer.mp4", on_step=lambda step: sampled.append(step.window_index))
    assert sampled == [1, 2] and seed_of(tmp_path / "longer.run") == seed
    named = pipeline().generate(replace(longer, seed=seed), tmp_path / "named.mp4")
    assert named.read_bytes() == drawn.read_bytes()


def test_a_manifest_without_the_seed_that_was_drawn_is_damaged(tmp_path):
    with pytest.raises(Stop):
        pipeline().generate(request(tmp_path), tmp_path / "talk.mp4", on_step=stop)
    file = tmp_path / "talk.run" / NAME
    file.write_text(file.read_text().replace(f'"seed": {seed_of(tmp_path / "talk.run")}', '"seed": null'))
    with pytest.raises(OutputError, match="damaged"):
        Manifest.read(tmp_path / "talk.run")
    assert not list(find.find_runs(tmp_path))
