"""The demo: from nothing to a playable video with sound, with whatever this machine has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wanvideo.cli import demo, make_models
from wanvideo.cli.main import main
from wanvideo.video.reader import probe

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("two", [False, True])
def test_the_demo_s_request_is_several_windows_over_the_whole_sound(two):
    request = demo.demo_request(two)
    assert len(request.speakers) == 1 + two and request.settings.steps == 4
    assert all(Path(speaker.audio).is_file() for speaker in request.speakers) and Path(request.reference).is_file()


def test_the_demo_makes_a_video_as_long_as_its_sound(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "wanvideo", "demo", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    info = probe(tmp_path / "demo.mp4")
    assert info.frames == 169 and (info.width, info.height) == demo.SIZE
    assert abs(info.audio_duration_s - info.duration_s) <= 1 / 25
    assert "window 3/3" in done.stderr and "169 frames, 6.76 s" in done.stdout
    assert main(["demo", "--out", str(tmp_path)]) == 2  # nothing is overwritten unasked


def test_make_models_says_how_to_use_them(tmp_path, capsys):
    assert make_models.main(["--out", str(tmp_path / "m"), "--size", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "--ckpt_dir" in shown and json.dumps("cond_video") in shown
    assert main(["make-models", "--out", str(tmp_path / "m")]) == 2
    assert "exists already" in capsys.readouterr().err
