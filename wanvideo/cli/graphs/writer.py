"""A template that `import` fills, and what of it follows who is seen and who speaks."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...keep import AUTO, SOURCE_ENDS
from ...request import Speaker, TalkRequest

MOST_SPEAKERS = 4  # inputs of the node
IMAGE, SPEECH = "WanVideoImageToVideoMultiTalk", "MultiTalkWav2VecEmbeds"
Ref = list[object]  # a link as a queued graph has it: [id, output]


class GraphWriter:
    """The template, being filled. Every kind of node of it is there once.

    Raises: InputError for what is no graph as it is queued.
    """

    def __init__(self, nodes: dict[str, Any]) -> None:
        for key, node in nodes.items():
            if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict) or "class_type" not in node:
                raise InputError(
                    f"{key[:100]!r} of the template is no node of a queued graph. Save it with Workflow > Export (API)."
                )
        self.nodes = nodes

    def id(self, kind: str) -> str:
        found = [key for key, node in self.nodes.items() if node["class_type"] == kind]
        if len(found) != 1:
            raise InputError(
                f"The template has {len(found)} nodes {kind}, one is needed. Name another with --template."
            )
        return found[0]

    def set(self, kind: str, **values: Any) -> None:
        """Widgets, and with [id, output] links."""
        self.nodes[self.id(kind)]["inputs"].update(values)

    def add(self, kind: str, **values: Any) -> Ref:
        """A new node; returns the link to its first output."""
        key = str(max((int(key) for key in self.nodes if key.isdecimal()), default=0) + 1)  # in a subgraph it is 2:1
        self.nodes[key] = {"inputs": values, "class_type": kind}
        return [key, 0]

    def remove(self, kind: str, owner: str, name: str) -> None:
        """A node that only one other is linked to."""
        self.nodes.pop(self.id(kind))
        self.nodes[self.id(owner)]["inputs"].pop(name, None)

    def mask(self, path: str) -> Ref:
        """A picture that is white where somebody is."""
        return self.add("LoadImageMask", image=name_of(path), channel="red")


def set_source(graph: GraphWriter, request: TalkRequest) -> None:
    """The picture or the source video, and how it is followed."""
    if is_moving(request.reference):
        graph.remove("LoadImage", IMAGE, "start_image")
        graph.set(IMAGE, source_video=graph.add("LoadVideo", file=name_of(request.reference)))
    else:
        graph.set("LoadImage", image=name_of(request.reference))
    keep, camera, reanchor = request.keep, request.camera, request.settings.reanchor
    is_usual = request.source_end == SOURCE_ENDS[0] and request.crf is None
    if is_usual and not (keep or camera or reanchor or request.scene_seg):
        return
    options: dict[str, Any] = {
        "source_end": request.source_end, "mouth": "none", "scene_seg": request.scene_seg, "reanchor": reanchor,
        "crf": -1 if request.crf is None else request.crf, "feather": 0 if keep is None else keep.feather,
        "camera_zoom": 1.0, "camera_right": 0.0, "camera_down": 0.0, "camera_period": 30.0,
    }  # fmt: skip
    if keep is not None and keep.mouth is not None:
        options["mouth"] = AUTO
    elif keep is not None and keep.mask is not None:
        mask = keep.mask
        moves = is_moving(mask)
        link = graph.add("LoadVideo", file=name_of(mask)) if moves else graph.mask(mask)
        options["mask_video" if moves else "keep_mask"] = link
    if camera is not None:
        right, down = camera.pan
        options |= {"camera_zoom": camera.zoom, "camera_right": right, "camera_down": down}
        options["camera_period"] = camera.period_s
    graph.set(IMAGE, source_options=graph.add("WanVideoSourceOptions", **options))


def set_people(graph: GraphWriter, request: TalkRequest) -> None:
    """Who speaks, and where each is. Raises: InputError for what the nodes of a graph have no inputs for."""
    speakers = request.speakers
    speaking = [speaker for speaker in speakers if speaker.audio]
    if not speaking:
        raise InputError("Nobody speaks in the job, and the template is for speech. Name sound in cond_audio.")
    if len(speakers) > MOST_SPEAKERS:
        raise InputError(
            f"The job has {len(speakers)} people, and the nodes have inputs for {MOST_SPEAKERS}. Leave some out, or "
            "make the graph around WanVideoTalk, which has six."
        )
    if [speaker for speaker in speakers[: len(speaking)] if not speaker.audio]:
        raise InputError("Who only listens comes last in a graph. Name who speaks first in cond_audio.")
    sounds = [name_of(str(speaker.audio)) for speaker in speaking]
    graph.set("LoadAudio", audio=sounds[0])
    links = {f"audio_{i}": graph.add("LoadAudio", audio=sound) for i, sound in enumerate(sounds[1:], 2)}
    graph.set(SPEECH, **links)
    if len(speakers) < 2:
        return
    if all(speaker.mask for speaker in speakers):
        graph.set(SPEECH, **{f"mask_{i}": graph.mask(str(one.mask)) for i, one in enumerate(speakers, 1)})
    elif speakers[0].box or len(speaking) < len(speakers):
        graph.set(SPEECH, ref_target_masks=_placed(graph, request, speakers))


def _placed(graph: GraphWriter, request: TalkRequest, speakers: tuple[Speaker, ...]) -> Ref:
    """The masks of boxes, or of left and right."""
    if is_moving(request.reference):
        raise InputError(
            "Boxes are drawn on a picture in a graph, and the job's source is a video. Give each person a mask in "
            '"mask" instead.'
        )
    rows = [", ".join(map(str, speaker.box)) for speaker in speakers if speaker.box]
    settings = request.settings
    node, _ = graph.add(
        "WanVideoSpeakers", image=[graph.id("LoadImage"), 0], width=832, height=480, order="",
        frame_window_size=settings.window_frames, motion_frame=settings.motion_frames, regions="\n".join(rows),
        multi_audio_type=request.audio_type,
    )  # fmt: skip
    return [node, 1]


def is_moving(path: str) -> bool:
    """Whether a file is a video; where it is not there, by its name."""
    file = Path(path).expanduser()
    from ...video.reader import is_video  # here: flags are judged before it is loaded

    return is_video(file) if file.is_file() else (mimetypes.guess_type(file.name)[0] or "").startswith("video")


def name_of(path: str) -> str:
    """What a file is called in ComfyUI's input folder, on whatever system its path was written."""
    return path.replace("\\", "/").rpartition("/")[2]


def inputs_of(request: TalkRequest) -> Iterator[str]:
    """Every picture, video and sound that a graph loads, once."""
    keep = [str(request.keep.mask)] if request.keep is not None and request.keep.mask else []
    people = [path for speaker in request.speakers for path in (speaker.audio, speaker.mask) if path]
    yield from dict.fromkeys((request.reference, *people, *keep))


def check_names(request: TalkRequest) -> None:
    """Raises: InputError where two files have one name, of which ComfyUI's input folder holds only one."""
    known: dict[str, Path] = {}
    for path in inputs_of(request):
        file = Path(path).expanduser().absolute()
        if known.setdefault(name := name_of(path), file) != file:
            raise InputError(
                f"{known[name]} and {file} have one name, and a graph loads files by their name. Rename one of them."
            )
