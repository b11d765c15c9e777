"""`score --syncnet`: the same lag, to the same side, from crops of faces; wrong files are refused."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import recipes, syncnets
from support.mouths import BOX, FPS, SECONDS, SPEECH, dark_lips, talking
from support.syncnets import DarkMouths

from wanvideo.cli import score as command
from wanvideo.errors import CheckpointError
from wanvideo.quality.lips import Lips
from wanvideo.quality.score import score_video
from wanvideo.quality.syncnet import crop, track


@pytest.mark.parametrize("shift", [0.0, 0.04, -0.04, 0.12, -0.2])
def test_the_lag_has_the_sign_of_the_other_one(tmp_path, shift):
    score = score_video(talking(tmp_path / "a.mp4", shift), dark_lips, audios=[SPEECH], syncnet=DarkMouths())
    (sync,), (near,) = score.syncs, score.syncnets
    assert near.lag_s == pytest.approx(shift) and near.lag_frames == pytest.approx(shift * FPS)
    assert abs(sync.lag_s - near.lag_s) <= 0.02 and score.syncnet_note == ""
    assert near.distance == min(near.distances) == near.distances[15 + round(near.lag_s * 25)]
    assert len(near.distances) == 31 and near.confidence == pytest.approx(np.median(near.distances) - near.distance)
    assert len(near.confidences) == SECONDS * 25 - 5 and np.mean(near.confidences) > 0.5 * near.confidence


def both(left, right):
    """Lips of two persons, the right one's at the same height."""

    def lips(frame):
        return [Lips(left(frame), BOX), Lips(right(frame), (30.0, 0.0, 94.0, 64.0))]

    return lips


def test_of_several_faces_the_one_that_speaks_is_seen(tmp_path):
    video = talking(tmp_path / "a.mp4", 0.08)
    still, moving = (lambda frame: 0.5), (lambda frame: dark_lips(frame)[0].opening)
    score = score_video(video, both(still, moving), audios=[SPEECH], syncnet=DarkMouths())
    assert score.followed_by == (1,) and score.syncnets[0].lag_s == pytest.approx(0.08)
    score = score_video(video, both(still, moving), audios=[SPEECH, SPEECH], syncnet=DarkMouths())
    assert len(score.syncnets) == len(score.syncs) == 2


@pytest.mark.parametrize("fps", [50, 30, 10])
def test_other_rates_are_brought_to_that_of_training(tmp_path, fps):
    score = score_video(talking(tmp_path / "a.mp4", 0.12, fps=fps), dark_lips, audios=[SPEECH], syncnet=DarkMouths())
    (near,) = score.syncnets
    assert abs(near.lag_s - 0.12) < 0.041 and near.lag_frames == pytest.approx(near.lag_s * fps)
    assert len(near.confidences) == SECONDS * 25 - 5


def test_a_face_is_followed_steadily_and_through_gaps():
    boxes = np.array([(i, 10.0, i + 20.0, 30.0) for i in range(60)], float)
    boxes[20:25] = math.nan  # not seen
    boxes[40] = (200, 200, 300, 300)  # another face, for one frame
    columns, rows, halves = np.array(list(track(boxes, 25, 60))).T
    assert np.allclose(columns[6:-6], np.arange(6, 54) + 10, atol=1) and set(rows) == {20.0} and set(halves) == {10.0}


def test_crops_have_the_mouth_in_their_middle_and_gray_around_a_frame():
    frame = np.zeros((100, 120, 3), np.uint8)
    frame[60:64, 58:62] = 255  # a mouth, as far below the middle of a face as they are
    bright = crop(frame, 60.0, 50.0, 30.0)[..., 0].numpy() > 200
    middle = np.argwhere(bright).mean(0)
    assert bright.shape == (224, 224) and np.allclose(middle, 111.5, atol=3), middle
    cornered = crop(frame, 0.0, 0.0, 30.0)
    assert (cornered[:60] == 110).all() and (cornered[:, :60] == 110).all() and (cornered[-60:, -60:] == 0).all()
    assert (crop(frame, -500.0, 900.0, 30.0) == 110).all()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(syncnets.state_dict(3), path, _use_new_zipfile_serialization=False)  # as the published one is
    return path


def test_the_command_writes_and_says_it(tmp_path, monkeypatch, capsys, file):
    monkeypatch.setattr("wanvideo.quality.lips.MeshLips", lambda: dark_lips)
    video = talking(tmp_path / "a.mp4", opening=np.linspace(0, 1, 2 * FPS))
    assert command.main([str(video), "--audio", str(SPEECH), "--syncnet", str(file)]) == 0
    (near,) = json.loads((tmp_path / "a.score.json").read_text())["syncnets"]
    printed = capsys.readouterr().out
    assert f"SyncNet: mouth {abs(near['lag_frames']):.1f} frames" in printed or "SyncNet: mouth on time" in printed
    assert f"({near['lag_s'] * 1000:+.0f} ms), confidence {near['confidence']:.3f}, distance" in printed
    assert len(near["distances"]) == 31 and len(near["confidences"]) == 2 * 25 - 5


def test_what_cannot_be_measured_is_said(tmp_path, monkeypatch, capsys, file):
    monkeypatch.setattr("wanvideo.quality.lips.MeshLips", lambda: dark_lips)
    short = talking(tmp_path / "a.mp4", opening=np.zeros(30))
    assert command.main([str(short), "--audio", str(SPEECH), "--syncnet", str(file)]) == 0
    assert "SyncNet: not measured: they last less than 1.44 s together" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.score.json").read_text())["syncnets"] == []
    nobody = talking(tmp_path / "b.mp4", faces=False)
    assert command.main([str(nobody), "--audio", str(SPEECH), "--syncnet", str(file)]) == 0
    assert "SyncNet: not measured: no frame has a face for each sound" in capsys.readouterr().out
    assert command.main([str(short), "--audio", str(SPEECH)]) == 0
    assert "SyncNet" not in capsys.readouterr().out


def test_a_wrong_file_is_refused_before_the_video_is_read(tmp_path, file):
    def refused(path, match):
        with pytest.raises(CheckpointError, match=match):
            command.main([str(tmp_path / "none.mp4"), "--syncnet", str(path)])

    refused(tmp_path / "none.model", "There is no model file")
    (tmp_path / "page.model").write_text("<!doctype html><html></html>")
    refused(tmp_path / "page.model", "page.model is a web page")
    (tmp_path / "cut.model").write_bytes(file.read_bytes()[:-100])
    refused(tmp_path / "cut.model", "cut.model is cut short or damaged")
    save_file(recipes.tiny_vae_state_dict(3, (16, 8, 8, 8)), tmp_path / "vae.safetensors")
    refused(tmp_path / "vae.safetensors", "tiny VAE.*the SyncNet slot needs SyncNet as its authors.*syncnet_v2.model")
    state = syncnets.state_dict(3)
    torch.save({key: value for key, value in state.items() if key != "netcnnlip.8.bias"}, tmp_path / "less.model")
    refused(tmp_path / "less.model", "1 missing .netcnnlip.8.bias")
    torch.save(state | {"netcnnaud.8.weight": torch.zeros(8, 6, 5, 5)}, tmp_path / "other.model")
    refused(tmp_path / "other.model", r"netcnnaud.8.weight is \[8, 6, 5, 5\], not \[8, 6, 3, 3\]")
    torch.save({"net": torch.nn.ReLU()}, tmp_path / "code.model")
    refused(tmp_path / "code.model", "holds more than tensors .*could run code on this machine")
