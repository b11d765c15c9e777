"""`download` against a server that speaks the hub's protocol: broken connections, wrong content, a full disk."""

import errno
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import huggingface_hub.file_download as transfer
import pytest
from support.hub import Hub, running

from wanvideo.checkpoints import download as downloading
from wanvideo.checkpoints.download import fetch
from wanvideo.checkpoints.sets import DOCUMENTS, SETS, ModelSet, RemoteFile, files_of
from wanvideo.cli.download import main, wanted_sets
from wanvideo.errors import CheckpointError, InputError, OutputError
from wanvideo.presets import load_preset, preset_names

REPOSITORY = "someone/model"
DATA = bytes(range(256)) * 1000
SMALL = b'{"a": 1}\n'


@pytest.fixture
def hub(monkeypatch):
    """A hub with a file, and the set `tiny` that names it."""
    hub = Hub({(REPOSITORY, "sub/model.bin"): DATA, (REPOSITORY, "config.json"): SMALL})
    files = tuple(RemoteFile(REPOSITORY, name, 1, None, f"kept/{name}") for name in ("config.json", "sub/model.bin"))
    monkeypatch.setitem(SETS, "tiny", ModelSet("tiny", "a set of a test", files, "MIT"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4000)  # what is written at a time, not 10 MB
    with running(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield hub


def file_named(name, local=None, sha256=None):
    return RemoteFile(REPOSITORY, name, len(DATA), sha256, local or name)


def test_a_set_is_downloaded_with_its_table_and_a_second_time_nothing_is(hub, tmp_path, capsys):
    command = ["--set", "tiny", "--dir", str(tmp_path / "weights")]
    assert main([*command, "--dry_run"]) == 0 and not (tmp_path / "weights").exists()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "256.00 kB  to come" in printed and "MIT" in printed and "256.01 kB in all, 256.01 kB to come" in printed
    assert (tmp_path / "weights/kept/sub/model.bin").read_bytes() == DATA
    assert (tmp_path / "weights/kept/config.json").read_bytes() == SMALL
    hub.requests.clear()
    assert main(command) == 0 and not [method for method, *_ in hub.requests if method == "GET"]
    assert "0 B to come" in capsys.readouterr().out


def test_a_broken_connection_is_taken_up_where_it_ended(hub, tmp_path):
    hub.breaks = 1
    assert fetch(file_named("sub/model.bin"), tmp_path).read_bytes() == DATA
    ranges = [asked for method, _, asked in hub.requests if method == "GET"]
    assert ranges == [None, f"bytes={len(DATA) // 2}-"]


def test_a_later_call_goes_on_with_an_earlier_ones_part(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: None)
    hub.breaks = 100
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        fetch(file_named("sub/model.bin"), tmp_path)
    hub.breaks = 0
    hub.requests.clear()
    assert fetch(file_named("sub/model.bin"), tmp_path).read_bytes() == DATA
    (asked,) = [asked for method, _, asked in hub.requests if method == "GET"]
    assert asked is not None and int(asked[6:-1]) > len(DATA) // 2


@pytest.mark.parametrize("is_large", [True, False])
def test_a_server_that_says_no_sizes_serves_as_well(hub, tmp_path, is_large):
    hub.has_sizes, hub.is_large = False, is_large
    (tmp_path / f".model.bin.{hub.etag(DATA)[:12]}.part").write_bytes(b"of a download that broke off")
    assert fetch(file_named("sub/model.bin", "model.bin"), tmp_path).read_bytes() == DATA
    hub.served["sub/model.bin"] = DATA[:-1]
    with pytest.raises(CheckpointError, match="other content than was published"):
        fetch(file_named("sub/model.bin", "other.bin"), tmp_path)


def test_what_is_there_stays_though_its_size_is_not_said(hub, tmp_path, capsys):
    hub.has_sizes, hub.is_large = False, False
    command = ["--set", "tiny", "--dir", str(tmp_path)]
    assert main(command) == 0 and "~1 B" in capsys.readouterr().out
    assert main(command) == 0 and "0 B to come" in capsys.readouterr().out


def test_two_at_once_get_one_file(hub, tmp_path, monkeypatch, caplog):
    """The second waits until the first has the file, and takes it."""
    monkeypatch.setattr(downloading, "WAIT_S", 0.02)
    get, began, goes_on = transfer.http_get, threading.Event(), threading.Event()

    def halting(*args, **named):
        began.set()
        assert goes_on.wait(10)
        get(*args, **named)

    monkeypatch.setattr(transfer, "http_get", halting)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(fetch, file_named("sub/model.bin"), tmp_path)
        assert began.wait(10)
        second = threads.submit(fetch, file_named("sub/model.bin"), tmp_path)
        while "waiting for it" not in caplog.text:
            assert not second.done()
        goes_on.set()
        assert first.result() == second.result() == tmp_path / "sub/model.bin"
    assert (tmp_path / "sub/model.bin").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["model.bin"]
    assert len([method for method, *_ in hub.requests if method == "GET"]) == 1


def test_a_mirror_gets_no_token_that_is_the_hub_s(hub, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("hf_of_the_user")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    fetch(file_named("sub/model.bin", "one.bin"), tmp_path)
    assert hub.authorizations == {None}
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_mirror")
    fetch(file_named("sub/model.bin", "two.bin"), tmp_path)
    assert hub.authorizations == {None, "Bearer hf_of_the_mirror"}


@pytest.mark.parametrize("is_known", [True, False])
def test_a_server_that_sends_without_end_fills_no_disk(hub, tmp_path, monkeypatch, is_known):
    hub.has_sizes, hub.served["sub/model.bin"] = False, DATA * 20
    monkeypatch.setattr(downloading, "SLACK_BYTES", 2**16)
    sha256 = hashlib.sha256(DATA).hexdigest() if is_known else None
    with pytest.raises(CheckpointError, match="the server sends more than the"):
        fetch(file_named("sub/model.bin", sha256=sha256), tmp_path)
    (part,) = (tmp_path / "sub").iterdir()
    assert part.stat().st_size <= (1 if is_known else 3) * len(DATA)


@pytest.mark.parametrize("is_large", [True, False])
def test_other_content_is_removed(hub, tmp_path, is_large):
    hub.is_large = is_large
    hub.served["sub/model.bin"] = DATA[:-1] + b"x"
    with pytest.raises(CheckpointError, match="other content than was published"):
        fetch(file_named("sub/model.bin"), tmp_path)
    assert not (tmp_path / "sub/model.bin").exists()
    hub.served.clear()
    assert fetch(file_named("sub/model.bin"), tmp_path).read_bytes() == DATA


def test_the_hash_that_is_known_here_counts(hub, tmp_path):
    right = hashlib.sha256(DATA).hexdigest()
    assert fetch(file_named("sub/model.bin", "model.bin", right), tmp_path) == tmp_path / "model.bin"
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]
    with pytest.raises(CheckpointError, match="other content"):
        fetch(file_named("sub/model.bin", "other/model.bin", "0" * 64), tmp_path)


def test_a_full_disk_is_said_and_what_came_is_kept(hub, tmp_path, monkeypatch):
    class Full:
        """A file on a disk that has room for half of it."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if self.file.tell() + len(data) > len(DATA) // 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    get = transfer.http_get
    monkeypatch.setattr(transfer, "http_get", lambda url, file, **rest: get(url, Full(file), **rest))
    with pytest.raises(OutputError, match="is full: sub/model.bin is not complete"):
        fetch(file_named("sub/model.bin"), tmp_path)
    monkeypatch.setattr(transfer, "http_get", get)
    assert fetch(file_named("sub/model.bin"), tmp_path).read_bytes() == DATA
    assert hub.requests[-1][2] == f"bytes={len(DATA) // 2}-"


def test_room_is_looked_for_before_anything_comes(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("wanvideo.memory.machine.free_disk_bytes", lambda folder: 1000)
    with pytest.raises(OutputError, match="GB free"):
        main(["--set", "tiny", "--dir", str(tmp_path)])
    assert not [method for method, *_ in hub.requests if method == "GET"]


def test_a_revision_is_asked_for(hub, tmp_path):
    fetch(RemoteFile(REPOSITORY, "config.json", 1, None, "config.json", "refs/pr/1"), tmp_path)
    assert {revision for *_, revision in hub.revisions} == {"refs/pr/1"}


def test_what_is_not_there_is_named(hub, tmp_path):
    with pytest.raises(CheckpointError, match="someone/model is not on this machine"):
        fetch(file_named("none.bin"), tmp_path)
    with pytest.raises(CheckpointError, match="cannot be asked"):
        main(["--set", "wav2vec", "--dir", str(tmp_path)])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        fetch(file_named("config.json"), tmp_path / "file")


def test_verify_reads_what_is_there(hub, tmp_path, capsys, monkeypatch):
    right = hashlib.sha256(DATA).hexdigest()
    monkeypatch.setitem(SETS, "tiny", ModelSet("tiny", "", (file_named("sub/model.bin", "model.bin", right),)))
    (tmp_path / "model.bin").write_bytes(DATA[:-1] + b"x")
    command = ["--set", "tiny", "--dir", str(tmp_path), "--verify"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "NOT as published" in printed and "model.bin is replaced" in printed
    assert (tmp_path / "model.bin").read_bytes() == DATA
    assert main(command) == 0 and "model.bin: as published" in capsys.readouterr().out


@pytest.mark.parametrize("name", preset_names())
def test_presets_get_all_that_they_need(name):
    sets = wanted_sets(name, [])
    locals_ = [file.local for item in sets for file in item.files]
    parts = ("Wan2.1_VAE.pth", "models_clip", "tokenizer.json", "pytorch_model.bin", "t5")
    assert all(any(part in local for local in locals_) for part in parts)
    assert any("fp8" in local for local in locals_) or any("00007-of-00007" in local for local in locals_)
    loras = {file for lora in load_preset(name).loras for file in lora.files}
    assert not loras or loras & set(locals_)
    assert len(set(locals_)) == len(locals_)


def test_wrong_names_are_refused():
    with pytest.raises(InputError, match="--set 'infinitetalk'"):
        wanted_sets(None, ["infinitetalk"])
    with pytest.raises(InputError, match="Nothing to download is named"):
        wanted_sets(None, [])
    with pytest.raises(InputError, match="There is no preset"):
        wanted_sets("nope", [])


def test_sets_are_sound():
    assert all(name in SETS for names in DOCUMENTS.values() for name in names)
    for item in SETS.values():
        assert item.size_bytes > 0 and all(len(file.sha256 or "0" * 64) == 64 for file in item.files)
    assert "model.safetensors" not in {file.name for file in files_of("TencentGameMate/chinese-wav2vec2-base")}
    assert {file.name for file in files_of("google/umt5-xxl")} >= {"tokenizer.json", "tokenizer_config.json"}
