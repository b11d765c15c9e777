"""`export`: a graph of ComfyUI, ours or WanVideoWrapper's, as a job file and the command that makes the same video."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import checks
from ..checkpoints.detect import SLOTS
from ..checkpoints.dialects import Kind
from ..durable import write_atomically
from ..errors import InputError, OutputError
from ..keep import AUTO, DEFAULT_FEATHER
from ..ops.attention.backends import ATTENTION_MODES, STAND_INS
from ..prompts import PromptList
from ..request import NEGATIVE_PROMPT
from .graphs import CONTROL, WIDGETS, Graph, GraphNode, read_graph
from .parser import Parser

SAMPLERS, IMAGES = ("WanVideoSampler",), ("WanVideoImageToVideoMultiTalk",)
DTYPES = {"bf16": "bf16", "fp16": "fp16", "fp16_fast": "fp16", "fp32": "fp32"}
# Loaders, the name of their precision, and what the command line has for them; "": the transformer's.
PRECISIONS_OF = (
    (("WanVideoVAELoader", "LoadWanVideoClipTextEncoder", "WanVideoTextEncodeCached", "LoadWanVideoT5TextEncoder"),
     "precision", ""),
    (("Wav2VecModelLoader", "DownloadAndLoadWav2VecModel"), "base_precision", "fp32"),
)  # fmt: skip
PICTURES = {"LoadImage": "image", "LoadVideo": "file", "VHS_LoadVideo": "video"}
SOUNDS = {"LoadAudio": "audio", "VHS_LoadAudioUpload": "audio", "LoadVideo": "file", "VHS_LoadVideo": "video"}
CUTTING = ("Video Slice", "TrimAudioDuration")
# Inputs that are read, or change nothing of the frames.
READ = {
    "WanVideoSampler": {
        "model", "image_embeds", "text_embeds", "multitalk_embeds", "steps", "cfg", "shift", "seed", CONTROL,
        "force_offload", "scheduler", "batched_cfg", "rope_function", "add_noise_to_samples", "cache_args",
    },
    "WanVideoImageToVideoMultiTalk": {
        "vae", "start_image", "clip_vision", "clip_embeds", "width", "height", "size", "frame_window_size",
        "motion_frame", "force_offload", "colormatch", "colormatch_strength", "tiled_vae", "mode", "output_path",
        "source_video", "source_options",
    },
    "WanVideoSourceOptions": {*WIDGETS["WanVideoSourceOptions"], "mask_video"},
    "MultiTalkWav2VecEmbeds": {
        "wav2vec_model", "num_frames", "fps", "audio_cfg_scale", "multi_audio_type",
        *(f"audio_{i}" for i in range(1, 7)),
    },
    "WanVideoModelLoader": {
        "model", "base_precision", "quantization", "load_device", "attention_mode", "rms_norm_function", "lora",
        "multitalk_model", "block_swap_args", "compile_args",
    },
}  # fmt: skip
CUSTOM = "custom"  # size of a node whose width and height count
NEUTRAL: dict[str, tuple[Any, ...]] = {  # what other inputs say where they change nothing
    "riflex_freq_index": (0,), "denoise_strength": (1,), "start_step": (0,), "end_step": (-1,),
    "normalize_loudness": (True,), "audio_scale": (1,), "add_noise_floor": (False,), "smooth_transients": (False,),
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """A job file's content, the flags of `generate` that go with it, and what of the graph neither can say."""

    job: dict[str, Any]
    flags: tuple[str, ...]
    notes: tuple[str, ...]

    def command(self, job_file: str) -> str:
        return shlex.join(["python", "-m", "wanvideo", "generate", "--input_json", job_file, *self.flags])


