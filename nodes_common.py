"""What all nodes share, and the only file that touches ComfyUI: folders, memory, progress, interruption, widgets.

Without ComfyUI everything here still works on its own, so that nodes can be called as plain Python.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .wanvideo.checkpoints.detect import SLOTS
from .wanvideo.checkpoints.dialects import Kind
from .wanvideo.engine.host import Host, ModelHandle, ProcessHost
from .wanvideo.errors import CheckpointError, InputError, TalkError, UnsupportedError
from .wanvideo.geometry import snap_frames
from .wanvideo.memory.residency import module_bytes
from .wanvideo.sampling.window import StepReport

try:
    import comfy.latent_formats
    import comfy.model_management
    import comfy.model_patcher
    import comfy.utils
    import folder_paths
except ImportError:
    comfy = folder_paths = None

PACK = Path(__file__).resolve().parent
CATEGORY = "Talking Video"
LOADERS = f"{CATEGORY}/loaders"
DEVICES = ("main_device", "offload_device")
logger = logging.getLogger("wanvideo")
Socket = TypeVar("Socket")


# Nodes: how a class becomes what ComfyUI asks for.


@cache
def texts(language: str = "en") -> dict[str, Any]:
    """Names, descriptions and tooltips of all nodes: the file that ComfyUI's page reads, and their only source."""
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


class Node:
    """A node: inputs as class attributes, texts from locales/, results as ComfyUI wants them.

    REQUIRED, OPTIONAL: name -> what `whole`, `number`, `choice`, `flag`, `text`, `socket` or `Files` give.
    """

    CATEGORY = CATEGORY
    REQUIRED: dict[str, Any] = {}
    OPTIONAL: dict[str, Any] = {}
    HIDDEN: dict[str, str] = {}

    def __init_subclass__(cls) -> None:
        own = texts().get(cls.__name__, {})
        cls.DESCRIPTION = own.get("description", "")
        if "outputs" in own:
            cls.OUTPUT_TOOLTIPS = tuple(output.get("tooltip", "") for output in own["outputs"].values())

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tips = texts().get(cls.__name__, {}).get("inputs", {})
        groups = {"required": cls.REQUIRED, "optional": cls.OPTIONAL}
        types: dict[str, Any] = {
            group: {name: _widget(spec, tips.get(name, {}).get("tooltip")) for name, spec in inputs.items()}
            for group, inputs in groups.items()
        }
        return types | {"hidden": dict(cls.HIDDEN)}


class FileNode(Node):
    """A node that names files: it runs again when one of them has changed."""

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> str:
        files = {name: spec for name, spec in (cls.REQUIRED | cls.OPTIONAL).items() if isinstance(spec, Files)}
        return " ".join(spec.stamp(inputs[name]) for name, spec in files.items() if name in inputs)


def display_name(cls: type[Node]) -> str:
    return texts().get(cls.__name__, {}).get("display_name", cls.__name__)


def _widget(spec: Any, tooltip: str | None) -> tuple[Any, dict[str, Any]]:
    kind, options = spec.widget() if isinstance(spec, Files) else spec
    return kind, options | ({"tooltip": tooltip} if tooltip else {})


def whole(default: int, low: int, high: int, step: int = 1) -> tuple[str, dict[str, Any]]:
    return "INT", {"default": default, "min": low, "max": high, "step": step}


def number(default: float, low: float, high: float, step: float = 0.01) -> tuple[str, dict[str, Any]]:
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "round": step}


def choice(default: str, *options: str) -> tuple[list[str], dict[str, Any]]:
    return list(options or (default,)), {"default": default}


def flag(default: bool) -> tuple[str, dict[str, Any]]:
    return "BOOLEAN", {"default": default}


def text(default: str = "", multiline: bool = False) -> tuple[str, dict[str, Any]]:
    return "STRING", {"default": default, "multiline": multiline}


def socket(kind: str) -> tuple[str, dict[str, Any]]:
    return kind, {}


def expect(value: Any, kind: type[Socket] | tuple[type, ...], what: str) -> Socket:
    """`value` if this pack made it. Raises: InputError for what another pack's node of the same type hands over."""
    if isinstance(value, kind):
        return value
    if value is None:
        raise InputError(f"{what} is not connected.")
    raise InputError(
        f"{what} comes from another pack ({type(value).__module__}.{type(value).__qualname__}). "
        "Nodes of WanVideoWrapper and of this pack cannot be mixed in one graph: use this pack's node for it."
    )


def refuse(**sockets: Any) -> None:
    """Raise UnsupportedError for the first of these inputs that is connected."""
    for name, value in sockets.items():
        if value is not None:
            raise UnsupportedError(f"{name} is not supported by this pack yet. Unlink it, or use WanVideoWrapper.")


