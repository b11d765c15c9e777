"""The seams are real: a mode and a sink that the library has never seen take part in whole runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import jobs
from support.sampling import SETTINGS, conditioning
from support.tiny import tiny_transformer, tiny_vae
from support.toys import Mirror, PngFolder

from wanvideo import TalkingVideoPipeline, request, run_windows
from wanvideo.errors import CheckpointError
from wanvideo.sampling.conditions import CONDITIONS


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def pipeline():
    return TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)


def pictures(folder):
    return torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]))


def test_a_new_mode_is_a_class_and_its_name(monkeypatch):
    monkeypatch.setitem(CONDITIONS, "mirror", Mirror)
    monkeypatch.setattr(request, "MODES", (*request.MODES, "mirror"))
    models = tiny_transformer(), tiny_vae()
    settings = replace(SETTINGS, color_match="mkl")
    mirrored, usual = (
        list(run_windows(*models, conditioning(), replace(settings, mode=mode), 7)) for mode in ("mirror", "multitalk")
    )
    assert len(mirrored) == len(usual) == 3
    assert not any(torch.equal(a.pixels, b.pixels) for a, b in zip(mirrored, usual, strict=True))


def test_a_new_sink_gets_every_frame_beside_others(pipeline, tmp_path):
    sinks = PngFolder(tmp_path / "one"), PngFolder(tmp_path / "two")
    talk = jobs.request(tmp_path, seed=3)
    frames = torch.cat([window.frames for window in pipeline.run(talk, sinks=sinks)])
    assert len(frames) > jobs.SETTINGS.window_frames
    for sink in sinks:
        assert sink.end == ["closed"]
        assert sink.longest <= jobs.SETTINGS.window_frames
        assert torch.equal(pictures(sink.path), frames)


def test_a_sink_of_a_run_that_fails_is_abandoned_and_keeps_what_was_finished(pipeline, tmp_path):
    sink = PngFolder(tmp_path / "frames")

    def stop(report):
        if report.window_index == 1:
            raise Stop

    with pytest.raises(Stop):
        list(pipeline.run(jobs.request(tmp_path, seed=3), on_step=stop, sinks=[sink]))
    assert sink.end == ["abandoned"]
    assert len(pictures(sink.path)) == sink.num_frames == jobs.SETTINGS.window_frames


class Refusing(PngFolder):
    """Which cannot be ended."""

    def close(self):
        super().close()
        raise Stop

    def abandon(self):
        super().abandon()
        raise Stop


@pytest.mark.parametrize("stops", [False, True])
def test_a_sink_that_cannot_be_ended_keeps_no_other_from_it(pipeline, tmp_path, stops):
    sinks = [kind(tmp_path / f"{number}") for number, kind in enumerate((PngFolder, Refusing, PngFolder))]
    windows = pipeline.run(jobs.request(tmp_path, seed=3), sinks=sinks)
    with pytest.raises(Stop):
        if stops:
            next(windows)
            windows.close()
        list(windows)
    first, second = ("abandoned", "abandoned") if stops else ("closed", "closed")
    assert [sink.end for sink in sinks] == [[first], [second], ["abandoned"]]


def test_a_sink_of_a_run_that_samples_nothing_is_ended(pipeline, tmp_path, monkeypatch):
    talk = jobs.request(tmp_path, seed=3, settings=replace(jobs.SETTINGS, steps=1))
    sinks = [PngFolder(tmp_path / str(number)) for number in range(3)]
    list(pipeline.run(talk, folder=tmp_path / "a.run"))
    assert not list(pipeline.run(talk, folder=tmp_path / "a.run", sinks=sinks[:1]))
    monkeypatch.setattr(pipeline, "encoders", replace(pipeline.encoders, tokenizer=tmp_path / "none.json"))
    for sink, folder in zip(sinks[1:], (None, tmp_path / "b.run"), strict=True):
        with pytest.raises(CheckpointError):
            list(pipeline.run(talk, folder=folder, sinks=[sink]))
    assert [sink.end for sink in sinks] == [["closed"], ["abandoned"], ["abandoned"]]


def test_a_sink_of_a_run_that_nobody_goes_on_with_is_abandoned(pipeline, tmp_path):
    sink = PngFolder(tmp_path / "frames")
    windows = pipeline.run(jobs.request(tmp_path, seed=3), sinks=[sink])
    next(windows)
    windows.close()
    assert sink.end == ["abandoned"]
