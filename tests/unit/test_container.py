"""Memory limits of control groups: folders as the kernel shows them, and a real group where one may be made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wanvideo.memory import budget
from wanvideo.memory.container import Limit, memory_limits

MIB = 2**20
UNLIMITED = 9223372036854771712  # what version 1 shows where nobody set a limit


def group(folder, total, used, stat, version=2):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (total, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))


def membership(tmp_path, text):
    (tmp_path / "groups").write_text(text)
    return tmp_path / "groups", tmp_path / "root"


def test_every_group_above_limits_and_pages_of_files_are_free(tmp_path):
    files = membership(tmp_path, "0::/user.slice/talk.service\n")
    stat = {"anon": 200 * MIB, "inactive_file": 30 * MIB, "active_file": 10 * MIB}
    group(tmp_path / "root/user.slice/talk.service", "max", 240 * MIB, stat)
    group(tmp_path / "root/user.slice", 1000 * MIB, 240 * MIB, stat)
    assert memory_limits(*files) == [Limit(1000 * MIB, 800 * MIB)]


def test_a_container_sees_its_own_group_as_the_root(tmp_path):
    files = membership(tmp_path, "12:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n")
    stat = {"inactive_file": MIB, "active_file": 0, "total_inactive_file": 50 * MIB, "total_active_file": 50 * MIB}
    group(tmp_path / "root/memory", 500 * MIB, 300 * MIB, stat, version=1)
    assert memory_limits(*files) == [Limit(500 * MIB, 300 * MIB)]


def test_no_limit_where_the_kernel_shows_none(tmp_path):
    assert memory_limits(tmp_path / "absent", tmp_path) == []
    files = membership(tmp_path, "4:memory:/\n0::/\nnonsense\n")
    group(tmp_path / "root/memory", UNLIMITED, 300 * MIB, {}, version=1)
    (tmp_path / "root/memory.max").write_text("max\n")
    assert [limit.total_bytes for limit in memory_limits(*files)] == [UNLIMITED]


def test_plans_know_the_smaller_of_machine_and_container(monkeypatch):
    monkeypatch.setattr(budget, "memory_limits", lambda: [Limit(8 * MIB, 5 * MIB), Limit(UNLIMITED, UNLIMITED)])
    assert budget.free_host_bytes() == 5 * MIB


PROGRAM = """
import os, pathlib, sys
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from wanvideo.memory.budget import free_host_bytes
before = free_host_bytes()
held = bytearray(os.urandom(1 << 20) * 100)
with open(sys.argv[2], "wb") as file:  # its pages count as used by the group, and are free nevertheless
    file.write(held[: 50 << 20])
    os.fsync(file.fileno())
print(before >> 20, (before - free_host_bytes()) >> 20)
"""


@pytest.fixture
def real_group():
    """A group of at most 600 MiB under this process's own."""
    folder = None
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        versions = {"memory": ("memory", "memory.limit_in_bytes"), "": ("", "memory.max")}
        above, limit, path = next((*versions[names], path) for _, names, path in lines if names in versions)
        folder = Path("/sys/fs/cgroup", above, path.lstrip("/"), f"wanvideo-test-{os.getpid()}")
        folder.mkdir()
        (folder / limit).write_text(str(600 * MIB))
    except (OSError, StopIteration) as error:
        if folder is not None and folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no control group of memory can be made here ({error})")
    yield folder
    folder.rmdir()


def test_a_process_in_a_real_group(real_group, tmp_path):
    arguments = [sys.executable, "-c", PROGRAM, str(real_group), str(tmp_path / "file")]
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    free, taken = map(int, printed.stdout.split())
    assert 500 < free <= 600 and 95 <= taken <= 125