def snapped(name: str, frames: int) -> int:
    """frames as 4n + 1, as the VAE needs them; a number that has to be changed is said."""
    snap = snap_frames(frames)
    if snap != frames:
        logger.info("%s %d is not 4n + 1: %d is used.", name, frames, snap)
    return snap


def checked(check: Callable[[], object]) -> bool | str:
    """What VALIDATE_INPUTS answers: True, or what is wrong."""
    try:
        check()
    except TalkError as error:
        return str(error)
    return True


# Files: what a widget lists, and where a saved name leads.


@dataclass(frozen=True)
class Files:
    """A widget that lists model files.

    Args:
        kind: what the files should be; whether one is, is found out when it is opened. folders: of ComfyUI, in order.
        first: entries before the files.
    """

    kind: Kind
    folders: tuple[str, ...]
    first: tuple[str, ...] = ()

    def names(self) -> list[str]:
        return [*self.first, *sorted({name for folder in self.folders for name in _listed(folder)}, key=str.lower)]

    def widget(self) -> tuple[list[str], dict[str, Any]]:
        return self.names(), {"default": self.first[0]} if self.first else {}

    def find(self, name: str) -> Path:
        """The file that a widget's value means, on any system: by its path, else by its bare name.

        Raises: CheckpointError with name, folder and link when there is none, with the choices when there are several.
        """
        if Path(name).is_absolute() and Path(name).exists():
            return Path(name)
        parts = PureWindowsPath(name).parts
        for folder in self.folders:
            for root in _roots(folder):
                if parts and root.joinpath(*parts).is_file():
                    return root.joinpath(*parts)
        same = [other for other in self.names() if parts and PureWindowsPath(other).name == parts[-1]]
        if len(same) == 1:
            return self.find(same[0])
        if same:
            raise CheckpointError(
                f"{name} is not there, and several files have its name: {', '.join(same)}. Choose one."
            )
        slot = SLOTS[self.kind]
        where = " or ".join(dict.fromkeys(str(root) for folder in self.folders for root in _roots(folder)[:1]))
        raise CheckpointError(
            f"{name or 'The file'} is missing. Put {slot.wanted}, e.g. {slot.example}, into "
            f"{where or 'models/' + slot.folder}\nIt can be downloaded from {slot.link}"
        )

    def stamp(self, name: str) -> str:
        """What changes when the file does; empty where there is none."""
        if self.check(name) is not True or name in self.first:
            return ""
        status = self.find(name).stat()
        return f"{status.st_size}:{status.st_mtime_ns}"

    def check(self, name: str) -> bool | str:
        return True if name in self.first else checked(lambda: self.find(name))


def _roots(folder: str) -> list[Path]:
    if folder_paths is None or folder not in folder_paths.folder_names_and_paths:
        return []
    return [Path(root) for root in folder_paths.get_folder_paths(folder)]


def _listed(folder: str) -> list[str]:
    if folder_paths is None or folder not in folder_paths.folder_names_and_paths:
        return []
    return folder_paths.get_filename_list(folder)


def register_folders() -> None:
    """Add the folders that this field's models are in and that ComfyUI does not know: wav2vec2, and .gguf files."""
    if folder_paths is None:
        return
    known = folder_paths.folder_names_and_paths
    if "wav2vec2" not in known:
        folder_paths.add_model_folder_path("wav2vec2", str(Path(folder_paths.models_dir) / "wav2vec2"))
    for name in ("diffusion_models", "text_encoders"):
        known.setdefault(f"{name}_gguf", (known[name][0], {".gguf"}))


MODELS = ("diffusion_models", "diffusion_models_gguf")
TRANSFORMERS = Files(Kind.TRANSFORMER, MODELS)
ADAPTERS = Files(Kind.ADAPTER, (*MODELS, "model_patches"))
VAES = Files(Kind.VAE, ("vae",))
TEXT_ENCODERS = Files(Kind.TEXT_ENCODER, ("text_encoders", "text_encoders_gguf"))
CLIP_VISIONS = Files(Kind.CLIP_VISION, ("clip_vision", "text_encoders"))
AUDIO_ENCODERS = Files(Kind.AUDIO_ENCODER, ("wav2vec2", "audio_encoders"))
LORAS = Files(Kind.LORA, ("loras",))
SOME_LORAS = Files(Kind.LORA, ("loras",), first=("none",))


def models_folder() -> Path:
    return Path(folder_paths.models_dir) if folder_paths else Path("models")


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory()) if folder_paths else Path("output")


def temporary_folder() -> Path:
    folder = Path(folder_paths.get_temp_directory()) if folder_paths else Path("temp")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary_file(stem: str, suffix: str) -> Path:
    """A name in the temporary folder that nothing has."""
    return temporary_folder() / f"{stem}_{secrets.token_hex(6)}{suffix}"


