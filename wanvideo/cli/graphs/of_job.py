"""A job and the flags of `generate` as a graph, made from a template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...checkpoints.reader import checkpoints_in
from ...engine.talk import audio_cfg_scale_of
from ...errors import InputError
from ...parallel.layout import WantedRanks
from ...prompts import PromptList
from ...request import EngineOptions, ModelFiles, TalkRequest, draw_seed
from ..generate import Job
from .graph import CUSTOM
from .writer import GraphWriter, check_names, set_people, set_source

FOLDERS = (
    "diffusion_models", "model_patches", "unet", "vae", "text_encoders", "clip", "clip_vision", "wav2vec2",
    "audio_encoders", "loras",
)  # fmt: skip
# Of --quant: what the loader of the transformer has for it, and what the node of the text encoder has.
QUANTIZATIONS = {
    None: ("disabled", "disabled"), "fp8": ("fp8_e4m3fn", "fp8_e4m3fn"), "fp4": ("fp4", "fp8_e4m3fn"),
    "int8": ("int8", "disabled"),
}  # fmt: skip
TEXT_DTYPE = ("fp16", "bf16")  # what the node of the text encoder lacks, and has for it


def build(job: Job, template: dict[str, Any]) -> dict[str, Any]:
    """A graph as it is queued (`POST /prompt`), from a template of that form.

    Raises: InputError where the template or the job has not what a graph needs.
    """
    check_names(job.request)
    graph = GraphWriter(json.loads(json.dumps(template)))
    _set_files(graph, job.files)
    _set_options(graph, job.options, job.files.clip_vision is not None)
    _set_request(graph, job.request)
    return graph.nodes


def _set_files(graph: GraphWriter, files: ModelFiles) -> None:
    for name in ("vae", "text_encoder", "wav2vec"):
        if getattr(files, name) is None:
            flag = {"vae": "--vae_path", "text_encoder": "--t5_path", "wav2vec": "--wav2vec_dir"}[name]
            raise InputError(f"A graph names every model's file, and the job names no {name}. Name it with {flag}.")
    graph.set("WanVideoModelLoader", model=_file(files.transformer, "--dit_path"))
    graph.set("WanVideoVAELoader", model_name=_file(str(files.vae), "--vae_path"))
    graph.set("WanVideoTextEncodeCached", model_name=_file(str(files.text_encoder), "--t5_path"))
    graph.set("Wav2VecModelLoader", model=_file(str(files.wav2vec), "--wav2vec_dir"))
    if files.adapter is None:
        graph.remove("MultiTalkModelLoader", "WanVideoModelLoader", "multitalk_model")
    else:
        graph.set("MultiTalkModelLoader", model=_file(files.adapter, "--infinitetalk_dir"))
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


def _set_options(graph: GraphWriter, options: EngineOptions, has_clip: bool) -> None:
    blocks, texts = QUANTIZATIONS[options.quantize]
    graph.set(
        "WanVideoModelLoader", base_precision=options.dtype, quantization=blocks,
        attention_mode=options.attention,
    )  # fmt: skip
    graph.set("WanVideoVAELoader", precision=options.dtype)
    graph.set(
        "WanVideoTextEncodeCached",
        precision=options.dtype.replace(*TEXT_DTYPE),
        quantization=QUANTIZATIONS[options.quantize][1],
    )
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


def _set_request(graph: GraphWriter, request: TalkRequest) -> None:
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
    graph.set(
        "MultiTalkWav2VecEmbeds", num_frames=request.max_frames, fps=request.fps, multi_audio_type=request.audio_type,
        audio_cfg_scale=audio_cfg_scale_of(settings.audio_guidance_scale, settings.guidance_scale),
        normalize_loudness=request.normalize_loudness, audio_scale=settings.audio_scale,
    )  # fmt: skip
    set_source(graph, request)
    set_people(graph, request)
    if settings.apg is not None:
        apg = graph.add("WanVideoAPG", momentum=settings.apg.momentum, norm_threshold=settings.apg.norm_threshold)
        graph.set("WanVideoSampler", apg_args=apg)
    if settings.step_cache is not None:
        cache = settings.step_cache
        link = graph.add(
            "WanVideoTeaCache", rel_l1_thresh=cache.threshold, start_step=cache.start_step, end_step=cache.end_step,
            cache_device="offload_device", use_coefficients=True, mode="e",
        )  # fmt: skip
        graph.set("WanVideoSampler", cache_args=link)


def without_counterpart(job: Job) -> Iterator[str]:
    """What of a job this graph cannot say."""
    request, options = job.request, job.options
    if not PromptList(request.prompts, request.prompt_starts).is_writable:
        yield "a prompt with |, or that begins with a time in brackets: the node reads them as signs; leave them out"
    if request.voice_activity:
        yield "--voice_activity: no node has it"
    if request.max_frames and request.has_speech:
        yield (f"--max_frame_num {request.max_frames}: num_frames cuts longer speech before it is encoded, the command "
               "line after; cut the sound's file for the same frames")  # fmt: skip
    if options.device is not None:
        yield f"--device {options.device}: ComfyUI chooses it when it starts"
    if options.dtype == TEXT_DTYPE[0]:
        yield f"--dtype {TEXT_DTYPE[0]} of the text encoder, which is {TEXT_DTYPE[1]} there"
    if options.quantize == "int8":
        yield "--quant int8 of the text encoder, which stays as it is stored there"
    if request.keep is not None and request.keep.box is not None:
        yield '"box" of "keep": paint a mask of it and name that in "mask"'
    if options.vae_tiling is False:
        yield "--tiled_vae false: ComfyUI's memory decides"
    if job.ranks != WantedRanks():
        yield "--parallel, --ulysses_size, --ring_size, --dit_fsdp: connect WanVideoParallel behind the model"


def _file(path: str, flag: str) -> str:
    """The name of a model's file, or of the one in a model's folder. Raises: InputError where that has more."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return _in_folder(path)
    found = [file for files in checkpoints_in(folder) for file in files]
    if len(found) != 1:
        raise InputError(
            f"{path} is a folder with {len(found)} files of models, and a graph names one of each. Name it with {flag}."
        )
    return _in_folder(str(found[0]))


def _in_folder(path: str) -> str:
    """The name that ComfyUI lists a file by: its path in its folder of models, or its name."""
    parts = path.replace("\\", "/").split("/")
    known = [i for i, part in enumerate(parts) if part in FOLDERS]
    below = [i for i in known if i and parts[i - 1] == "models"]  # a folder further up may have such a name too
    at = next(iter((*below, *known)), len(parts) - 2)
    return "/".join(parts[at + 1 :])
