"""Drift is measured window by window: colors, sharpness, latents, into manifest, log and a picture."""

import io
import json
import math
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab
from support import jobs

from wanvideo import TalkingVideoPipeline
from wanvideo.cli.runs import main as runs
from wanvideo.errors import OutputError
from wanvideo.quality.drift import Drift, draw, measure, notable
from wanvideo.quality.plot import Curve, plot
from wanvideo.runs import measured
from wanvideo.runs.manifest import Manifest


@dataclass
class Finished:
    index: int
    start: int
    frames: torch.Tensor
    latents: torch.Tensor


def window(index=0, gain=1.0, num_frames=4, spread=1.0):
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


def test_only_windows_that_move_are_logged(caplog):
    jobs.capture_log(caplog)
    drift = Drift()
    moved = [window(0), window(1), window(2, gain=0.5), window(3, gain=0.5), window(4)]
    measured = [drift.add(item) for item in moved]
    assert [text.split(" since")[0] for text in caplog.messages] == ["Window 3", "Window 5"]
    assert notable(measured) == [measured[2], measured[4]]
    again = Drift(measured[:4])  # as a run that goes on has it
    again.add(moved[4])
    assert again.windows == measured and caplog.messages[-1] == caplog.messages[-2]


def test_curves_are_drawn():
    measures = [measure(window(index, gain=1 - index / 20)) for index in range(6)]
    picture = Image.open(io.BytesIO(draw(measures)))
    shown = np.asarray(picture)
    assert picture.format == "PNG" and (shown[:140] == (31, 111, 180)).all(-1).any(), "L has a curve"
    assert draw(measures[:1]), "one window has points"
    assert plot("second", [Curve("opening", [0, 1, 2, 3], [1.0, math.nan, math.inf, 2.0]), Curve("none", [], [])])


def test_a_run_keeps_its_measures(tmp_path, capsys):
    request = jobs.request(tmp_path, [jobs.speech(tmp_path, 1.0)])
    pipeline = TalkingVideoPipeline(jobs.official_files(), jobs.OPTIONS)
    with closing(pipeline.run(request, folder=tmp_path / "a.run")) as windows:
        first = measure(next(windows))
    assert measured.read(tmp_path / "a.run", 9) == (first,) and not (tmp_path / "a.run" / "drift.png").exists()
    later = [measure(window) for window in pipeline.run(request, folder=tmp_path / "a.run")]
    manifest = Manifest.read(tmp_path / "a.run")
    assert measured.read(tmp_path / "a.run", 9) == (first, *later) and manifest.video is not None
    assert (tmp_path / "a.run" / "drift.png").read_bytes() == draw((first, *later))
    assert runs(["show", str(tmp_path / "a.run")]) == 0
    assert f"Window {len(later) + 1} since window 1: lightness" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"index": -1}, {"lab_mean": "red"}, {"lab_std": [None, 1, 2]}, {"sharpness": "x"}])
def test_damaged_measures_are_refused_and_may_be_deleted(tmp_path, change):
    measured.append(tmp_path, measure(window()))
    assert measured.read(tmp_path, 1) == (measure(window()),)
    with (tmp_path / measured.NAME).open("a") as file:
        file.write(json.dumps(asdict(measure(window())) | change) + "\n")
    assert measured.read(tmp_path, 1) == (measure(window()),), "what no window counts is not read"
    with pytest.raises(OutputError, match="line 2 is damaged .*\nDelete the file"):
        measured.read(tmp_path, 2)
    (tmp_path / measured.NAME).unlink()
    assert measured.read(tmp_path, 2) == ()


def test_measures_of_windows_that_do_not_count_are_cut_off(tmp_path):
    several = [measure(window(index)) for index in range(4)]
    for one in several:
        measured.append(tmp_path, one)
    whole = (tmp_path / measured.NAME).read_bytes()
    (tmp_path / measured.NAME).write_bytes(whole[:-20])  # of a process that ended while it wrote
    measured.take(tmp_path, tmp_path, 4)
    assert measured.read(tmp_path, 9) == tuple(several[:3])
    measured.append(tmp_path, several[3])
    assert (tmp_path / measured.NAME).read_bytes() == whole
    measured.take(tmp_path, tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
