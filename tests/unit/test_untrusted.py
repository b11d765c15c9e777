"""Files and JSON from outside: an answer for each thing that they must not be."""

import os

import pytest

from wanvideo.errors import CheckpointError, InputError
from wanvideo.untrusted import answered, parse_json, read_json, regular_file


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ("1" * 400, "400 digits"),
        ("[" * 100_000, "nested too deep"),
        (r'{"a": "C:\Users"}', "write /"),
        ('{"a": 1', "line 1, column 8"),
        (b"\xff{}", "byte 0"),
    ],
)
def test_json_that_is_refused(text, says):
    with pytest.raises(InputError, match=says) as info:
        parse_json(text, "job.json")
    assert str(info.value).startswith("job.json")


def test_json_that_is_read():
    assert parse_json(b"\xef\xbb\xbf" + b'{"a": [1, 2.5, null]}', "job.json") == {"a": [1, 2.5, None]}


def test_files_that_would_wait_or_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, says in [
        ("missing", "no file"), ("", "is a folder"), ("pipe", "a pipe or a device"), ("loop", "cannot be opened"),
        ("a\0b", "cannot be opened"), ("x" * 5000, "cannot be opened"),
    ]:  # fmt: skip
        with pytest.raises(CheckpointError, match=says):
            regular_file(f"{tmp_path}/{name}", "a model file", CheckpointError)
    with pytest.raises(InputError, match="a pipe or a device"):
        regular_file("/dev/zero", "a picture")


def test_json_files(tmp_path):
    (tmp_path / "job.json").write_text('{"prompt": "x"}', encoding="utf-8-sig")
    assert read_json(tmp_path / "job.json", "a job") == {"prompt": "x"}
    (tmp_path / "big.json").write_bytes(b"")
    os.truncate(tmp_path / "big.json", 10**9)
    with pytest.raises(InputError, match="1000 MB"):
        read_json(tmp_path / "big.json", "a job")


def test_what_is_left_of_exceptions_becomes_an_answer():
    with pytest.raises(CheckpointError, match=r"x.bin cannot be read.*IndexError"), answered("x.bin", CheckpointError):
        [][0]
    with pytest.raises(CheckpointError, match=r"x.bin cannot be read.*NotImplementedError"):
        with answered("x.bin", CheckpointError):
            raise NotImplementedError("a compression of its own")
    with pytest.raises(InputError, match="mine"), answered("x.bin", CheckpointError):
        raise InputError("mine")
    with pytest.raises(MemoryError), answered("x.bin"):
        raise MemoryError
