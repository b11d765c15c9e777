"""What Windows and macOS do otherwise, done here in their place: files that stay while they are open, names, shells."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from support import media_files

from wanvideo import checks, durable, lock
from wanvideo.checkpoints.reader import checkpoints_in
from wanvideo.cli import export, main, shell
from wanvideo.cli.graphs.media import Media
from wanvideo.cli.graphs.writer import name_of
from wanvideo.engine.host import ModelHandle, check_device
from wanvideo.errors import InputError, OutputError, UnsupportedError
from wanvideo.fleet import group, jobs
from wanvideo.memory import budget, machine, streaming
from wanvideo.parallel import launch
from wanvideo.quality.drift import WindowMeasures
from wanvideo.runs.find import open_run, remove
from wanvideo.runs.identity import identify
from wanvideo.runs.lock import FolderLock, is_locked
from wanvideo.runs.manifest import Manifest, Plan
from wanvideo.runs.store import GROWING

ROOT = Path(__file__).resolve().parents[2]
GRAPH = ROOT / "example_workflows" / "api" / "01_talking_person.json"
FRAMES = media_files.numbered_frames(5)
WANTED = Manifest({"seed": "1"}, {}, Plan(64, 48, 25.0, 10, 2))
MEASURES = WindowMeasures(0, 0, (50.0, 1.0, 2.0), (20.0, 3.0, 4.0), 300.0, 0.0, 1.0)


@pytest.fixture
def opened(monkeypatch):
    """Names of files that somebody has open, on a system that neither renames, replaces nor removes these."""
    names = set()

    def refusing(method):
        def call(path, *arguments, **options):
            if names & {Path(path).name, *(Path(other).name for other in arguments)}:
                raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))
            return method(path, *arguments, **options)

        return call

    for name in ("unlink", "replace", "rename"):
        monkeypatch.setattr(Path, name, refusing(getattr(Path, name)))
    monkeypatch.setattr(durable, "KEEPS_OPEN_FILES", True)
    monkeypatch.setattr(durable, "POLL_S", 0.001)
    return names


def make(folder):
    """A run of two windows, to its end."""
    run = open_run(WANTED, folder / "talk.run", "auto", None)
    for index in range(run.manifest.progress.num_windows, 2):
        run.write(FRAMES)
        run.commit(b"state", str(index), MEASURES)
    run.close()
    return run.save_as(folder / "talk.mp4", overwrite=True)


def test_a_video_that_is_played_while_it_grows_is_finished(tmp_path, opened):
    opened.add(GROWING)
    assert media_files.decoded_frames(make(tmp_path)).shape[0] == 10
    assert (tmp_path / "talk.run" / GROWING).exists()
    opened.clear()
    make(tmp_path)
    names = {path.name for path in (tmp_path / "talk.run").iterdir()}
    assert names == {"drift.jsonl", "drift.png", "manifest.json", "video.mp4"}


def test_a_manifest_that_is_read_is_replaced_a_moment_later(tmp_path, opened, monkeypatch):
    waits = []
    monkeypatch.setattr(durable, "time", SimpleNamespace(monotonic=lambda: len(waits), sleep=waits.append))

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            opened.clear()

    monkeypatch.setattr(durable.time, "sleep", sleep)
    path = tmp_path / "manifest.json"
    path.write_bytes(b"old")
    opened.add(path.name)
    durable.write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and len(waits) == 3
    opened.add(path.name)
    with pytest.raises(PermissionError):
        durable.write_atomically(path, b"newer")
    assert len(waits) > durable.BUSY_S and path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_elsewhere_a_file_without_permission_is_said_at_once(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(durable, "KEEPS_OPEN_FILES", False)
    monkeypatch.setattr(durable, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: pytest.fail("waited")))
    path = tmp_path / "a.json"
    opened.add(path.name)
    for act in (lambda: durable.write_atomically(path, b""), lambda: durable.discard(path)):
        with pytest.raises(PermissionError):
            act()


@pytest.fixture
def windows_locks(monkeypatch):
    """Locks as msvcrt has them: of one opened file, for a range of bytes, until it is closed."""
    owners = {}

    def locking(file, mode, count):
        status, at = os.fstat(file), os.lseek(file, 0, os.SEEK_CUR)
        key = status.st_dev, status.st_ino, at
        owner = owners.get(key, file)
        try:
            is_held = owner != file and os.path.samestat(os.fstat(owner), status)
        except OSError:
            is_held = False
        if is_held:
            raise PermissionError(errno.EACCES, "Permission denied")
        owners[key] = file

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(lock, "sys", SimpleNamespace(platform="win32"))


def test_a_lock_of_windows_names_its_owner(tmp_path, windows_locks):
    held = FolderLock(tmp_path)
    assert is_locked(tmp_path)
    with pytest.raises(OutputError, match=f"is being written by process {os.getpid()}"):
        FolderLock(tmp_path)
    held.release()
    assert not is_locked(tmp_path) and list(tmp_path.iterdir()) == []
    FolderLock(tmp_path).release()


def test_a_lock_of_windows_compares_no_numbers_of_files(tmp_path, windows_locks, monkeypatch):
    monkeypatch.setattr(lock.os.path, "samestat", lambda one, other: False)
    FolderLock(tmp_path).release()


def test_a_folder_that_a_shell_works_in_stays_empty(tmp_path, monkeypatch):
    make(tmp_path)

    def rmdir(path):
        raise PermissionError(errno.EACCES, "The process cannot access the file")

    monkeypatch.setattr(Path, "rmdir", rmdir)
    assert remove(tmp_path / "talk.run") == [] and list((tmp_path / "talk.run").iterdir()) == []


def test_host_memory_is_known_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(budget, "MEMINFO", tmp_path / "none")
    total = psutil.virtual_memory().total
    assert 2**26 < budget.free_host_bytes() <= total == budget.total_host_bytes() == machine.look().host_total_bytes
    assert budget.obtainable_host_bytes() > 2**26


@pytest.mark.parametrize(
    "path", ["aux.mp4", "out/CON.mp4", r"C:\out\nul", "take:1", "what?.mp4", "my folder /a.mp4", "end./a", "com1.x.mp4"]
)
def test_names_that_windows_lacks_are_refused_there_only(path, monkeypatch):
    monkeypatch.setattr(checks, "IS_WINDOWS", False)
    checks.mp4_path("output", path)
    monkeypatch.setattr(checks, "IS_WINDOWS", True)
    with pytest.raises(InputError, match="which Windows lacks"):
        checks.mp4_path("output", path)


@pytest.mark.parametrize(
    "path",
    [r"C:\my videos\take 1.5.mp4", "C:take", r"\\server\share\a", "../a", "./console.mp4", "你好", ".a"],
)
def test_names_that_windows_has_are_taken(path, monkeypatch):
    monkeypatch.setattr(checks, "IS_WINDOWS", True)
    assert checks.mp4_path("output", path).startswith(path)


def test_jobs_whose_videos_are_one_file_where_case_does_not_count(tmp_path, monkeypatch):
    text = '{"prompt": "a", "output": "A.mp4"}\n{"prompt": "b", "output": "a.mp4"}'
    (tmp_path / "jobs.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setattr(jobs, "IGNORES_CASE", False)
    assert jobs.read_entries(tmp_path / "jobs.jsonl", tmp_path)[1] == []
    monkeypatch.setattr(jobs, "IGNORES_CASE", True)
    problems = jobs.read_entries(tmp_path / "jobs.jsonl", tmp_path)[1]
    assert len(problems) == 2 and "line 1" in problems[0] and "line 2" in problems[0]


def test_files_that_macos_leaves_everywhere_are_none_of_ours(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "job.json").write_text('{"prompt": "a"}', encoding="utf-8")
    before = identify([tmp_path])
    for name in ("._model.safetensors", "._job.json", ".DS_Store"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert checkpoints_in(tmp_path) == [[tmp_path / "model.safetensors"]]
    assert identify([tmp_path]) == before
    entries, problems = jobs.read_entries(tmp_path, tmp_path)
    assert [entry.name for entry in entries] == ["job"] and not problems


def test_graphs_and_jobs_of_windows_name_files_here():
    media = Media(None, "input", "")
    assert media._path(r"clipspace\face.png [input]") == "input/clipspace/face.png"
    assert name_of(r"C:\my files\face.png") == name_of("/home/me/face.png") == name_of("face.png") == "face.png"


QUOTED = [
    ("plain", "plain"), (r"C:\a\b.json", r"C:\a\b.json"), ("", '""'), ("a b", '"a b"'), ("a&b", '"a&b"'),
    ("C:\\my dir\\", '"C:\\my dir\\\\"'), ('say "hi"', r'"say \"hi\""'), ('a\\" b', r'"a\\\" b"'), ("(1)", '"(1)"'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), QUOTED)
def test_arguments_are_quoted_as_windows_reads_them(text, expected, monkeypatch):
    monkeypatch.setattr(shell, "IS_WINDOWS", True)
    assert shell.quoted(text) == expected
    assert _arguments_of(f"python {shell.quoted(text)} end") == ["python", text, "end"]


def _arguments_of(line):
    """As the C library of Windows parts a command line."""
    found, at = [], 0
    while at < len(line):
        text, is_quoted = "", False
        while at < len(line) and (is_quoted or line[at] != " "):
            slashes = len(line[at:]) - len(line[at:].lstrip("\\"))
            at += slashes
            if at < len(line) and line[at] == '"':
                text += "\\" * (slashes // 2)
                if slashes % 2:
                    text += '"'
                else:
                    is_quoted = not is_quoted
                at += 1
            elif slashes:
                text += "\\" * slashes
            else:
                text += line[at]
                at += 1
        found, at = [*found, text], at + 1
    return found


def test_an_exported_graph_is_a_batch_file_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shell, "IS_WINDOWS", True)
    monkeypatch.setattr(export, "SUFFIX", ".bat")
    folder = tmp_path / "100% mine"
    assert export.main([str(GRAPH), "--out", str(folder)]) == 0
    script = (folder / "01_talking_person.bat").read_bytes().decode()
    assert script.startswith('@echo off\r\nchcp 65001 >nul\r\npython -m wanvideo generate --input_json "')
    assert "100%% mine" in script and "'" not in script and "100% mine" in capsys.readouterr().out


class _Pipe(io.TextIOBase):
    """Standard output whose reader is gone, as Windows says that."""

    def write(self, text):
        raise OSError(errno.EINVAL, "Invalid argument")

    flush = write

    def fileno(self):
        return self.file


def test_a_reader_that_left_is_no_error_on_windows(monkeypatch, capfd, tmp_path):
    pipe = _Pipe()
    pipe.file = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    pipe.flush = lambda: pipe.write("")
    monkeypatch.setattr(sys, "stdout", pipe)
    assert main.run(lambda _: print("a line"), []) == main.UNREAD
    assert not capfd.readouterr().err
    os.close(pipe.file)


def test_ctrl_break_ends_a_command_as_ctrl_c_does(monkeypatch, capsys):
    if not hasattr(signal, "SIGBREAK"):
        monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    assert main.run(lambda _: signal.raise_signal(signal.SIGBREAK), []) == 130
    assert "finished windows are kept" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["generate_infinitetalk.py", "app.py"])
def test_scripts_run_in_an_isolated_python(script, tmp_path):
    code = (
        f"import runpy; runpy.run_path({str(ROOT / script)!r}, run_name='x'); import wanvideo; print(wanvideo.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60
    )
    assert Path(done.stdout.strip()) == ROOT / "wanvideo" / "__init__.py", done.stderr


def test_commands_run_in_an_isolated_python(tmp_path):
    done = subprocess.run([sys.executable, "-I", str(ROOT / "wanvideo"), "presets"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0 and b"02_comfyui_equivalent" in done.stdout, done.stderr


def test_a_worker_runs_in_an_isolated_python(tmp_path):
    code = group.START.replace("; main()", "; import wanvideo; print(wanvideo.__file__)")
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(ROOT)], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60
    )
    assert Path(done.stdout.strip()) == ROOT / "wanvideo" / "__init__.py", done.stderr


def test_a_device_without_numbers_of_64_bits_is_refused_before_a_model_is_loaded():
    host = SimpleNamespace(device=torch.device("mps"))
    handle = ModelHandle(None, host, lambda **_: pytest.fail("loaded"), None)
    for act in (handle.load, lambda: check_device(host.device)):
        with pytest.raises(UnsupportedError, match="The device mps has no numbers of 64 bits"):
            act()


def test_gpus_without_nccl_share_no_video(monkeypatch):
    monkeypatch.setattr(launch.dist, "is_nccl_available", lambda: False)
    launch.check_exchange(on_gpus=False)
    with pytest.raises(UnsupportedError, match="has no NCCL"):
        launch.check_exchange(on_gpus=True)


def test_memory_that_cannot_be_page_locked_ends_no_run(monkeypatch, caplog):
    """Windows locks about half of the memory, and CUDA tells a failure once more to whoever launches next."""
    asked, told = [], []

    def register(*arguments):
        asked.append(arguments)
        return 2 if len(asked) > 1 else 0

    def launch_next(*arguments, **options):
        told.append(options)
        raise RuntimeError("CUDA error: out of memory")

    cudart = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=lambda _: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(streaming.torch, "zeros", launch_next)
    streamer = streaming.BlockStreamer([torch.nn.Linear(4, 4) for _ in range(4)], "cuda", 4)
    assert streamer.num_streamed == 4 and len(asked) == 2 and len(told) == 1
    assert caplog.text.count("could not be page-locked") == 1
