"""Pictures, sounds and masks of a graph as files that a job can name."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ... import checks
from ...durable import write_atomically
from ...errors import InputError
from ...untrusted import answered
from ...video.picture import ORIENTATION, SIXTEEN_BIT, identify, load_channels
from .graph import Graph, GraphNode

PICTURES = {"LoadImage": "image", "LoadVideo": "file", "VHS_LoadVideo": "video"}
SOUNDS = {"LoadAudio": "audio", "VHS_LoadAudioUpload": "audio", "LoadVideo": "file", "VHS_LoadVideo": "video"}
MASKS = {"LoadImage": "alpha", "LoadImageMask": "", "ImageToMask": ""}  # "": the channel that a widget names
CHANNELS = ("red", "green", "blue", "alpha")
# Nodes between a file and what uses it that change what is seen or heard, and what the job has in their place.
CHANGING = {
    "MelBandRoFormerSampler": "give sound whose voice is already separated from music",
    "ImageScale": "the command line fits the picture to the video itself",
    "ImageResizeKJv2": "the command line fits the picture to the video itself",
    "ImageFromBatch": "the job follows the whole video, not one of its frames",
    "GetImageRangeFromBatch": "the job follows the whole video, not some of its frames",
    "GetVideoComponents": "the job follows the video by its time",
    "ImageCrop": "give a picture that is already cropped",
    "TrimAudioDuration": "give sound that is already cut",
    "Video Slice": "give a file that holds only this part",
}
PASSING = ("GetImageSizeAndCount", "GetImageSize", "WanVideoTalkingPreset")  # these change nothing
WHOLE: dict[str, dict[str, float]] = {  # of loaders that can take a part of their file: what they say for all of it
    "VHS_LoadVideo": {"force_rate": 0, "skip_first_frames": 0, "frame_load_cap": 0, "select_every_nth": 1},
    "VHS_LoadAudioUpload": {"start_time": 0, "duration": 0},
}
JPEGS = ("JPEG", "MPO")
EXACT = ("PNG", "TIFF", *JPEGS)  # what ComfyUI and the command line read alike


@dataclass(frozen=True)
class Derived:
    """A picture that is written beside the job: what a graph takes of a file. part: color, or a channel of it."""

    path: str
    source: str
    part: str

    def save(self) -> None:
        """Raises: InputError when the source is no picture, OSError when it cannot be written."""
        pixels = load_channels(self.source)
        if self.part == "alpha":
            pixels = 255 - pixels[..., 3]  # what is painted in ComfyUI's mask editor is transparent
        else:
            pixels = pixels[..., :3] if self.part == "color" else pixels[..., CHANNELS.index(self.part)]
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        write_atomically(Path(self.path), data.getvalue())


class Media:
    """What a graph loads from ComfyUI's input folder. prefix: how paths of derived pictures begin."""

    def __init__(self, graph: Graph, inputs: str, prefix: str) -> None:
        self.graph, self.inputs, self.prefix = graph, inputs, prefix
        self.notes: list[str] = []
        self.derived: list[Derived] = []
        self._owners: dict[str, tuple[Path, str]] = {}  # of each path that a derived picture has: its source and part

    def sound(self, node: GraphNode, name: str) -> str:
        """The path of the sound that an input is made from."""
        return self._file(node, name, SOUNDS)

    def reference(self, node: GraphNode, name: str) -> str:
        """The path of the picture or video that an input is made from; a picture without its transparency."""
        path = self._file(node, name, PICTURES)
        if not Path(path).is_file() or (image := identify(Path(path))) is None:
            return path
        with answered(path), image:
            form, has_alpha = image.format, "A" in image.getbands() or "transparency" in image.info
            is_exact = form in EXACT and _is_plain(image)
        if not is_exact:
            self.notes.append(
                f"{Path(path).name}: ComfyUI reads {form} a little differently; save it as an 8 bit PNG for both"
            )
        return self._derive(path, "color") if has_alpha else path

    def masks(self, node: GraphNode, names: list[str]) -> list[str]:
        """Paths of the pictures that are white where somebody is, empty where one of them is in no file."""
        found: list[str] = []
        for name in names:
            source = self.graph.source(node, name)
            part = None if source is None else MASKS.get(source.kind)
            if source is None or part is None:
                self.notes.append(f"{name} of {node.kind} (from {source.kind if source else 'nothing'})")
                return []
            loader = source if source.kind != "ImageToMask" else self.graph.source(source, "image")
            file = loader and loader.inputs.get("image")
            if not isinstance(file, str) or loader is None or loader.kind not in ("LoadImage", "LoadImageMask"):
                self.notes.append(f"{name} of {node.kind} (made in the graph)")
                return []
            part = part or str(source.inputs.get("channel", "alpha"))
            if part not in CHANNELS:
                self.notes.append(f"{name} of {node.kind} (channel {part:.100} of {source.kind})")
                return []
            found.append(self._derive(self._path(file), part))
        return found

    def _derive(self, path: str, part: str) -> str:
        """The path of a picture to be written; what it is made of may be on another machine."""
        file = Path(path.replace("\\", "/"))
        derived = Derived(self._free_path(file, part), str(file), part)
        if part in CHANNELS[:3] and (not file.is_file() or _is_gray(file)):
            return str(file)  # what a job reads of it is that channel
        if not file.is_file():
            self.notes.append(f"{part} of {file}, which is not there: name ComfyUI's folder of pictures with --inputs")
        elif derived not in self.derived:
            self.derived.append(derived)
        return derived.path

    def _free_path(self, file: Path, part: str) -> str:
        """Where a part of a file is written: files of one name in several folders do not share it."""
        for number in itertools.count(1):
            path = f"{self.prefix}{file.stem}{f'.{number}' if number > 1 else ''}.{part}.png"
            if self._owners.setdefault(path, (file, part)) == (file, part):
                break
        return path

    def _file(self, node: GraphNode, name: str, kinds: dict[str, str]) -> str:
        passed = list(self.graph.above(node, name))
        found = next((item for item in passed if item.kind in kinds), None)
        if found is None:
            raise InputError(f"{name} of {node.kind} is read from no file. Load it with {' or '.join(kinds)}.")
        for item in passed[: passed.index(found)]:
            if item.kind in CHANGING:
                self.notes.append(f"{item.kind}: {CHANGING[item.kind]}")
            elif item.kind not in PASSING and self._is_made_of(item, found):
                self.notes.append(
                    f"{item.kind}: what it makes of a file is not in the job; give the file as it leaves it"
                )
        for key, rest in WHOLE.get(found.kind, {}).items():
            if (value := self.graph.value(found, key, rest)) != rest:
                self.notes.append(f"{key} of {found.kind} ({checks.brief(value)}): the job has all of the file")
        return self._path(found.inputs.get(kinds[found.kind]))

    def _is_made_of(self, node: GraphNode, file: GraphNode) -> bool:
        return any(file is found for name in node.links for found in self.graph.above(node, name))

    def _path(self, file: Any) -> str:
        """Of a file as a loader names it: in the input folder, unless it is said to be elsewhere."""
        name, _, place = str(file).removesuffix("]").partition(" [")
        if place not in ("", "input"):
            self.notes.append(f"{name} is in ComfyUI's {place} folder: copy it into its input folder")
        inside = name.replace("\\", "/")  # as a graph of Windows has it
        return f"{self.inputs}/{inside}"


def _is_plain(image: Image.Image) -> bool:
    """Whether a picture has 8 bits, as a JPEG is in color, and is not to be mirrored, which ComfyUI leaves out."""
    is_mirrored = image.getexif().get(ORIENTATION, 1) in (2, 4, 5, 7)
    return image.mode not in SIXTEEN_BIT and (image.format not in JPEGS or image.mode == "RGB") and not is_mirrored


def _is_gray(file: Path) -> bool:
    """Whether all channels of a picture are one, and nothing of it is transparent."""
    pixels = load_channels(file)
    return bool((pixels[..., :1] == pixels[..., 1:3]).all() and (pixels[..., 3] == 255).all())
