"""ComfyUI, which only this file touches: folders, memory, progress, interruption, what the page shows and says.

Without ComfyUI everything here still works on its own, so that nodes can be called as plain Python.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from json import dumps
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .nodes_messages import translate
from .wanvideo.engine.host import Host, ModelHandle, Placeable, ProcessHost
from .wanvideo.errors import InputError, TalkError, UnsupportedError
from .wanvideo.memory.residency import module_bytes
from .wanvideo.sampling.window import StepReport
from .wanvideo.untrusted import read_json
from .wanvideo.video.overlay import grid, save_picture
from .wanvideo.video.tagged import save_tagged

try:
    import comfy.latent_formats
    import comfy.model_management
    import comfy.model_patcher
    import comfy.utils
    import folder_paths
    from comfy_execution.utils import get_executing_context
    from server import PromptServer
except ImportError:
    comfy = folder_paths = PromptServer = None

LANGUAGES = ("en", "zh")
MAX_PREVIEW = 768  # pixels of a preview's longer edge
VIDEO_EVENT, TEXT_EVENT = "wanvideo.video", "wanvideo.text"  # what wanvideo/web/preview.js plays, and writes
logger = logging.getLogger("wanvideo")


# Folders: what ComfyUI keeps where.


def in_comfyui() -> bool:
    return folder_paths is not None


def folder_roots(folder: str) -> list[Path]:
    """Where the files of one of ComfyUI's model folders may be."""
    if folder_paths is None or folder not in folder_paths.folder_names_and_paths:
        return []
    return [Path(root) for root in folder_paths.get_folder_paths(folder)]


def folder_names(folder: str) -> list[str]:
    """What ComfyUI lists of one of its model folders."""
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


def models_folder() -> Path:
    return Path(folder_paths.models_dir) if folder_paths else Path("models")


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory()) if folder_paths else Path("output")


def input_folder() -> Path:
    return Path(folder_paths.get_input_directory()) if folder_paths else Path("input")


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

    def place(self, handle: Placeable, place: Callable[[], None], num_bytes: int) -> None:
        if handle.managed is None:
            handle.managed = _managed()(handle.residency)
        handle.managed.place = place
        comfy.model_management.load_models_gpu([handle.managed], memory_required=num_bytes)

    def trim(self) -> None:
        comfy.model_management.soft_empty_cache()

    def discard(self, handle: ModelHandle) -> None:
        handle.loaded.offload()  # ComfyUI may still ask where it is


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
    """Says after each step where a run is, with a preview, and ends it when the user asks for that.

    Args: decoded: pictures of latents at some of their indices, for users who want decoded ones; None: it has none.
    """

    node_id: str | None
    decoded: Callable[[Tensor, list[int]], list[Any] | None] = lambda latents, indices: None
    started: float = field(default_factory=time.perf_counter)
    steps_done: int = 0

    def __call__(self, report: StepReport) -> None:
        stop_if_interrupted()
        self.steps_done += 1
        num_windows = report.num_windows or report.window_index + 1  # so far, while the length is not known
        total = num_windows * report.num_steps
        done = report.window_index * report.num_steps + report.step_index + 1  # some of them maybe by an earlier run
        pace = (time.perf_counter() - self.started) / self.steps_done
        left = pace * (total - done)
        line = (
            f"window {report.window_index + 1}/{num_windows} · step {report.step_index + 1}/{report.num_steps}"
            f" · {pace:.1f} s/step · {_clock(left)} left"
        )
        if comfy:
            bar = comfy.utils.ProgressBar(total, node_id=self.node_id)
            bar.update_absolute(done, total, _preview(report.denoised, self.decoded))
            _send_text(line, self.node_id)
        logger.debug(line)

    def show(self, path: Path, num_windows: int, total: int) -> None:
        """Let the page play what is finished, `num_windows` of `total`, from a file that may still grow."""
        inside = _in_output(path)
        if not inside.is_absolute():
            names = {"filename": inside.name, "subfolder": inside.parent.as_posix()}
            _send(VIDEO_EVENT, self.node_id, names | {"status": f"{num_windows}/{total}"})

    def finish(self, path: Path, folder: Path) -> None:
        """Say under the node where the video is, and the folder of its run."""
        logger.info("The video is in %s", path)
        places = [path] if path.parent == folder else [path, folder]
        _send_text("\n".join(str(_in_output(place)) for place in places), self.node_id)


