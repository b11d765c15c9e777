"""What `doctor` finds: programs, the machine, what works on it, and model files."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .. import __version__
from ..checkpoints.sets import for_preset
from ..memory.machine import Machine, free_disk_bytes, look
from ..memory.nvml import Nvml
from ..ops.attention.backends import BACKENDS, TIMED_TOKENS, refusal, seconds_of
from ..presets import load_preset
from .download import size_text
from .findings import Found, Missing, find_models, missing_files, missing_kinds, without_private
from .shell import quoted

HEAD_WIDTH, NUM_HEADS = 128, 40  # of the 14B model
CPU_TOKENS = 1024
PACKAGES = (  # what is there, and what it is for
    ("triton", "kernels"), ("flash-attn", "attention flash_attn_2"), ("fa3-fwd", "attention flash_attn_3"),
    ("flash_attn_3", "attention flash_attn_3"), ("sageattention", "attention sageattn"),
    ("sageattn3", "attention sageattn_3"), ("transformers", "text encoder"), ("accelerate", "loading"),
    ("safetensors", "model files"), ("gguf", "GGUF files in tests"), ("huggingface_hub", "downloads"), ("av", "media"),
    ("numpy", "numbers"), ("scipy", "numbers"), ("librosa", "sound"), ("soundfile", "sound"), ("soxr", "sound"),
    ("pyloudnorm", "loudness"), ("Pillow", "pictures"), ("mediapipe", "faces: --dub auto, score, plan"),
    ("dlib-bin", "the same person: score"), ("face_recognition_models", "the same person: score"),
    ("kokoro", "--audio_mode tts"), ("espeakng-loader", "--audio_mode tts"), ("gradio", "app"),
    ("ray", "batch --engine ray"), ("silero-vad", "--voice_activity"), ("scenedetect", "--scene_seg"),
)  # fmt: skip


@dataclass(frozen=True)
class Version:
    """A program or package; version: empty where it is not installed."""

    name: str
    version: str
    use: str


@dataclass(frozen=True)
class Probe:
    """An attention backend. reason: why it is not used, empty if it is right. seconds: for `num_tokens`, in 8 heads."""

    name: str
    reason: str
    seconds: float | None
    num_tokens: int


@dataclass(frozen=True)
class Report:
    """All that was found. folder: where models were looked for, without private parts."""

    versions: tuple[Version, ...]
    machine: Machine
    attention: tuple[Probe, ...]
    folder: str
    disk_free_bytes: int
    models: tuple[Found, ...]
    missing: tuple[Missing, ...]


def examine(root: Path, preset: str | None, is_verified: bool) -> Report:
    """Look at everything. Raises: InputError for a preset that there is not."""
    chosen = None if preset is None else load_preset(preset)
    machine = look()
    models = list(find_models(root, is_verified)) if root.is_dir() else []
    folder = without_private(str(root))
    if chosen is None:
        missing = missing_kinds(models)
    else:
        sets = for_preset(chosen.options, chosen.size, (name for lora in chosen.loras for name in lora.files))
        missing = missing_files(sets, root)
    return Report(
        tuple(_versions(machine)), machine, tuple(_probes()), folder, free_disk_bytes(root), tuple(models),
        tuple(missing),
    )  # fmt: skip


def _versions(machine: Machine) -> list[Version]:
    import av

    driver = machine.nvml.driver if isinstance(machine.nvml, Nvml) else ""
    cuda = machine.nvml.cuda if isinstance(machine.nvml, Nvml) else ""
    ffmpeg = getattr(av, "ffmpeg_version_info", "") or ".".join(map(str, av.library_versions["libavcodec"]))
    return [
        Version("wanvideo", __version__, "this program"),
        Version("Python", platform.python_version(), machine.system),
        Version("torch", torch.__version__, f"CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"),
        Version("NVIDIA driver", driver, f"up to CUDA {cuda}" if cuda else "GPUs"),
        Version("FFmpeg", str(ffmpeg), "in the package av"),
        *(Version(name, _installed(name), use) for name, use in PACKAGES),
    ]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@torch.no_grad()
def _probes() -> list[Probe]:
    is_gpu = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if is_gpu else "cpu"), torch.bfloat16 if is_gpu else torch.float32
    tokens = TIMED_TOKENS if is_gpu else CPU_TOKENS
    probes = []
    for name, backend in BACKENDS.items():
        reason = refusal(name, device, dtype, HEAD_WIDTH)
        seconds = None if reason else seconds_of(backend, device, dtype, HEAD_WIDTH, NUM_HEADS, tokens)
        probes.append(Probe(name, without_private(reason or ""), seconds, tokens))
    return probes


def describe(report: Report) -> str:
    """The report as text."""
    sections = (_version_lines, _machine_lines, _attention_lines, _model_lines)
    return "\n\n".join("\n".join(section(report)) for section in sections)


def _version_lines(report: Report) -> list[str]:
    return [f"{item.name:<16} {item.version or 'not installed':<24} {item.use}" for item in report.versions]


def _machine_lines(report: Report) -> list[str]:
    machine = report.machine
    limit = f", this container has {size_text(machine.container_bytes)}" if machine.container_bytes else ""
    lines = [
        f"Memory: {size_text(machine.host_free_bytes)} of {size_text(machine.host_total_bytes)} free{limit}; "
        f"{machine.num_cores} cores",
        f"Disk of {report.folder}: {size_text(report.disk_free_bytes)} free",
    ]
    for number, gpu in enumerate(machine.gpus):
        generation = ".".join(map(str, gpu.capability))
        free = f"{size_text(gpu.free_bytes)} of {size_text(gpu.total_bytes)} free"
        lines.append(f"GPU {number}: {gpu.name}, compute capability {generation}, {free}")
    if not machine.gpus:
        lines.append(f"No GPU can be used: {machine.torch_reason}. Videos of real models need one.")
    if isinstance(machine.nvml, str):
        return [*lines, f"NVML: {machine.nvml}"]
    lines += [f"Slot {i}: {gpu.name}, PCIe {gpu.pcie or '?'}, {gpu.links} NVLinks up"
              for i, gpu in enumerate(machine.nvml.gpus)]  # fmt: skip
    if len(machine.nvml.gpus) > 1:
        lines += ["Joined by" + "".join(f"{f'GPU{i}':>7}" for i in range(len(machine.nvml.gpus)))]
        lines += [
            f"{f'GPU{i}':<9}" + "".join(f"{way:>7}" for way in row) for i, row in enumerate(machine.nvml.topology)
        ]
    return lines


def _attention_lines(report: Report) -> list[str]:
    return [f"Attention among {report.attention[0].num_tokens} tokens in 8 heads"] + [
        f"  {probe.name:<14} {f'{probe.seconds * 1000:.2f} ms' if probe.seconds is not None else probe.reason}"
        for probe in report.attention
    ]


def _model_lines(report: Report) -> list[str]:
    lines = [f"Models in {report.folder}: {len(report.models) or 'none'}"]
    for model in report.models:
        state = f"; {model.state}" if model.state else ""
        lines.append(f"  {model.name}: {model.what}, {size_text(model.num_bytes)}{state}")
    if report.missing:
        lines.append("Missing:")
    lines += [f"  {item.what}\n    from {item.link}" for item in report.missing]
    if report.missing:
        sets = " ".join(dict.fromkeys(item.from_set for item in report.missing))
        lines.append(f"  fetch it with: python -m wanvideo download --set {sets} --dir {quoted(report.folder)}")
    return lines
