"""`doctor` says what is there in a few seconds, on a machine without a GPU too, and names no private path."""

import hashlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support import jobs

from wanvideo.checkpoints.sets import SETS
from wanvideo.cli.doctor import main
from wanvideo.cli.examine import Probe, _installed, describe, examine
from wanvideo.cli.findings import NEEDED, find_models, without_private
from wanvideo.errors import InputError
from wanvideo.memory import nvml
from wanvideo.memory.machine import Gpu
from wanvideo.memory.nvml import Nvml, NvmlGpu, read_nvml

OTHER = "other than published"


@pytest.fixture(scope="module")
def weights():
    """The tiny official folders."""
    return Path(jobs.official_files().transformer).parent


@pytest.fixture(scope="module")
def report(weights):
    return examine(weights, None, False)


def test_it_is_quick_and_complete(weights, capsys):
    start = time.process_time()  # which other processes do not move
    assert main(["--dir", str(weights), "--json"]) == 0
    assert time.process_time() - start < 10
    said = json.loads(capsys.readouterr().out)
    names = {item["name"]: item["version"] for item in said["versions"]}
    assert names["Python"] == sys.version.split()[0] and names["torch"] and names["av"] and names["FFmpeg"]
    assert said["machine"]["host_total_bytes"] >= said["machine"]["host_free_bytes"] > 0
    assert said["disk_free_bytes"] > 0 and said["attention"][0]["seconds"] > 0


def test_models_are_identified_and_held_against_what_was_published(report):
    assert {kind for model in report.models for kind in model.kinds} >= {kind.value for kind in NEEDED}
    vae = next(model for model in report.models if model.name.endswith("Wan2.1_VAE.pth"))
    assert vae.state == OTHER and "Wan2.1 VAE" in vae.what
    assert not report.missing and "Missing" not in describe(report)


def test_what_is_missing_is_named_with_the_command_that_fetches_it(tmp_path):
    text = describe(examine(tmp_path / "none", None, False))
    assert "none\nMissing:" in text and "a UMT5-XXL text encoder" in text
    assert "download --set base-480p infinitetalk-single encoders-480p t5-480p wav2vec --dir" in text
    assert describe(examine(tmp_path / "my weights", None, False)).endswith("/my weights'")
    of_preset = examine(tmp_path, "03_balanced", False)
    assert {item.from_set for item in of_preset.missing} == {"infinitetalk-fp8", "encoders-480p", "wav2vec", "fusionx"}
    with pytest.raises(InputError, match="There is no preset"):
        examine(tmp_path, "nope", False)


def test_content_is_compared_where_it_is_asked_for(weights, tmp_path, monkeypatch):
    known = SETS["encoders-480p"].files[0]
    file = tmp_path / known.local
    file.parent.mkdir(parents=True)
    file.write_bytes((weights / known.local).read_bytes())
    size, sha256 = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    for digest, states in ((sha256, ["size as published", "as published"]), ("0" * 64, ["size as published", OTHER])):
        changed = replace(known, size_bytes=size, sha256=digest)
        monkeypatch.setitem(SETS, "encoders-480p", replace(SETS["encoders-480p"], files=(changed,)))
        assert [found.state for verify in (False, True) for found in find_models(tmp_path, verify)] == states


def test_private_paths_are_shortened(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("LOGNAME", "ada")
    assert without_private("in /home/ada/weights: /data/ada/x.safetensors") == "in ~/weights: /data/USER/x.safetensors"


def test_gpus_and_their_topology_are_written_as_a_table(report):
    gpu = NvmlGpu("NVIDIA H100", 80 * 10**9, 79 * 10**9, 18, "5.0 x16 of 5.0 x16")
    machine = replace(
        report.machine, nvml=Nvml("580.1", "13.0", (gpu, gpu), (("X", "NV18"), ("NV18", "X"))),
        gpus=(Gpu("NVIDIA H100", 80 * 10**9, 79 * 10**9, (9, 0)),),
    )  # fmt: skip
    probes = (Probe("sdpa", "", 0.0012, 16384), Probe("fp8", "it failed", None, 16384))
    text = describe(replace(report, machine=machine, attention=probes))
    assert "GPU 0: NVIDIA H100, compute capability 9.0, 79.00 GB of 80.00 GB free" in text
    assert "Slot 1: NVIDIA H100, PCIe 5.0 x16 of 5.0 x16, 18 NVLinks up" in text
    assert "GPU0           X   NV18" in text and "sdpa           1.20 ms" in text and "fp8            it failed" in text


class Library:
    """A management library with two GPUs that a PCIe host bridge joins, and an old driver that knows no links."""

    def nvmlInit_v2(self):
        return 0

    def nvmlShutdown(self):
        return 0

    def nvmlSystemGetDriverVersion(self, buffer, size):
        buffer.value = b"535.1"
        return 0

    def nvmlSystemGetCudaDriverVersion_v2(self, value):
        value._obj.value = 12020
        return 0

    def nvmlDeviceGetCount_v2(self, value):
        value._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        handle._obj.value = index + 100
        return 0

    def nvmlDeviceGetName(self, handle, buffer, size):
        buffer.value = b"NVIDIA GeForce RTX 4090"
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, memory):
        memory._obj.total, memory._obj.free = 24 * 2**30, 23 * 2**30
        return 0

    def nvmlDeviceGetTopologyCommonAncestor(self, one, other, level):
        level._obj.value = 30
        return 0


def test_the_driver_is_asked_through_its_library(monkeypatch):
    monkeypatch.setattr(nvml.ctypes, "CDLL", lambda name: Library())
    found = read_nvml()
    assert isinstance(found, Nvml) and (found.driver, found.cuda) == ("535.1", "12.2")
    assert found.gpus[0] == NvmlGpu("NVIDIA GeForce RTX 4090", 24 * 2**30, 23 * 2**30, 0, "")
    assert found.topology == (("X", "PHB"), ("PHB", "X"))


def test_without_a_driver_the_reason_is_said(monkeypatch, report):
    def none(name):
        raise OSError("no such library")

    monkeypatch.setattr(nvml.ctypes, "CDLL", none)
    reason = read_nvml()
    assert isinstance(reason, str) and "no NVIDIA driver" in reason
    assert reason in describe(replace(report, machine=replace(report.machine, nvml=reason)))


def test_packages_that_are_not_there_are_said(monkeypatch, report):
    assert _installed("no-such-package-at-all") == ""
    assert "not installed" in describe(report)
