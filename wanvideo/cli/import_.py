"""`import`: a job and the flags of `generate` as a graph of ComfyUI that makes the same video."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import checks
from ..durable import write_atomically
from ..errors import InputError, OutputError, UnsupportedError
from ..job import read_object
from ..prompts import PromptList
from ..request import Apg, EngineOptions, ModelFiles, TalkRequest, draw_seed
from ..video.reader import is_video
from .export_talk import CUSTOM
from .generate import Job, read_job
from .parser import Parser

TEMPLATE = Path(__file__).resolve().parents[2] / "example_workflows" / "api" / "01_talking_person.json"
FOLDERS = ("diffusion_models", "model_patches", "unet", "vae", "text_encoders", "clip_vision", "wav2vec2", "loras")
logger = logging.getLogger("wanvideo")


TEXT_DTYPE = ("fp16", "bf16")  # what the node of the text encoder lacks, and has for it


class _Graph:
    """The template, being filled. Every kind of node of it is there once."""

    def __init__(self, nodes: dict[str, Any]) -> None:
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

    def add(self, kind: str, **values: Any) -> list[object]:
        """A new node; returns the link to its first output."""
        key = str(max(map(int, self.nodes)) + 1)
        self.nodes[key] = {"inputs": values, "class_type": kind}
        return [key, 0]

    def remove(self, kind: str, owner: str, name: str) -> None:
        """A node that only one other is linked to."""
        self.nodes.pop(self.id(kind))
        self.nodes[self.id(owner)]["inputs"].pop(name, None)


def build(job: Job, template: dict[str, Any]) -> dict[str, Any]:
    """A graph as it is queued (`POST /prompt`), from a template of that form.

    Raises: InputError where the template or the job has not what a graph needs.
    """
    graph = _Graph(json.loads(json.dumps(template)))
    _set_files(graph, job.files)
    _set_options(graph, job.options, job.files.clip_vision is not None)
    _set_request(graph, job.request)
    return graph.nodes


def _set_files(graph: _Graph, files: ModelFiles) -> None:
    for name in ("vae", "text_encoder", "wav2vec"):
        if getattr(files, name) is None:
            flag = {"vae": "--vae_path", "text_encoder": "--t5_path", "wav2vec": "--wav2vec_dir"}[name]
            raise InputError(f"A graph names every model's file, and the job names no {name}. Name it with {flag}.")
    graph.set("WanVideoModelLoader", model=_in_folder(files.transformer))
    graph.set("WanVideoVAELoader", model_name=_in_folder(str(files.vae)))
    graph.set("WanVideoTextEncodeCached", model_name=_in_folder(str(files.text_encoder)))
    graph.set("Wav2VecModelLoader", model=_in_folder(str(files.wav2vec)))
    if files.adapter is None:
        graph.remove("MultiTalkModelLoader", "WanVideoModelLoader", "multitalk_model")
    else:
        graph.set("MultiTalkModelLoader", model=_in_folder(files.adapter))
    if files.clip_vision is None:
        graph.remove("LoadWanVideoClipTextEncoder", "WanVideoImageToVideoMultiTalk", "clip_vision")
    else:
        graph.set("LoadWanVideoClipTextEncoder", model_name=_in_folder(files.clip_vision))
    graph.remove("WanVideoLoraSelect", "WanVideoModelLoader", "lora")
    link: list[object] | None = None
    for lora in files.loras:
        before = {"prev_lora": link} if link else {}
        link = graph.add("WanVideoLoraSelect", lora=_in_folder(lora.path), strength=lora.strength, low_mem_load=False,
                         merge_loras=True, **before)  # fmt: skip
    if link:
        graph.set("WanVideoModelLoader", lora=link)


def _set_options(graph: _Graph, options: EngineOptions, has_clip: bool) -> None:
    quantization = {None: "disabled", "fp8": "fp8_e4m3fn"}.get(options.quantize)
    if quantization is None:
        raise UnsupportedError(f"No node quantizes to {options.quantize} while loading. Convert the file, or use fp8.")
    graph.set(
        "WanVideoModelLoader", base_precision=options.dtype, quantization=quantization,
        attention_mode=options.attention,
    )  # fmt: skip
    graph.set("WanVideoVAELoader", precision=options.dtype)
    graph.set("WanVideoTextEncodeCached", precision=options.dtype.replace(*TEXT_DTYPE), quantization=quantization)
    if has_clip:
        graph.set("LoadWanVideoClipTextEncoder", precision=options.dtype)
    graph.set("Wav2VecModelLoader", base_precision="fp32")  # as the command line always has it
    if options.text_encoder_device is not None:
        graph.set("WanVideoTextEncodeCached", device=options.text_encoder_device)
    if options.blocks_to_stream >= 0:
        swap = graph.add(
            "WanVideoBlockSwap", blocks_to_swap=options.blocks_to_stream, offload_img_emb=False, offload_txt_emb=False
        )
        graph.set("WanVideoModelLoader", block_swap_args=swap)
    if options.compile is not None:
        settings = graph.add(
            "WanVideoTorchCompileSettings", backend=options.compile_backend, fullgraph=False, mode=options.compile,
            dynamic=False, dynamo_cache_size_limit=64, compile_transformer_blocks_only=True,
        )  # fmt: skip
        graph.set("WanVideoModelLoader", compile_args=settings)


def _set_request(graph: _Graph, request: TalkRequest) -> None:
    settings = request.settings
    if isinstance(request.size, str):
        graph.set("WanVideoImageToVideoMultiTalk", size=request.size)
    else:
        width, height = request.size
        graph.set("WanVideoImageToVideoMultiTalk", size=CUSTOM, width=width, height=height)
    graph.set(
        "WanVideoImageToVideoMultiTalk", frame_window_size=settings.window_frames,
        motion_frame=settings.motion_frames, colormatch=settings.color_match, mode=settings.mode,
        tiled_vae=settings.tiled_vae, colormatch_strength=settings.color_strength,
    )  # fmt: skip
    graph.set(
        "WanVideoSampler", steps=settings.steps, cfg=settings.guidance_scale, shift=settings.shift,
        seed=draw_seed() if request.seed is None else request.seed, scheduler=settings.scheduler,
    )  # fmt: skip
    graph.set(
        "WanVideoTextEncodeCached", positive_prompt=str(PromptList(request.prompts, request.prompt_starts)),
        negative_prompt=request.negative_prompt,
    )  # fmt: skip
    graph.set("LoadImage", image=Path(request.reference).name)
    graph.set(
        "MultiTalkWav2VecEmbeds", num_frames=request.max_frames, fps=request.fps, multi_audio_type=request.audio_type,
        audio_cfg_scale=settings.audio_guidance_scale, normalize_loudness=request.normalize_loudness,
    )  # fmt: skip
    sounds = [Path(speaker.audio).name for speaker in request.speakers if speaker.audio]
    if not sounds:
        raise InputError("Nobody speaks in the job, and the template is for speech. Name sound in cond_audio.")
    graph.set("LoadAudio", audio=sounds[0])
    links = {f"audio_{i}": graph.add("LoadAudio", audio=sound) for i, sound in enumerate(sounds[1:], 2)}
    graph.set("MultiTalkWav2VecEmbeds", **links)
    if settings.step_cache is not None:
        cache = settings.step_cache
        link = graph.add(
            "WanVideoTeaCache", rel_l1_thresh=cache.threshold, start_step=cache.start_step, end_step=cache.end_step,
            cache_device="offload_device", use_coefficients=True, mode="e",
        )  # fmt: skip
        graph.set("WanVideoSampler", cache_args=link)


def without_counterpart(request: TalkRequest) -> Iterator[str]:
    """What of a request this graph cannot say."""
    silent = [i for i, speaker in enumerate(request.speakers, 1) if speaker.audio is None]
    for number in silent:
        yield f"person{number}, who is silent: connect a mask for each speaker and leave that sound out"
    if any(speaker.box or speaker.mask for speaker in request.speakers):
        yield "bbox: paint a mask of each speaker and connect it to mask_1, mask_2 ..."
    if isinstance(request.settings.apg, Apg):
        yield "--use_apg: connect WanVideo Experimental Args"
    for name, value in (("keep", request.keep), ("scene_seg", request.scene_seg),
                        ("source_end", request.source_end != "hold"), ("crf", request.crf is not None),
                        ("voice_activity", request.voice_activity), ("camera", request.camera),
                        ("reanchor", request.settings.reanchor)):  # fmt: skip
        if value:
            yield f"{name}: set it in the page"


def _in_folder(path: str) -> str:
    """The name that ComfyUI lists a file by: its path in its folder of models, or its name."""
    parts = path.replace("\\", "/").split("/")
    at = next((i for i, part in enumerate(parts) if part in FOLDERS), len(parts) - 2)
    return "/".join(parts[at + 1 :])


def main(argv: list[str]) -> int:
    """Write the graph and say what has no counterpart."""
    program = "python -m wanvideo import"
    parser = Parser(program, description=f"{__doc__} All other flags are those of `generate`.")
    parser.add_argument("--out", required=True, help="graph to write, to be queued or dropped on the page")
    parser.add_argument("--template", default=str(TEMPLATE), help="graph of one person, as Export (API) writes it")
    flags, rest = parser.parse_known_args(argv)
    job = read_job(rest, program)
    if Path(job.request.reference).expanduser().is_file() and is_video(job.request.reference):
        raise UnsupportedError(f"{job.request.reference} is a video. Start from the template 03_restyle_video instead.")
    nodes = build(job, read_object(checks.path("--template", flags.template), "a template"))
    out = Path(checks.path("--out", flags.out)).expanduser()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, (json.dumps(nodes, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror}). Choose another --out.") from None
    print(out)
    for path in (job.request.reference, *(speaker.audio for speaker in job.request.speakers if speaker.audio)):
        print(f"copy into ComfyUI/input: {path}")
    if job.options.dtype == TEXT_DTYPE[0]:
        print(f"no counterpart: --dtype {TEXT_DTYPE[0]} of the text encoder, which is {TEXT_DTYPE[1]} there")
    for note in without_counterpart(job.request):
        print(f"no counterpart: {note}")
    return 0