class _Export:
    """Reads one graph, from its sampler upwards."""

    def __init__(self, graph: Graph, models: str, inputs: str) -> None:
        self.graph, self.models, self.inputs = graph, models, inputs
        self.notes: list[str] = []
        self.sampler = self.only(*SAMPLERS)
        self.image = self.wanted(self.sampler, "image_embeds", IMAGES)
        self.model = self.wanted(self.sampler, "model", ("WanVideoModelLoader",))
        self.speech = next(iter(self.upward(self.sampler, "multitalk_embeds", ("MultiTalkWav2VecEmbeds",))), None)

    def only(self, *kinds: str) -> GraphNode:
        found = self.graph.of_kind(*kinds)
        if len(found) != 1:
            raise InputError(
                f"The graph has {len(found)} nodes of the kind {' or '.join(kinds)}, one is needed. "
                "Export the graph of one talking video."
            )
        return found[0]

    def upward(self, node: GraphNode, name: str, kinds: tuple[str, ...]) -> list[GraphNode]:
        return [found for found in self.graph.above(node, name) if found.kind in kinds]

    def wanted(self, node: GraphNode, name: str, kinds: tuple[str, ...]) -> GraphNode:
        found = self.upward(node, name, kinds)
        if not found:
            raise InputError(f"{name} of {node.kind} comes from no {' or '.join(kinds)}. Export a graph that has one.")
        return found[0]

    def value(self, node: GraphNode, name: str, default: Any) -> Any:
        return self.graph.value(node, name, default)

    def model_path(self, node: GraphNode, name: str, kind: Kind) -> str:
        file = str(node.inputs.get(name, "")).replace("\\", "/")
        return f"{self.models}/{SLOTS[kind].folder}/{file}"

    def all(self) -> Exported:
        job, flags = (
            self.job(),
            [*self.model_flags(), *self.picture_flags(), *self.source_flags(), *self.sampling_flags()],
        )
        for node in (self.sampler, self.image, self.model, self.speech):
            if node is not None:
                self.note_unread(node)
        self.note_precisions()
        texts = (f"{flag:.10g}" if isinstance(flag, float) else str(flag) for flag in flags)
        return Exported(job, tuple(texts), tuple(dict.fromkeys(self.notes)))

    def job(self) -> dict[str, Any]:
        text = self.wanted(self.sampler, "text_embeds", ("WanVideoTextEncodeCached", "WanVideoTextEncode"))
        prompts = PromptList.parse(str(self.value(text, "positive_prompt", "")))
        negative = self.value(text, "negative_prompt", NEGATIVE_PROMPT)
        if negative != NEGATIVE_PROMPT and self.value(self.sampler, "cfg", 1) != 1:
            self.notes.append("the negative prompt: the command line has one of its own")
        job: dict[str, Any] = {"prompt": prompts.to_json()}
        name = "source_video" if "source_video" in self.image.links else "start_image"
        job["cond_video"] = self.file(self.image, name, PICTURES)
        names = [f"audio_{i}" for i in range(1, 7) if self.speech and f"audio_{i}" in self.speech.links]
        job["cond_audio"] = {
            f"person{i}": self.file(self.speech, name, SOUNDS) for i, name in enumerate(names, 1) if self.speech
        }
        if len(names) > 1 and self.speech:
            job["audio_type"] = self.value(self.speech, "multi_audio_type", "para")
        return job

    def file(self, node: GraphNode, name: str, kinds: dict[str, str]) -> str:
        """The path of a picture or sound that an input is made from."""
        passed = list(self.graph.above(node, name))
        found = next((item for item in passed if item.kind in kinds), None)
        if found is None:
            raise InputError(f"{name} of {node.kind} is read from no file. Load it with {' or '.join(kinds)}.")
        for item in passed:
            if item.kind == "MelBandRoFormerSampler":
                self.notes.append(f"{item.kind}: give sound whose voice is already separated from music")
            if item.kind in CUTTING:
                self.notes.append(f"{item.kind}: give a file that holds only this part of {name}")
        return f"{self.inputs}/{found.inputs[kinds[found.kind]]}"

    def model_flags(self) -> list[object]:
        flags: list[object] = ["--dit_path", self.model_path(self.model, "model", Kind.TRANSFORMER)]
        for adapter in self.upward(self.model, "multitalk_model", ("MultiTalkModelLoader",))[:1]:
            flags += ["--infinitetalk_dir", self.model_path(adapter, "model", Kind.ADAPTER)]
        vae = self.wanted(self.image, "vae", ("WanVideoVAELoader",))
        flags += ["--vae_path", self.model_path(vae, "model_name", Kind.VAE)]
        text = ("WanVideoTextEncodeCached", "LoadWanVideoT5TextEncoder")
        encoder = next((n for n in self.upward(self.sampler, "text_embeds", text) if "model_name" in n.inputs), None)
        if encoder is not None:
            flags += ["--t5_path", self.model_path(encoder, "model_name", Kind.TEXT_ENCODER)]
        for name in ("clip_vision", "clip_embeds"):
            for loader in self.upward(self.image, name, ("LoadWanVideoClipTextEncoder", "CLIPVisionLoader"))[:1]:
                key = "clip_name" if "clip_name" in loader.inputs else "model_name"
                flags += ["--clip_path", self.model_path(loader, key, Kind.CLIP_VISION)]
        if self.speech is not None:
            kinds = ("Wav2VecModelLoader", "DownloadAndLoadWav2VecModel")
            loader = self.wanted(self.speech, "wav2vec_model", kinds)
            path = self.model_path(loader, "model", Kind.AUDIO_ENCODER)
            is_download = loader.kind != kinds[0]
            flags += ["--wav2vec_dir", f"{self.models}/transformers/{loader.inputs['model']}" if is_download else path]
        return [*flags, *self.lora_flags(), *self.precision_flags()]

    def note_precisions(self) -> None:
        """Of the models around the transformer: the command line has one for them all, and float32 for sound."""
        dtype = DTYPES.get(self.value(self.model, "base_precision", ""), "bf16")
        for node in self.graph.nodes.values():
            for kinds, name, used in PRECISIONS_OF:
                value = self.value(node, name, None) if node.kind in kinds else None
                if value is not None and value != (used or dtype):
                    self.notes.append(f"{name} {value} of {node.kind}: the command line has {used or dtype}")

    def lora_flags(self) -> list[object]:
        """LoRAs in the order in which they are applied."""
        pairs: list[tuple[str, object]] = []
        for node in self.upward(self.model, "lora", ("WanVideoLoraSelect", "WanVideoLoraSelectMulti")):
            names = [("lora", "strength")] + [(f"lora_{i}", f"strength_{i}") for i in range(5)]
            here = [(a, b) for a, b in names if node.inputs.get(a) not in (None, "none")]
            pairs = [(self.model_path(node, a, Kind.LORA), self.value(node, b, 1)) for a, b in here] + pairs
        if not pairs:
            return []
        return ["--lora_dir", *(path for path, _ in pairs), "--lora_scale", *(strength for _, strength in pairs)]

    def precision_flags(self) -> list[object]:
        precision, quantization = (self.value(self.model, n, "") for n in ("base_precision", "quantization"))
        flags: list[object] = ["--dtype", DTYPES.get(precision, "bf16")]
        if precision == "fp16_fast":
            self.notes.append("base_precision fp16_fast: products are summed in float32")
        quant = next((name for name in ("fp8", "int8", "fp4") if name in f"{precision} {quantization}"), None)
        if quant is not None:
            flags += ["--quant", quant]
            encoders = self.upward(self.sampler, "text_embeds", ("WanVideoTextEncodeCached",))
            if not any(quant in str(self.value(encoder, "quantization", "")) for encoder in encoders):
                self.notes.append(f"--quant {quant} holds for the text encoder too")
        attention = self.value(self.model, "attention_mode", "auto")
        if attention in (*ATTENTION_MODES, *STAND_INS):
            flags += ["--attention", attention]
        else:
            self.notes.append(f"attention_mode {attention}: the fastest one is taken")
        for swap in self.upward(self.model, "block_swap_args", ("WanVideoBlockSwap",))[:1]:
            flags += ["--blocks_to_swap", self.value(swap, "blocks_to_swap", -1)]
        for settings in self.upward(self.model, "compile_args", ("WanVideoTorchCompileSettings",))[:1]:
            flags += ["--compile", self.value(settings, "mode", "default")]
        return flags

    def picture_flags(self) -> list[object]:
        node = self.image
        flags: list[object] = ["--task", f"{self.value(node, 'mode', 'multitalk')}-14B"]
        size = self.value(node, "size", CUSTOM)  # else it follows the picture's shape
        size = f"{self.value(node, 'width', 832)}x{self.value(node, 'height', 480)}" if size == CUSTOM else size
        flags += ["--size", size]
        flags += ["--frame_num", self.value(node, "frame_window_size", 81)]
        flags += ["--motion_frame", self.value(node, "motion_frame", 25)]
        flags += ["--color_match", self.value(node, "colormatch", "disabled")]
        flags += ["--color_correction_strength", self.value(node, "colormatch_strength", 1)]
        if self.value(node, "tiled_vae", False):
            flags += ["--tiled_vae", "true"]
        return flags

    def source_flags(self) -> list[object]:
        flags: list[object] = []
        for node in self.upward(self.image, "source_options", ("WanVideoSourceOptions",))[:1]:
            self.note_unread(node)
            flags += ["--source_end", self.value(node, "source_end", "hold")]
            if self.value(node, "scene_seg", False):
                flags += ["--scene_seg", "true"]
            if self.value(node, "mouth", "none") == AUTO:
                flags += ["--dub", AUTO]
            elif "mask_video" in node.links:
                flags += ["--dub", self.file(node, "mask_video", PICTURES)]
            if "--dub" in flags:
                flags += ["--dub_feather", self.value(node, "feather", DEFAULT_FEATHER)]
            if (crf := self.value(node, "crf", -1)) >= 0:
                flags += ["--crf", crf]
            if (zoom := self.value(node, "camera_zoom", 1)) > 1:
                pan = (self.value(node, name, 0) for name in ("camera_right", "camera_down"))
                flags += ["--camera", zoom, "--camera_pan", *pan]
                flags += ["--camera_period", self.value(node, "camera_period", 30)]
            if (every := self.value(node, "reanchor", 0)) > 0:
                flags += ["--reanchor", every]
        return flags

    def sampling_flags(self) -> list[object]:
        node, speech = self.sampler, self.speech
        flags: list[object] = ["--scheduler", self.value(node, "scheduler", "unipc")]
        for flag, name, default in (("--sample_steps", "steps", 30), ("--sample_shift", "shift", 5.0),
                                    ("--sample_text_guide_scale", "cfg", 6.0), ("--base_seed", "seed", 0)):  # fmt: skip
            flags += [flag, self.value(node, name, default)]
        audio_scale = 1 if speech is None else self.value(speech, "audio_cfg_scale", 1)
        flags += ["--sample_audio_guide_scale", audio_scale, "--mode", "streaming"]
        if speech is not None:
            most = self.value(speech, "num_frames", 0)
            flags += ["--max_frame_num", most, "--fps", self.value(speech, "fps", 25)]
            if most:
                self.notes.append(
                    f"num_frames {most}: longer speech is cut there before it is encoded, by --max_frame_num after; "
                    "cut the sound's file for the same frames"
                )
        for cache in self.upward(node, "cache_args", ("WanVideoTeaCache", "WanVideoMagCache", "WanVideoEasyCache")):
            if cache.kind == "WanVideoTeaCache":
                flags += ["--use_teacache", "--teacache_thresh", self.value(cache, "rel_l1_thresh", 0.3)]
                self.notes.append("WanVideoTeaCache: the command line always computes the first 5 steps")
            else:
                self.notes.append(f"{cache.kind}: the command line has TeaCache only")
        return flags

    def note_unread(self, node: GraphNode) -> None:
        for name, value in node.inputs.items():
            if name in READ[node.kind] or value is None or value in NEUTRAL.get(name, ()):
                continue
            source = self.graph.source(node, name)
            what = f"from {source.kind}" if source else checks.brief(value)
            self.notes.append(f"{name} of {node.kind} ({what})")


