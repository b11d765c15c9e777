"""Nodes that name models and say how they are held. Files are recognised at once, and loaded when they are needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .nodes_common import (
    ADAPTERS,
    CATEGORY,
    CLIP_VISIONS,
    DEVICES,
    LOADERS,
    LORAS,
    SOME_LORAS,
    TEXT_ENCODERS,
    TRANSFORMERS,
    VAES,
    FileNode,
    Held,
    Node,
    checked,
    choice,
    expect,
    flag,
    free_device,
    logger,
    number,
    refuse,
    socket,
    text,
    whole,
    whole_device,
)
from .wanvideo.checkpoints.detect import Identity, check_fit, require
from .wanvideo.checkpoints.dialects import Kind
from .wanvideo.checkpoints.load import load_clip_vision, load_text_encoder, load_transformer, load_vae
from .wanvideo.checkpoints.reader import open_tensors
from .wanvideo.engine.files import ResolvedFiles
from .wanvideo.engine.sizes import weigh
from .wanvideo.errors import InputError
from .wanvideo.geometry import FPS, VideoGeometry, WindowPlan, bucket_size
from .wanvideo.lora.apply import apply_loras
from .wanvideo.lora.file import open_lora
from .wanvideo.lora.use import LoraUse
from .wanvideo.memory.planner import Device, RunPlan, Work, plan_run
from .wanvideo.memory.residency import Residency
from .wanvideo.ops.attention.backends import ATTENTION_MODES, STAND_INS
from .wanvideo.presets import load_preset, preset_names
from .wanvideo.request import EngineOptions, LoopSettings, SkipLayers, StepCache
from .wanvideo.sampling.schedulers import KNOWN_SCHEDULERS, make_scheduler
from .wanvideo.video.picture import fit_images

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp16_fast": torch.float16}
# What users' graphs name; a dense file is then quantised with one scale a row, which is nearer to it than any of these.
FP8_NAMES = tuple(f"fp8_{kind}{how}" for kind in ("e4m3fn", "e5m2") for how in ("", "_fast", "_scaled", "_scaled_fast"))
QUANTISATIONS = {"disabled": None} | dict.fromkeys(FP8_NAMES, "fp8") | {"int8": "int8", "fp4": "fp4"}
ATTENTION = ("sdpa", *(name for name in (*ATTENTION_MODES, *STAND_INS) if name != "sdpa"))
OPTIONS = f"{CATEGORY}/options"


SCHEDULER = choice("unipc", *KNOWN_SCHEDULERS)


@dataclass(frozen=True)
class BlockSwap:
    """blocks: that visit the device instead of staying there, -1 for as few as fit. prefetch: copied ahead."""

    blocks: int = -1
    prefetch: int = 1
    percent: float | None = None

    def of(self, num_blocks: int) -> int:
        return self.blocks if self.percent is None else round(self.percent * num_blocks)


@dataclass(frozen=True)
class CompileSettings:
    """mode, backend: of torch.compile, for each block."""

    mode: str
    backend: str


@dataclass(frozen=True)
class Adapter:
    """A recognised audio adapter. mode: the loop that it was trained for."""

    path: Path
    identity: Identity
    mode: str


@dataclass(frozen=True)
class VideoModel:
    """The transformer with its adapter, not loaded yet, and how it is to be used. mode: the adapter's loop, or None."""

    held: Held
    adapter: Adapter | None
    options: EngineOptions
    loras: tuple[LoraUse, ...] = ()
    fp16_accumulation: bool = False
    compiler: CompileSettings | None = None

    @property
    def patcher(self) -> Any:
        """What ComfyUI's cache recognises a model by."""
        return self.held.patcher

    @property
    def mode(self) -> str | None:
        """The loop that its adapter was trained for; None for a model that hears nothing."""
        if self.adapter:
            return self.adapter.mode
        return "infinitetalk" if self.held.identity.has_audio else None

    def with_swap(self, swap: BlockSwap) -> VideoModel:
        blocks = swap.of(self.held.identity.num_layers)
        return replace(self, options=replace(self.options, blocks_to_stream=blocks, prefetch=max(1, swap.prefetch)))

    def ready(self, windows: WindowPlan, geometry: VideoGeometry, settings: LoopSettings, work: Work, vae: Held | None):
        """The transformer on its device with these LoRAs, and the plan of the run.

        Raises: InputError, before anything is loaded, when not even an empty device of this kind could hold the run.
        """
        adapter = [self.adapter.path] if self.adapter else None
        files = ResolvedFiles(
            self.held.paths, adapter, vae and vae.paths, None, None, None, None, has_audio=bool(self.mode)
        )
        weights = weigh(files, PRECISIONS[self.options.dtype], self.options.quantise)

        def plan(target: Device) -> RunPlan:
            return plan_run(geometry, windows, FPS, settings, self.options, weights, target, work)

        expected = plan(whole_device(self.options.attention))
        logger.info("%s", expected.describe())
        planned = [expected]

        def place() -> None:
            planned[0] = plan(free_device(self.options.attention, self.held, vae))
            self.held.residency.prefetch = self.options.prefetch
            self.held.residency.place(planned[0].memory.num_streamed)

        transformer = self.held.ready(expected.memory.device_bytes, place, expected.memory.num_streamed == 0)
        if self.held.applied != self.loras:
            self.held.applied = None  # of no use until all of them are in place
            apply_loras(transformer, self.loras)
            self.held.applied = self.loras
        transformer.set_attention(self.options.attention)
        transformer.compile_blocks(*((self.compiler.mode, self.compiler.backend) if self.compiler else (None,)))
        return transformer, planned[0]

    def stream_more(self) -> bool:
        """Let a quarter of the blocks more visit the device; False where that gives nothing back."""
        return self.held.residency.device.type == "cuda" and self.held.residency.stream_more()