def _in_output(path: Path) -> Path:
    """A path as seen from the output folder; as it is where it is not in there."""
    home, path = output_folder().absolute(), path.absolute()
    return path.relative_to(home) if path.is_relative_to(home) else path


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _preview(denoised: Tensor, decoded: Callable[[Tensor, list[int]], list[Any] | None]) -> Any:
    """What the page shows of latents [16, T, H, W] after a step, if its user wants previews: how the window goes on."""
    import latent_preview

    count = denoised.shape[1]
    indices = sorted({index * (count - 1) // 3 for index in range(4)})
    if latent_preview.args.preview_method == latent_preview.LatentPreviewMethod.TAESD:
        frames = decoded(denoised, indices)
        if frames is not None:
            return "JPEG", grid(frames), MAX_PREVIEW
    previewer = latent_preview.get_previewer(denoised.device, comfy.latent_formats.Wan21())
    if previewer is None:
        return None
    frames = [previewer.decode_latent_to_preview(denoised[None, :, index : index + 1]) for index in indices]
    return "JPEG", grid(frames), MAX_PREVIEW


def inputs_of_others(graph: Any, node_id: str | None, own: type) -> set[str]:
    """Inputs of a node that come from nodes of another class than `own`. Args: graph: what ComfyUI has as DYNPROMPT."""
    if graph is None:
        return set()
    registered = sys.modules["nodes"].NODE_CLASS_MAPPINGS
    links = {name: value[0] for name, value in graph.get_node(node_id)["inputs"].items() if isinstance(value, list)}
    kinds = {name: registered[graph.get_node(source)["class_type"]] for name, source in links.items()}
    return {name for name, kind in kinds.items() if not issubclass(kind, own)}


def page_language() -> str:
    """The language chosen in the page's settings; English where none was, as then only the browser knows it."""
    if folder_paths is None:
        return "en"
    settings = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    with contextlib.suppress(TalkError):
        found = read_json(settings, "ComfyUI's settings") if settings.is_file() else {}
        language = found.get("Comfy.Locale") if isinstance(found, dict) else None
        return language if language in LANGUAGES else "en"
    return "en"


def say(text: str, node_id: str | None) -> None:
    """Show lines under a node, in the page's language, and in the log."""
    logger.info("%s", text)
    _send_text("\n".join(translate(line, page_language()) for line in text.splitlines()), node_id)


def show_picture(picture: np.ndarray) -> dict[str, Any]:
    """What a node answers, beside its results, to show a picture [rows, columns, 3] uint8 in the page."""
    path = save_picture(picture, temporary_file("picture", ".png"))
    return {"images": [{"filename": path.name, "subfolder": "", "type": "temp"}]}


def _send_text(line: str, node_id: str | None) -> None:
    """Show a line under a node, below the warnings that it has given so far."""
    if node_id is not None:
        lines = _warnings.of(node_id)
        _send(TEXT_EVENT, node_id, {"text": "\n".join([*lines, line] if line else lines)})


def _send(event: str, node_id: str | None, values: dict[str, str]) -> None:
    """Tell the page that has queued the graph something of one of its nodes; what no page has queued tells none."""
    server = prompt_server()
    if server is not None and node_id is not None and server.client_id is not None:
        told = {"node": node_id, "workflow": _workflow_id(server), **values}
        server.send_sync(event, told, server.client_id)


def _workflow_id(server: Any) -> str | None:
    """The page's id of the workflow that runs: another one may be open by now. None: a script has queued it."""
    running, _ = server.prompt_queue.get_current_queue_volatile()
    found = next((item[3] for item in running if item[1] == server.last_prompt_id), None)
    for name in ("extra_pnginfo", "workflow", "id"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


class _PageWarnings(logging.Handler):
    """Shows what the library warns of under the node that runs: few users read the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.prompt_id = ""
        self.lines: dict[str, list[str]] = {}  # of the nodes that have run for this prompt

    def of(self, node_id: str) -> list[str]:
        """What a node has warned of in the graph that runs."""
        return self.lines.get(node_id, [])

    def begin(self) -> str | None:
        """The node that runs; where it has just begun, nothing of its earlier runs is shown from now on."""
        context = get_executing_context()
        if context is None:
            return None
        if context.prompt_id != self.prompt_id:
            self.prompt_id, self.lines = context.prompt_id, {}
        if context.node_id not in self.lines:  # a node may be asked what it needs, and run behind others
            self.lines[context.node_id] = []
            _send_text("", context.node_id)
        return context.node_id

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(RuntimeError):  # the server is going down
            node_id = self.begin()
            if node_id is None:
                return
            line = translate(record.getMessage(), page_language())
            if line not in self.lines[node_id]:
                self.lines[node_id].append(line)
            _send_text("", node_id)


_warnings = _PageWarnings()


def begin_texts() -> None:
    """Take what an earlier run has left under the node that runs out of the page."""
    if prompt_server() is not None:
        _warnings.begin()


def show_warnings() -> None:
    """From now on warnings are shown in the page too."""
    if in_comfyui() and _warnings not in logger.handlers:
        logger.addHandler(_warnings)


def prompt_server() -> Any:
    """ComfyUI's server; None outside it."""
    return getattr(PromptServer, "instance", None)


def offer_replacements(names: Mapping[str, str]) -> None:
    """Let the page replace nodes that nobody has, input by input of the same name. Args: names: theirs -> ours."""
    manager = getattr(prompt_server(), "node_replace_manager", None)
    if manager is None:  # an older ComfyUI
        return
    from comfy_api.latest import io

    for theirs, ours in names.items():
        manager.register(io.NodeReplace(new_node_id=ours, old_node_id=theirs))


def fill_emptied_inputs(defaults: Mapping[str, Mapping[str, float]]) -> None:
    """Take an emptied number of a queued graph, '' or null, as its widget's default: saved graphs of others have them.

    ComfyUI would refuse the graph before the node is asked. Whatever else is null is taken as not given: ComfyUI would
    make the text "None" of a text, and check an input that a script leaves unlinked as if something were linked to it.
    Args: defaults: of the numbers of every node, by its id.
    """
    server = prompt_server()
    if server is None:
        return

    def fill(request: dict[str, Any]) -> dict[str, Any]:
        graph = request.get("prompt")
        for item in graph.values() if isinstance(graph, dict) else ():
            if not isinstance(item, dict) or not isinstance(inputs := item.get("inputs"), dict):
                continue
            kind = str(item.get("class_type"))
            for name, default in defaults.get(kind, {}).items():
                if name in inputs and inputs[name] in ("", None):
                    logger.info("%s %s was empty: %s is used.", kind, name, default)
                    inputs[name] = default
            for name in [name for name, value in inputs.items() if value is None and kind in defaults]:
                del inputs[name]
        return request

    server.add_on_prompt_handler(fill)


def video_from_file(path: Path, *names: Path) -> Any:
    """A VIDEO whose frames stay in their file, of which saving makes no second copy.

    Args: names: others of the file, or copies of it: it is taken from there where the first is gone.
    Raises: UnsupportedError outside ComfyUI.
    """
    if comfy is None:
        raise UnsupportedError(f"A VIDEO needs ComfyUI. Take the video from {path}")
    from comfy_api.latest import InputImpl

    class LinkedVideo(InputImpl.VideoFromFile):
        """A finished mp4, which ComfyUI's nodes save as another name of itself. ComfyUI keeps it from queue to queue,
        and its file may be gone by then."""

        def there(self) -> list[Path]:
            """The names that are left."""
            found = [name for name in (path, *names) if name.is_file()]
            if not found:
                raise InputError(
                    f"The finished video {path} is no longer there. "
                    "Unload the execution cache and queue the graph again."
                )
            if found[0] != path:
                super().__init__(str(found[0]))
            return found

        def get_stream_source(self) -> Any:
            return self.there() and super().get_stream_source()

        def get_dimensions(self) -> Any:
            return self.there() and super().get_dimensions()

        def get_components(self) -> Any:
            return self.there() and super().get_components()

        def save_to(
            self, target: Any, format: Any = "auto", codec: Any = "auto", metadata: Any = None, **how: Any
        ) -> None:  # fmt: skip
            found = self.there()
            is_file = isinstance(target, str | PathLike) and Path(target).suffix.lower() == ".mp4"
            is_kept = format in ("auto", "mp4") and codec in ("auto", "h264") and not any(how.values())
            if not (is_file and is_kept):
                super().save_to(target, format=format, codec=codec, metadata=metadata, **how)
                return
            tags = (metadata or {}).items()
            save_tagged(found, target, {key: tag if isinstance(tag, str) else dumps(tag) for key, tag in tags})

    return LinkedVideo(str(path))