def export(graph: Graph, models: str = "models", inputs: str = "input") -> Exported:
    """A graph as a job and flags. Args: models, inputs: ComfyUI's folders. Raises: InputError for other graphs."""
    return _Export(graph, models, inputs).all()


def main(argv: list[str]) -> int:
    """Write NAME.job.json and NAME.sh beside the graph, and say what has no counterpart."""
    parser = Parser("python -m wanvideo export", description=__doc__)
    parser.add_argument("graph", help="file of Workflow > Export or Export (API)")
    parser.add_argument("--models", default="models", help="ComfyUI's folder of models")
    parser.add_argument("--inputs", default="input", help="ComfyUI's folder of pictures and sounds")
    parser.add_argument("--out", help="folder to write to; that of the graph if not given")
    flags = parser.parse_args(argv)
    file = Path(checks.path("GRAPH", flags.graph)).expanduser()
    exported = export(read_graph(file), flags.models, flags.inputs)
    folder = file.parent if flags.out is None else Path(checks.path("--out", flags.out)).expanduser()
    job, script = folder / f"{file.stem}.job.json", folder / f"{file.stem}.sh"
    command = exported.command(str(job))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(job, (json.dumps(exported.job, indent=1, ensure_ascii=False) + "\n").encode())
        write_atomically(script, f"#!/bin/sh\n{command}\n".encode())
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}). Name another folder with --out.") from None
    print(f"{job}\n{script}\n{command}")
    for note in exported.notes:
        print(f"no counterpart: {note}")
    return 0
