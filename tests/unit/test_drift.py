"""Drift is measured window by window: colors, sharpness, latents; JSON always, a picture where matplotlib is there."""

import json
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from support import jobs

from wanvideo import TalkingVideoPipeline
from wanvideo.errors import OutputError
from wanvideo.quality.drift import Drift, measure


@dataclass
class Finished:
    index: int
    start: int
    frames: torch.Tensor
    latents: torch.Tensor


def window(index=0, gain=1.0, num_frames=5, spread=1.0):
    generator = torch.Generator().manual_seed(3)
    levels = torch.rand(num_frames, 16, 24, 3, generator=generator) * 200 * gain
    latents = torch.randn(16, 2, 2, 3, generator=generator) * spread + 0.5
    return Finished(index, index * 5, levels.to(torch.uint8), latents)


def test_measures_are_those_of_scikit_image():
    given = window()
    found, lab = measure(given), rgb2lab(given.frames.numpy())
    assert found.lab_mean == pytest.approx(lab.mean((0, 1, 2)), abs=0.02)
    assert found.lab_std == pytest.approx(lab.std((0, 1, 2)), abs=0.02)
    assert found.latent_mean == pytest.approx(float(given.latents.mean()))
    lightness = lab[..., 0]
    laplacian = sum(np.roll(lightness, shift, axis) for shift in (1, -1) for axis in (1, 2)) - 4 * lightness
    assert found.sharpness == pytest.approx(laplacian[:, 1:-1, 1:-1].var(), rel=1e-3)


def test_drift_is_seen(caplog):
    jobs.capture_log(caplog)
    drift = Drift()
    first, later = drift.add(window()), drift.add(window(7, gain=0.5, spread=2.0))
    assert later.lab_mean[0] < first.lab_mean[0] - 10 and later.latent_std > 1.5 * first.latent_std
    assert "Window 8 since window 1: lightness -" in caplog.messages[-1]
    assert measure(window(num_frames=1)).sharpness > 0, "one frame is enough"


def test_numbers_and_curves_are_saved(tmp_path, monkeypatch):
    drift = Drift()
    drift.add(window())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert drift.save(tmp_path / "run") == [tmp_path / "run" / "drift.json"]
    (saved,) = json.loads((tmp_path / "run" / "drift.json").read_text())
    assert saved["index"] == 0 and saved["lab_mean"] == pytest.approx(drift.windows[0].lab_mean)
    monkeypatch.undo()
    pytest.importorskip("matplotlib", reason="the optional package matplotlib draws the curves")
    *_, picture = drift.save(tmp_path / "run")
    assert picture.name == "drift.png" and picture.read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="drift.json cannot be written"):
        Drift().save(tmp_path / "file")


def test_windows_of_a_run_are_measured(tmp_path):
    drift = Drift()
    for finished in TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS).run(jobs.request(tmp_path)):
        drift.add(finished)
    assert [measures.index for measures in drift.windows] == list(range(len(drift.windows))) and len(drift.windows) > 1