@dataclass(frozen=True)
class ClipEncoder:
    """CLIP's image half."""

    held: Held

    def tokens(self, images: torch.Tensor, crop: str) -> torch.Tensor:
        """images [R, H, W, 3] in 0..1 -> [R, 257, dim]. crop: center cuts the square out of the middle first."""
        side = min(images.shape[1:3])
        width, height = (side, side) if crop == "center" else (images.shape[2], images.shape[1])
        return self.held.ready().encode(fit_images(images, width, height)).cpu()


@dataclass(frozen=True)
class Schedule:
    """A noise schedule as the scheduler nodes hand it on."""

    name: str
    steps: int
    shift: float
    start_step: int
    end_step: int
    sigmas: tuple[float, ...] | None


@dataclass(frozen=True)
class Experimental:
    """use_tf32: float32 products in TF32."""

    use_tf32: bool = False


class WanVideoModelLoader(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["wan 2.1 i2v", "infinitetalk model", "multitalk model", "diffusion model"]
    REQUIRED = {
        "model": TRANSFORMERS,
        "base_precision": choice("bf16", *PRECISIONS),
        "quantization": choice("disabled", *QUANTISATIONS),
        "load_device": choice("offload_device", *DEVICES),
    }
    OPTIONAL = {
        "attention_mode": choice("sdpa", *ATTENTION),
        "compile_args": socket("WANCOMPILEARGS"),
        "block_swap_args": socket("BLOCKSWAPARGS"),
        "lora": socket("WANVIDLORA"),
        "vram_management_args": socket("VRAM_MANAGEMENTARGS"),
        "extra_model": socket("VACEPATH"),
        "fantasytalking_model": socket("FANTASYTALKINGMODEL"),
        "multitalk_model": socket("MULTITALKMODEL"),
        "fantasyportrait_model": socket("FANTASYPORTRAITMODEL"),
        "rms_norm_function": choice("default", "default", "pytorch"),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDEOMODEL",), ("model",), "loadmodel"

    @classmethod
    def VALIDATE_INPUTS(cls, model):
        return TRANSFORMERS.check(model)

    def loadmodel(
        self, model, base_precision="bf16", quantization="disabled", load_device="offload_device",
        attention_mode="sdpa", compile_args=None, block_swap_args=None, lora=None, vram_management_args=None,
        extra_model=None, fantasytalking_model=None, multitalk_model=None, fantasyportrait_model=None,
        rms_norm_function="default",
    ):  # fmt: skip
        refuse(
            extra_model=extra_model, fantasytalking_model=fantasytalking_model,
            fantasyportrait_model=fantasyportrait_model,
        )  # fmt: skip
        if base_precision in FP8_NAMES:
            base_precision, quantization = "bf16", base_precision
        adapter = multitalk_model and expect(multitalk_model, Adapter, "multitalk_model")
        if block_swap_args and vram_management_args:
            raise InputError("block_swap_args and vram_management_args say the same in two ways. Connect one of them.")
        swap = block_swap_args or vram_management_args or BlockSwap(0 if load_device == "main_device" else -1)
        expect(swap, BlockSwap, "block_swap_args")
        compiler = compile_args and expect(compile_args, CompileSettings, "compile_args")
        options = EngineOptions(
            dtype=base_precision.removesuffix("_fast"), quantise=QUANTISATIONS[quantization], attention=attention_mode
        )
        path = TRANSFORMERS.find(model)
        load = partial(
            load_transformer, path, adapter and adapter.path, dtype=PRECISIONS[options.dtype], quantise=options.quantise
        )
        held = Held([path], Kind.TRANSFORMER, load, Residency)
        if adapter:
            check_fit(path.name, held.identity, adapter.path.name, adapter.identity)
        result = VideoModel(held, adapter, options, _loras(lora), base_precision == "fp16_fast", compiler)
        return (result.with_swap(swap),)

    def load_model(self, model_name, auto_cpu_offload=False, load_device="offload_device", **options):
        """loadmodel under the names that scripts use; auto_cpu_offload keeps what does not fit in host memory."""
        return self.loadmodel(model_name, load_device="offload_device" if auto_cpu_offload else load_device, **options)


class MultiTalkModelLoader(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["infinitetalk", "audio adapter"]
    REQUIRED = {"model": ADAPTERS}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("MULTITALKMODEL",), ("model",), "loadmodel"

    @classmethod
    def VALIDATE_INPUTS(cls, model):
        return ADAPTERS.check(model)

    def loadmodel(self, model):
        path = ADAPTERS.find(model)
        identity = require(open_tensors(path), Kind.ADAPTER)
        # The two adapters have the same tensors; only the file's name tells which loop they were trained for.
        name = path.name.lower()
        mode = "multitalk" if "multitalk" in name and "infini" not in name else "infinitetalk"
        return (Adapter(path, identity, mode),)


class WanVideoVAELoader(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["wan vae"]
    REQUIRED = {"model_name": VAES}
    OPTIONAL = {
        "precision": choice("bf16", "fp16", "fp32", "bf16"),
        "compile_args": socket("WANCOMPILEARGS"),
        "use_cpu_cache": flag(False),
        "verbose": flag(False),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVAE",), ("vae",), "loadmodel"

    @classmethod
    def VALIDATE_INPUTS(cls, model_name):
        return VAES.check(model_name)

    def loadmodel(self, model_name, precision="bf16", compile_args=None, use_cpu_cache=False, verbose=False):
        path = VAES.find(model_name)
        return (Held([path], Kind.VAE, partial(load_vae, path, dtype=PRECISIONS[precision])),)


class LoadWanVideoT5TextEncoder(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["umt5", "t5", "text encoder"]
    REQUIRED = {"model_name": TEXT_ENCODERS, "precision": choice("bf16", "fp32", "bf16")}
    OPTIONAL = {
        "load_device": choice("offload_device", *DEVICES),
        "quantization": choice("disabled", "disabled", "fp8_e4m3fn"),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANTEXTENCODER",), ("wan_t5_model",), "loadmodel"

    @classmethod
    def VALIDATE_INPUTS(cls, model_name):
        return TEXT_ENCODERS.check(model_name)

    def loadmodel(self, model_name, precision="bf16", load_device="offload_device", quantization="disabled"):
        return (text_encoder(model_name, precision, quantization),)


def text_encoder(model_name: str, precision: str, quantization: str) -> Held:
    """The text encoder that a loader's or a cached encoder's widgets name."""
    path = TEXT_ENCODERS.find(model_name)
    load = partial(load_text_encoder, path, dtype=PRECISIONS[precision], quantise=QUANTISATIONS[quantization])
    held = Held([path], Kind.TEXT_ENCODER, load)
    held.precision = f"{precision} {quantization}"
    return held


class LoadWanVideoClipTextEncoder(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["clip vision", "vit-h"]
    REQUIRED = {"model_name": CLIP_VISIONS, "precision": choice("fp16", "fp16", "fp32", "bf16")}
    OPTIONAL = {"load_device": choice("offload_device", *DEVICES)}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("CLIP_VISION",), ("wan_clip_vision",), "loadmodel"

    @classmethod
    def VALIDATE_INPUTS(cls, model_name):
        return CLIP_VISIONS.check(model_name)

    def loadmodel(self, model_name, precision="fp16", load_device="offload_device"):
        path = CLIP_VISIONS.find(model_name)
        load = partial(load_clip_vision, path, dtype=PRECISIONS[precision])
        return (ClipEncoder(Held([path], Kind.CLIP_VISION, load)),)


class WanVideoLoraSelect(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["lora", "lightx2v", "fusionx"]
    REQUIRED = {"lora": LORAS, "strength": number(1.0, -1000.0, 1000.0, 0.0001)}
    OPTIONAL = {
        "prev_lora": socket("WANVIDLORA"),
        "blocks": socket("SELECTEDBLOCKS"),
        "low_mem_load": flag(False),
        "merge_loras": flag(True),
    }
    HIDDEN = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDLORA",), ("lora",), "getlorapath"

    @classmethod
    def VALIDATE_INPUTS(cls, lora):
        return LORAS.check(lora)

    def getlorapath(
        self, lora, strength=1.0, prev_lora=None, blocks=None, low_mem_load=False, merge_loras=True, unique_id=None
    ):
        refuse(blocks=blocks)
        return (_chain(prev_lora, [(lora, strength)], merge_loras),)


class WanVideoLoraSelectMulti(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["lora stack"]
    REQUIRED = {
        name: spec
        for slot in range(5)
        for name, spec in ((f"lora_{slot}", SOME_LORAS), (f"strength_{slot}", number(1.0, -10.0, 10.0, 0.0001)))
    }
    OPTIONAL = WanVideoLoraSelect.OPTIONAL
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDLORA",), ("lora",), "getlorapath"

    @classmethod
    def VALIDATE_INPUTS(cls, lora_0, lora_1, lora_2, lora_3, lora_4):
        answers = (SOME_LORAS.check(name) for name in (lora_0, lora_1, lora_2, lora_3, lora_4))
        return next((answer for answer in answers if answer is not True), True)

    def getlorapath(
        self, lora_0="none", strength_0=1.0, lora_1="none", strength_1=1.0, lora_2="none", strength_2=1.0,
        lora_3="none", strength_3=1.0, lora_4="none", strength_4=1.0,
        prev_lora=None, blocks=None, low_mem_load=False, merge_loras=True,
    ):  # fmt: skip
        refuse(blocks=blocks)
        slots = (
            (lora_0, strength_0), (lora_1, strength_1), (lora_2, strength_2), (lora_3, strength_3), (lora_4, strength_4)
        )  # fmt: skip
        return (_chain(prev_lora, slots, merge_loras),)


class WanVideoSetLoRAs(Node):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["lora"]
    REQUIRED = {"model": socket("WANVIDEOMODEL")}
    OPTIONAL = {"lora": socket("WANVIDLORA")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDEOMODEL",), ("model",), "setlora"

    def setlora(self, model, lora=None):
        return (replace(expect(model, VideoModel, "model"), loras=_loras(lora)),)


class WanVideoBlockSwap(Node):
    CATEGORY = OPTIONS
    SEARCH_ALIASES = ["low vram", "offload", "block streaming"]
    REQUIRED = {
        "blocks_to_swap": whole(20, -1, 48),
        "offload_img_emb": flag(False),
        "offload_txt_emb": flag(False),
    }
    OPTIONAL = {
        "use_non_blocking": flag(False),
        "vace_blocks_to_swap": whole(0, 0, 15),
        "prefetch_blocks": whole(0, 0, 40),
        "block_swap_debug": flag(False),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("BLOCKSWAPARGS",), ("block_swap_args",), "setargs"

    def setargs(
        self, blocks_to_swap=20, offload_img_emb=False, offload_txt_emb=False, use_non_blocking=False,
        vace_blocks_to_swap=0, prefetch_blocks=0, block_swap_debug=False,
    ):  # fmt: skip
        return (BlockSwap(blocks_to_swap, prefetch_blocks),)


class WanVideoSetBlockSwap(Node):
    CATEGORY = OPTIONS
    REQUIRED = {"model": socket("WANVIDEOMODEL")}
    OPTIONAL = {"block_swap_args": socket("BLOCKSWAPARGS")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDEOMODEL",), ("model",), "loadmodel"

    def loadmodel(self, model, block_swap_args=None):
        model = expect(model, VideoModel, "model")
        if block_swap_args is None:
            return (model,)
        return (model.with_swap(expect(block_swap_args, BlockSwap, "block_swap_args")),)


class WanVideoVRAMManagement(Node):
    CATEGORY = OPTIONS
    SEARCH_ALIASES = ["low vram", "offload"]
    REQUIRED = {"offload_percent": number(1.0, 0.0, 1.0)}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("VRAM_MANAGEMENTARGS",), ("vram_management_args",), "setargs"

    def setargs(self, offload_percent=1.0):
        return (BlockSwap(percent=offload_percent),)


class WanVideoTorchCompileSettings(Node):
    CATEGORY = OPTIONS
    REQUIRED = {
        "backend": choice("inductor", "inductor", "cudagraphs"),
        "fullgraph": flag(False),
        "mode": choice("default", "default", "max-autotune", "max-autotune-no-cudagraphs", "reduce-overhead"),
        "dynamic": flag(False),
        "dynamo_cache_size_limit": whole(64, 0, 1024),
        "compile_transformer_blocks_only": flag(True),
    }
    OPTIONAL = {
        "dynamo_recompile_limit": whole(128, 0, 1024),
        "force_parameter_static_shapes": flag(False),
        "allow_unmerged_lora_compile": flag(False),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANCOMPILEARGS",), ("torch_compile_args",), "set_args"

    def set_args(
        self, backend="inductor", fullgraph=False, mode="default", dynamic=False, dynamo_cache_size_limit=64,
        compile_transformer_blocks_only=True, dynamo_recompile_limit=128, force_parameter_static_shapes=False,
        allow_unmerged_lora_compile=False,
    ):  # fmt: skip
        return (CompileSettings(mode, backend),)


class WanVideoTeaCache(Node):
    CATEGORY = OPTIONS
    SEARCH_ALIASES = ["cache", "faster"]
    REQUIRED = {
        "rel_l1_thresh": number(0.3, 0.0, 1.0, 0.001),
        "start_step": whole(1, 0, 9999),
        "end_step": whole(-1, -1, 9999),
        "cache_device": choice("offload_device", *DEVICES),
        "use_coefficients": flag(True),
    }
    OPTIONAL = {"mode": choice("e", "e", "e0")}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("CACHEARGS",), ("cache_args",), "process"

    def process(
        self, rel_l1_thresh=0.3, start_step=1, end_step=-1, cache_device="offload_device", use_coefficients=True,
        mode="e",
    ):  # fmt: skip
        refuse(use_coefficients=None if use_coefficients else "off", mode=None if mode == "e" else mode)
        return (_cache("teacache", rel_l1_thresh, start_step, end_step, cache_device),)


class WanVideoMagCache(Node):
    CATEGORY = OPTIONS
    SEARCH_ALIASES = ["cache", "faster"]
    REQUIRED = {
        "magcache_thresh": number(0.02, 0.0, 0.3, 0.001),
        "magcache_K": whole(4, 0, 6),
        "start_step": whole(1, 0, 9999),
        "end_step": whole(-1, -1, 9999),
        "cache_device": choice("offload_device", *DEVICES),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("CACHEARGS",), ("cache_args",), "setargs"

    def setargs(self, magcache_thresh=0.02, magcache_K=4, start_step=1, end_step=-1, cache_device="offload_device"):
        cache = _cache("magcache", magcache_thresh, start_step, end_step, cache_device)
        return (cache and replace(cache, max_skips=magcache_K),)


class WanVideoEasyCache(Node):
    CATEGORY = OPTIONS
    SEARCH_ALIASES = ["cache", "faster"]
    REQUIRED = {
        "easycache_thresh": number(0.015, 0.0, 1.0, 0.001),
        "start_step": whole(10, 0, 9999),
        "end_step": whole(-1, -1, 9999),
        "cache_device": choice("offload_device", *DEVICES),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("CACHEARGS",), ("cache_args",), "setargs"

    def setargs(self, easycache_thresh=0.015, start_step=10, end_step=-1, cache_device="offload_device"):
        return (_cache("easycache", easycache_thresh, start_step, end_step, cache_device),)


def _cache(kind: str, threshold: float, start_step: int, end_step: int, where: str) -> StepCache | None:
    """What a cache node sets; a threshold of 0 skips nothing and is no cache."""
    if not threshold:
        return None
    return StepCache(kind, threshold, start_step, end_step, offload=where == "offload_device")


class WanVideoSLG(Node):
    CATEGORY = OPTIONS
    SEARCH_ALIASES = ["skip layer guidance"]
    REQUIRED = {
        "blocks": text("10"),
        "start_percent": number(0.1, 0.0, 1.0),
        "end_percent": number(1.0, 0.0, 1.0),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("SLGARGS",), ("slg_args",), "process"

    def process(self, blocks="10", start_percent=0.1, end_percent=1.0):
        try:
            chosen = tuple(int(part) for part in blocks.replace(",", " ").split())
        except ValueError:
            raise InputError(f"blocks {blocks!r} is not usable: give numbers of blocks, e.g. 9, 10.") from None
        return (SkipLayers(chosen, start_percent, end_percent),)


class WanVideoExperimentalArgs(Node):
    CATEGORY = OPTIONS
    REQUIRED = {
        "video_attention_split_steps": text(),
        "cfg_zero_star": flag(False),
        "use_zero_init": flag(False),
        "zero_star_steps": whole(0, 0, 10000),
        "use_fresca": flag(False),
        "fresca_scale_low": number(1.0, 0.0, 10.0),
        "fresca_scale_high": number(1.25, 0.0, 10.0),
        "fresca_freq_cutoff": whole(20, 0, 10000),
        "use_tcfg": flag(False),
        "raag_alpha": number(0.0, 0.0, 10.0),
        "bidirectional_sampling": flag(False),
        "temporal_score_rescaling": flag(False),
        "tsr_k": number(0.95, 0.0, 100.0),
        "tsr_sigma": number(1.0, 0.0, 1.0),
    }
    OPTIONAL = {"use_tf32": flag(False), "force_contiguous_tensors": flag(True)}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("EXPERIMENTALARGS",), ("exp_args",), "process"

    def process(
        self, video_attention_split_steps="", cfg_zero_star=False, use_zero_init=False, zero_star_steps=0,
        use_fresca=False, fresca_scale_low=1.0, fresca_scale_high=1.25, fresca_freq_cutoff=20, use_tcfg=False,
        raag_alpha=0.0, bidirectional_sampling=False, temporal_score_rescaling=False, tsr_k=0.95, tsr_sigma=1.0,
        use_tf32=False, force_contiguous_tensors=True,
    ):  # fmt: skip
        refuse(
            video_attention_split_steps=video_attention_split_steps.strip() or None,
            cfg_zero_star=cfg_zero_star or None, use_zero_init=use_zero_init or None, use_fresca=use_fresca or None,
            use_tcfg=use_tcfg or None, raag_alpha=raag_alpha or None,
            bidirectional_sampling=bidirectional_sampling or None,
            temporal_score_rescaling=temporal_score_rescaling or None,
        )  # fmt: skip
        return (Experimental(use_tf32),)


SCHEDULE = {
    "scheduler": SCHEDULER,
    "steps": whole(30, 1, 1000),
    "shift": number(5.0, 0.0, 1000.0),
    "start_step": whole(0, 0, 10000),
    "end_step": whole(-1, -1, 10000),
}


class WanVideoScheduler(Node):
    CATEGORY = OPTIONS
    SEARCH_ALIASES = ["sigmas", "noise schedule"]
    REQUIRED = SCHEDULE
    OPTIONAL = {"sigmas": socket("SIGMAS"), "enhance_hf": flag(False)}
    HIDDEN = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES = ("SIGMAS", "INT", "FLOAT", list(KNOWN_SCHEDULERS), "INT", "INT")
    RETURN_NAMES = ("sigmas", "steps", "shift", "scheduler", "start_step", "end_step")
    FUNCTION = "process"

    @classmethod
    def VALIDATE_INPUTS(cls, scheduler=None):
        return check_scheduler(scheduler)

    def process(
        self, scheduler, steps, shift, start_step=0, end_step=-1, sigmas=None, enhance_hf=False, unique_id=None
    ):
        s = make_schedule(scheduler, steps, shift, start_step, end_step, sigmas, enhance_hf)
        levels = make_scheduler(s.name, s.steps, s.shift, sigmas=s.sigmas).sigmas
        return torch.tensor(levels), s.steps, shift, scheduler, start_step, end_step


class WanVideoSchedulerv2(WanVideoScheduler):
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDEOSCHEDULER",), ("scheduler",), "process"

    def process(
        self, scheduler, steps, shift, start_step=0, end_step=-1, sigmas=None, enhance_hf=False, unique_id=None
    ):
        return (make_schedule(scheduler, steps, shift, start_step, end_step, sigmas, enhance_hf),)


def check_scheduler(name: str | None) -> bool | str:
    return name is None or checked(lambda: make_scheduler(name, 4, 5.0))


def make_schedule(
    name: str, steps: int, shift: float, start_step: int, end_step: int, sigmas: Any, enhance_hf: bool = False
) -> Schedule:
    refuse(enhance_hf=enhance_hf or None)
    levels = None if sigmas is None else tuple(float(level) for level in sigmas)
    steps = steps if levels is None else len(levels) - 1
    make_scheduler(name, steps, shift, start_step=start_step, end_step=end_step, sigmas=levels)
    return Schedule(name, steps, shift, start_step, end_step, levels)


class WanVideoTalkingPreset(Node):
    CATEGORY = OPTIONS
    SEARCH_ALIASES = ["preset", "quality", "fast", "low vram"]
    REQUIRED = {"preset": choice(preset_names()[0], *preset_names())}
    OPTIONAL = {"image": socket("IMAGE")}
    RETURN_TYPES = (
        "INT", "INT", "INT", "INT", "INT", "FLOAT", "FLOAT", "FLOAT", list(KNOWN_SCHEDULERS), "FLOAT", "BLOCKSWAPARGS",
        "STRING",
    )  # fmt: skip
    RETURN_NAMES = (
        "width", "height", "frame_window_size", "motion_frame", "steps", "cfg", "audio_cfg_scale", "shift",
        "scheduler", "lora_strength", "block_swap_args", "summary",
    )  # fmt: skip
    FUNCTION = "process"

    def process(self, preset, image=None):
        chosen = load_preset(preset)
        s = chosen.settings
        picture = (832, 480) if image is None else (image.shape[2], image.shape[1])
        width, height = bucket_size(chosen.size, *picture)
        audio_cfg = s.audio_guidance_scale
        if s.guidance_scale != 1 and audio_cfg != 1:
            audio_cfg /= s.guidance_scale  # the sampler multiplies the two
        strength = chosen.loras[0].strength if chosen.loras else 0.0
        swap = BlockSwap(chosen.options.blocks_to_stream, chosen.options.prefetch)
        return (
            width, height, s.window_frames, s.motion_frames, s.steps, s.guidance_scale, audio_cfg, s.shift,
            s.scheduler, strength, swap, chosen.describe(),
        )  # fmt: skip


def _loras(lora: Any) -> tuple[LoraUse, ...]:
    if lora is None:
        return ()
    if not (isinstance(lora, tuple) and all(isinstance(item, LoraUse) for item in lora)):
        expect(lora, LoraUse, "lora")
    return lora


def _chain(previous: Any, slots: Any, merge: bool) -> tuple[LoraUse, ...]:
    """What was chosen before and now; a strength of 0 is no LoRA."""
    added = []
    for name, strength in slots:
        if name != "none" and strength:
            path = LORAS.find(name)
            open_lora(path)
            strength = tuple(strength) if isinstance(strength, list) else strength
            added.append(LoraUse(path, strength, merge=merge))
    return (*_loras(previous), *added)


NODES = (
    WanVideoModelLoader,
    MultiTalkModelLoader,
    WanVideoVAELoader,
    LoadWanVideoT5TextEncoder,
    LoadWanVideoClipTextEncoder,
    WanVideoLoraSelect,
    WanVideoLoraSelectMulti,
    WanVideoSetLoRAs,
    WanVideoBlockSwap,
    WanVideoSetBlockSwap,
    WanVideoVRAMManagement,
    WanVideoTorchCompileSettings,
    WanVideoTeaCache,
    WanVideoMagCache,
    WanVideoEasyCache,
    WanVideoSLG,
    WanVideoExperimentalArgs,
    WanVideoScheduler,
    WanVideoSchedulerv2,
    WanVideoTalkingPreset,
)
