"""What commands print, on terminals that lack letters and for readers that leave early."""

import io
import os
import sys

import pytest

from wanvideo.cli.main import UNREAD, main, run
from wanvideo.runs.manifest import Manifest, Plan


def test_a_name_in_letters_that_the_terminal_lacks_ends_no_command(tmp_path, monkeypatch):
    folder = tmp_path / "你好.run"
    folder.mkdir()
    Manifest({"seed": "1"}, {}, Plan(64, 48, 25.0, 25, 3)).write(folder)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert rb"\u4f60\u597d.run" in written.getvalue()


@pytest.fixture(params=[False, True], ids=["buffered", "unbuffered"])
def closed(request, monkeypatch):
    """A standard output whose reader is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as raw:
        stream = io.TextIOWrapper(raw, encoding="utf-8", write_through=request.param)
        monkeypatch.setattr(sys, "stdout", stream)
        yield
        stream.detach()


@pytest.mark.parametrize("arguments", [["--help"], ["presets"]])
def test_a_reader_that_left_is_no_error(closed, capfd, arguments):
    assert main(arguments) in (0, UNREAD)
    assert not capfd.readouterr().err


def test_a_pipe_that_broke_elsewhere_is_told(capsys):
    def breaks(arguments):
        raise BrokenPipeError("a worker is gone")

    assert run(breaks, []) == 1
    assert "a worker is gone" in capsys.readouterr().err


def test_wrong_commands_of_runs_are_one_sentence(capsys):
    for wrong, words in (["lst"], "Did you mean 'list'?"), (["list", "--all"], "is no flag of"), (["show"], "required"):
        assert main(["runs", *wrong]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and words in said and said.count("\n") == 1