def cache_folder() -> Path:
    base = Path(folder_paths.get_user_directory()) if folder_paths else Path.home() / ".cache"
    return base / "wan-talking-video" / "prompts"


# Memory: models belong to ComfyUI's memory manager; without ComfyUI to this process.


@cache
def host() -> Host:
    """Who lends the device's memory to models."""
    return ComfyHost() if comfy else ProcessHost()


class ComfyHost:
    """ComfyUI's memory manager as a host of the engine."""

    @property
    def device(self) -> torch.device:
        return comfy.model_management.get_torch_device()

    def obtainable_bytes(self) -> int:
        return torch.cuda.get_device_properties(self.device).total_memory

    def make_room(self, num_bytes: int) -> None:
        comfy.model_management.free_memory(num_bytes, self.device)

    def place(self, handle: ModelHandle, place: Callable[[], None], num_bytes: int) -> None:
        if handle.managed is None:
            handle.managed = _managed()(handle.residency)
        handle.managed.place = place
        comfy.model_management.load_models_gpu([handle.managed], memory_required=num_bytes)

    def trim(self) -> None:
        comfy.model_management.soft_empty_cache()

    def discard(self, handle: ModelHandle) -> None:
        handle.residency.offload()  # ComfyUI may still ask where it is


@cache
def _managed() -> type:
    class Managed(comfy.model_patcher.ModelPatcher):
        """What ComfyUI's memory manager sees of a model: its size, and orders to load, to shrink and to offload."""

        def __init__(self, residency: Any) -> None:
            cpu = torch.device("cpu")
            super().__init__(residency.model, residency.device, cpu, size=module_bytes(residency.model))
            self.residency = residency
            self.place: Callable[[], None] = residency.place

        def is_dynamic(self) -> bool:
            return False

        def loaded_size(self) -> int:
            return self.residency.device_bytes

        def current_loaded_device(self) -> torch.device:
            return self.load_device if self.residency.device_bytes else self.offload_device

        def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> int:
            self.place()
            return self.residency.device_bytes

        def partially_unload(self, device_to: Any, memory_to_free: float = 0, force_patch_weights: bool = False) -> int:
            before = self.residency.device_bytes
            self.residency.shrink(int(memory_to_free))
            return before - self.residency.device_bytes

        def detach(self, unpatch_all: bool = True) -> nn.Module:
            if unpatch_all:
                self.residency.offload()
                logger.info("%s left the device.", type(self.residency.model).__name__)
            return self.model

        def model_patches_to(self, device: Any) -> None:
            """There are no patches."""

    return Managed


# A run: progress, previews, and whether to go on.


def stop_if_interrupted() -> None:
    if comfy:
        comfy.model_management.throw_exception_if_processing_interrupted()


@dataclass
class RunProgress:
    """Says after each step where a run is, with a preview, and ends it when the user asks for that."""

    node_id: str | None
    started: float = field(default_factory=time.perf_counter)
    steps_done: int = 0

    def __call__(self, report: StepReport) -> None:
        stop_if_interrupted()
        self.steps_done += 1
        num_windows = report.num_windows or report.window_index + 1  # so far, while the length is not known
        total = num_windows * report.num_steps
        pace = (time.perf_counter() - self.started) / self.steps_done
        left = pace * (total - self.steps_done)
        line = (
            f"window {report.window_index + 1}/{num_windows} · step {report.step_index + 1}/{report.num_steps}"
            f" · {pace:.1f} s/step · {_clock(left)} left"
        )
        if comfy:
            bar = comfy.utils.ProgressBar(total, node_id=self.node_id)
            bar.update_absolute(self.steps_done, total, _preview(report.denoised))
            _send_text(line, self.node_id)
        logger.debug(line)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _preview(denoised: Tensor) -> Any:
    """What the page shows of latents [16, T, H, W] after a step, if its user wants previews."""
    import latent_preview

    previewer = latent_preview.get_previewer(denoised.device, comfy.latent_formats.Wan21())
    return previewer.decode_latent_to_preview_image("JPEG", denoised[None, :, -1:]) if previewer else None


def _send_text(line: str, node_id: str | None) -> None:
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if node_id is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(line, node_id)


def video_from_file(path: Path) -> Any:
    """A VIDEO whose frames stay in their file. Raises: UnsupportedError outside ComfyUI."""
    if comfy is None:
        raise UnsupportedError(f"A VIDEO needs ComfyUI. The video is in {path}")
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(path))


def path_of_video(video: Any) -> Path:
    """The file that a VIDEO is in; one that is only in memory is written into the temporary folder."""
    source = video.get_stream_source() if hasattr(video, "get_stream_source") else None
    if isinstance(source, str):
        return Path(source)
    path = temporary_file("source", ".mp4")
    video.save_to(str(path))
    return path
