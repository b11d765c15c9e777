"""A graph around a sampler, ours or WanVideoWrapper's, as job and flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...checkpoints.detect import SLOTS
from ...checkpoints.dialects import Kind
from ...engine.talk import audio_cfg_scale_of, audio_guidance_of
from ...ops.attention.names import ATTENTION_MODES, STAND_INS
from ...presets import Preset, load_preset
from ...request import NEGATIVE_PROMPT, Apg, StepCache
from ...sampling.conditions import mode_of_adapter
from ...video.drawn import numbers_of, ordered
from ..generate import ALWAYS_COMPUTED
from .graph import CUSTOM, Graph, GraphNode, Link
from .reader import Reader
from .shelf import folder_shelves
from .widgets import CONTROL

SAMPLERS = ("WanVideoSampler", "WanVideoSamplerv2")
AUDIOS, MASKS = ([f"{name}_{number}" for number in range(1, 5)] for name in ("audio", "mask"))
DTYPES = {"bf16": "bf16", "fp16": "fp16", "fp16_fast": "fp16", "fp32": "fp32"}
# Loaders whose precision the command line shares with the transformer. That of sound counts nowhere: it is float32.
PRECISE = (
    "WanVideoVAELoader", "LoadWanVideoClipTextEncoder", "WanVideoTextEncodeCached", "LoadWanVideoT5TextEncoder",
)  # fmt: skip
TEXTS = ("WanVideoTextEncodeCached", "WanVideoTextEncode", "WanVideoTextEncodeSingle")
SPEECH_LOADERS = ("Wav2VecModelLoader", "DownloadAndLoadWav2VecModel")
SWAPS = ("WanVideoBlockSwap", "WanVideoVRAMManagement")
CACHES = ("WanVideoTeaCache",)
NUM_BLOCKS = 40  # of the 14B model
# Inputs that are read, or change nothing of the frames.
SAMPLER_READ = {
    "model", "image_embeds", "text_embeds", "multitalk_embeds", "steps", "cfg", "shift", "seed", CONTROL,
    "force_offload", "scheduler", "batched_cfg", "rope_function", "add_noise_to_samples", "cache_args", "apg_args",
    "extra_args", "start_step", "end_step",
}  # fmt: skip
IMAGE_READ = {
    "vae", "start_image", "clip_vision", "width", "height", "size", "frame_window_size", "motion_frame",
    "force_offload", "colormatch", "colormatch_strength", "tiled_vae", "mode", "output_path", "source_video",
    "source_options", "clip_embeds",
}  # fmt: skip
SPEECH_READ = {
    "wav2vec_model", "num_frames", "fps", "audio_scale", "audio_cfg_scale", "multi_audio_type", "normalize_loudness",
    *AUDIOS, *MASKS, "ref_target_masks",
}  # fmt: skip
MODEL_READ = {
    "model", "base_precision", "quantization", "load_device", "attention_mode", "rms_norm_function", "lora",
    "multitalk_model", "block_swap_args", "compile_args", "vram_management_args",
}  # fmt: skip
# Outputs of WanVideoTalkingPreset, by their place; the first two follow the picture.
PRESET_OUTPUTS = (
    "width", "height", "window_frames", "motion_frames", "steps", "guidance_scale", "audio_cfg_scale", "shift",
    "scheduler", "lora_strength",
)  # fmt: skip


class SamplerReader(Reader):
    """Reads a graph from its sampler upwards."""

    def __init__(self, graph: Graph, node: GraphNode, models: str, inputs: str, prefix: str) -> None:
        super().__init__(graph, inputs, prefix)
        self.models, self.sampler = models, node
        self.shelves = {shelf.kind: shelf for shelf in folder_shelves(Path(models))}
        self.image = self.wanted(node, "image_embeds", "WanVideoImageToVideoMultiTalk")
        self.model = self.wanted(node, "model", "WanVideoModelLoader")
        self.extra = next(iter(self.upward(node, "extra_args", "WanVideoSamplerExtraArgs")), node)
        self.speech = next(iter(self.upward(self.extra, "multitalk_embeds", "MultiTalkWav2VecEmbeds")), None)
        schedules = self.upward(node, "scheduler", "WanVideoSchedulerv2", "WanVideoScheduler")
        self.schedule = node if "scheduler" not in node.links or not schedules else schedules[0]

    def value(self, node: GraphNode, name: str, default: Any) -> Any:
        link, source = node.inputs.get(name), self.graph.source(node, name)
        if isinstance(link, Link) and source is not None and source.kind == "WanVideoTalkingPreset":
            return _preset_value(load_preset(str(source.inputs.get("preset"))), link.slot)
        return super().value(node, name, default)

    def model_path(self, node: GraphNode, name: str, kind: Kind) -> str:
        """Where a loader's file is; where it is not there, in the folder that ComfyUI has for its kind."""
        file = str(node.inputs.get(name, "")).replace("\\", "/")
        found = self.shelves[kind].path(file)
        return f"{self.models}/{SLOTS[kind].folder}/{file}" if found is None else str(found)

    def job(self) -> dict[str, Any]:
        text = self.wanted(self.sampler, "text_embeds", *TEXTS)
        name = "prompt" if text.kind == "WanVideoTextEncodeSingle" else "positive_prompt"
        negative = self.value(text, "negative_prompt", NEGATIVE_PROMPT)
        source = "source_video" if "source_video" in self.image.links else "start_image"
        keys = {
            **self.prompt_keys(self.value(text, name, ""), negative),
            "cond_video": self.reference(self.image, source),
        }
        if self.speech is None:
            return keys | {"cond_audio": {}}
        keys |= self.people(self.speech, AUDIOS, MASKS, self.value(self.speech, "multi_audio_type", "para"))
        return keys | self.boxes(keys["cond_audio"])

    def boxes(self, sounds: dict[str, Any]) -> dict[str, Any]:
        """Of a job: where people are that WanVideoSpeakers places; further boxes are of people who only listen."""
        speech = self.speech
        if speech is None or "ref_target_masks" not in speech.links:
            return {}
        node = self.graph.source(speech, "ref_target_masks")
        if node is not None and node.kind == "WanVideoSpeakers" and "masks" not in node.links:
            order = str(self.value(node, "order", ""))
            rows = ordered(numbers_of(str(self.value(node, "regions", ""))), order)
            names = [f"person{number}" for number in range(1, (len(rows) or max(2, len(sounds))) + 1)]
            people: dict[str, Any] = {"cond_audio": {name: sounds.get(name, "None") for name in names}}
            if len(names) > 1:
                people["audio_type"] = self.value(speech, "multi_audio_type", "para")
            if not rows and not order.strip() and len(names) == 2:
                return people  # left and right, as of themselves
            if rows and len(rows[0]) == 4:
                return people | {"bbox": dict(zip(names, rows, strict=True))}
        self.notes.append(f"ref_target_masks of {speech.kind} (from {node.kind if node else 'nothing'})")
        return {}

    def flags(self) -> list[object]:
        return [
            *self.model_flags(), *self.picture_flags(), *self.source_flags(self.image), *self.sampling_flags()
        ]  # fmt: skip

    def model_flags(self) -> list[object]:
        flags: list[object] = ["--dit_path", self.model_path(self.model, "model", Kind.TRANSFORMER)]
        for adapter in self.upward(self.model, "multitalk_model", "MultiTalkModelLoader")[:1]:
            flags += ["--infinitetalk_dir", self.model_path(adapter, "model", Kind.ADAPTER)]
        vae = self.wanted(self.image, "vae", "WanVideoVAELoader")
        flags += ["--vae_path", self.model_path(vae, "model_name", Kind.VAE)]
        texts = self.upward(self.sampler, "text_embeds", "WanVideoTextEncodeCached", "LoadWanVideoT5TextEncoder")
        encoder = next((node for node in texts if "model_name" in node.inputs), None)
        if encoder is not None:
            flags += ["--t5_path", self.model_path(encoder, "model_name", Kind.TEXT_ENCODER)]
        for name in ("clip_vision", "clip_embeds"):
            for loader in self.upward(self.image, name, "LoadWanVideoClipTextEncoder", "CLIPVisionLoader")[:1]:
                key = "clip_name" if "clip_name" in loader.inputs else "model_name"
                flags += ["--clip_path", self.model_path(loader, key, Kind.CLIP_VISION)]
        if self.speech is not None:
            loader = self.wanted(self.speech, "wav2vec_model", *SPEECH_LOADERS)
            path = self.model_path(loader, "model", Kind.AUDIO_ENCODER)
            is_download = loader.kind != SPEECH_LOADERS[0]
            flags += [
                "--wav2vec_dir",
                f"{self.models}/transformers/{loader.inputs.get('model', '')}" if is_download else path,
            ]
        text = self.wanted(self.sampler, "text_embeds", *TEXTS)
        on_cpu = ["--t5_cpu"] if self.value(text, "device", "gpu") == "cpu" else []
        return [*flags, *self.lora_flags(), *self.precision_flags(), *self.memory_flags(), *on_cpu]

    def setter(self, kind: str) -> GraphNode:
        """The node between loader and sampler that says something anew, or the loader."""
        return next(iter(self.upward(self.sampler, "model", kind)), self.model)

    def lora_flags(self) -> list[object]:
        """LoRAs in the order in which they are applied."""
        pairs: list[tuple[str, object]] = []
        owner = self.setter("WanVideoSetLoRAs")
        for node in self.upward(owner, "lora", "WanVideoLoraSelect", "WanVideoLoraSelectMulti"):
            names = [("lora", "strength")] + [(f"lora_{i}", f"strength_{i}") for i in range(5)]
            here = [(a, b) for a, b in names if node.inputs.get(a) not in (None, "none")]
            pairs = [(self.model_path(node, a, Kind.LORA), self.value(node, b, 1)) for a, b in here] + pairs
            if not self.value(node, "merge_loras", True):
                self.notes.append(f"merge_loras of {node.kind} (False)")
        pairs = [(path, strength) for path, strength in pairs if strength]
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
            encoders = self.upward(self.sampler, "text_embeds", "WanVideoTextEncodeCached")
            kind = "fp8" if quant == "fp4" else quant  # what the command line has for it
            if not any(kind in str(self.value(encoder, "quantization", "")) for encoder in encoders):
                self.notes.append(f"--quant {quant} holds for the text encoder too")
        attention = self.value(self.model, "attention_mode", "auto")
        if attention in (*ATTENTION_MODES, *STAND_INS):
            return [*flags, "--attention", attention]
        self.notes.append(f"attention_mode {attention}: the fastest one is taken")
        return flags

    def memory_flags(self) -> list[object]:
        flags: list[object] = []
        owner = self.setter("WanVideoSetBlockSwap")
        names = ("block_swap_args", "vram_management_args")
        for swap in [node for name in names for node in self.upward(owner, name, *SWAPS)][:1]:
            if swap.kind == SWAPS[0]:
                flags += ["--blocks_to_swap", self.value(swap, "blocks_to_swap", -1)]
            else:
                flags += ["--blocks_to_swap", round(self.value(swap, "offload_percent", 1.0) * NUM_BLOCKS)]
        for settings in self.upward(self.model, "compile_args", "WanVideoTorchCompileSettings")[:1]:
            flags += ["--compile", self.value(settings, "mode", "default")]
        return flags

    def picture_flags(self) -> list[object]:
        node = self.image
        flags: list[object] = ["--task", f"{self.mode()}-14B", "--size", self.size()]
        flags += ["--frame_num", self.value(node, "frame_window_size", 81)]
        flags += ["--motion_frame", self.value(node, "motion_frame", 25)]
        flags += ["--color_match", self.value(node, "colormatch", "disabled")]
        flags += ["--color_correction_strength", self.value(node, "colormatch_strength", 1)]
        return [*flags, "--tiled_vae", "true"] if self.value(node, "tiled_vae", False) else flags

    def mode(self) -> str:
        """As it is said, or as the adapter was trained."""
        mode = str(self.value(self.image, "mode", "auto"))
        adapters = self.upward(self.model, "multitalk_model", "MultiTalkModelLoader")
        return mode_of_adapter(str(adapters[0].inputs.get("model")) if adapters else "") if mode == "auto" else mode

    def size(self) -> object:
        """A table where it follows the picture's shape, else width and height."""
        node = self.image
        table = self.value(node, "size", CUSTOM)
        width, height = self.value(node, "width", 832), self.value(node, "height", 480)
        if table != CUSTOM or isinstance(width, str):
            return width if table == CUSTOM else table
        return f"{width}x{height}"

    def sampling_flags(self) -> list[object]:
        node, schedule, speech = self.sampler, self.schedule, self.speech
        cfg = self.value(node, "cfg", 6.0)
        flags: list[object] = ["--scheduler", self.value(schedule, "scheduler", "unipc")]
        flags += ["--sample_steps", self.value(schedule, "steps", 30)]
        flags += ["--sample_shift", self.value(schedule, "shift", 5.0)]
        flags += ["--sample_text_guide_scale", cfg, "--base_seed", self.value(node, "seed", 0)]
        scale = 1 if speech is None else self.value(speech, "audio_cfg_scale", 1)
        flags += ["--sample_audio_guide_scale", audio_guidance_of(scale, cfg), "--mode", "streaming"]
        return [*flags, *self.speech_flags(), *self.cache_flags(), *self.guidance_flags()]

    def speech_flags(self) -> list[object]:
        speech = self.speech
        if speech is None:
            return []
        most = self.value(speech, "num_frames", 0)
        if most:
            self.notes.append(
                f"num_frames {most}: longer speech is cut there before it is encoded, by --max_frame_num after; "
                "cut the sound's file for the same frames"
            )
        loudness = self.value(speech, "normalize_loudness", True)
        return [
            "--max_frame_num", most, "--fps", self.value(speech, "fps", 25),
            "--audio_scale", self.value(speech, "audio_scale", 1),
            "--normalize_loudness", str(bool(loudness)).lower(),
        ]  # fmt: skip

    def cache_flags(self) -> list[object]:
        flags: list[object] = []
        for cache in self.upward(self.extra, "cache_args", *CACHES):
            if threshold := self.value(cache, "rel_l1_thresh", 0.3):
                flags += ["--use_teacache", "--teacache_thresh", threshold]
            steps = (self.value(cache, "start_step", 1), self.value(cache, "end_step", -1))
            if threshold and steps != (ALWAYS_COMPUTED, StepCache.end_step):
                self.notes.append(f"{cache.kind}: the command line always computes the first {ALWAYS_COMPUTED} steps")
        return flags

    def guidance_flags(self) -> list[object]:
        for apg in self.upward(self.extra, "apg_args", "WanVideoAPG")[:1]:
            momentum, threshold = (self.value(apg, name, getattr(Apg, name)) for name in ("momentum", "norm_threshold"))
            return ["--use_apg", "--apg_momentum", momentum, "--apg_norm_threshold", threshold]
        return []

    def note_rest(self) -> None:
        """Of the models around the transformer, too: the command line has one precision for them all."""
        read = ((self.sampler, SAMPLER_READ), (self.image, IMAGE_READ), (self.model, MODEL_READ),
                (self.extra, SAMPLER_READ), (self.schedule, SAMPLER_READ), (self.speech, SPEECH_READ))  # fmt: skip
        for node, names in read:
            if node is not None:
                self.note_unread(node, names)
        for name, rest in (("start_step", 0), ("end_step", -1)):
            if (value := self.value(self.schedule, name, rest)) != rest:
                self.notes.append(f"{name} of {self.schedule.kind} ({value})")
        self.note_kinds(self.sampler)
        dtype = DTYPES.get(self.value(self.model, "base_precision", ""), "bf16")
        for node in self.graph.nodes.values():
            value = self.value(node, "precision", None) if node.kind in PRECISE else None
            if value is not None and value != dtype:
                self.notes.append(f"precision {value} of {node.kind}: the command line has {dtype}")


def _preset_value(preset: Preset, slot: int) -> Any:
    """What an output of WanVideoTalkingPreset gives; for width and height the table that they follow."""
    name = PRESET_OUTPUTS[slot] if slot < len(PRESET_OUTPUTS) else ""
    if name in ("width", "height"):
        return preset.size
    if name == "audio_cfg_scale":
        return audio_cfg_scale_of(preset.settings.audio_guidance_scale, preset.settings.guidance_scale)
    if name == "lora_strength":
        return preset.loras[0].strength if preset.loras else 0.0
    return getattr(preset.settings, name, None)
