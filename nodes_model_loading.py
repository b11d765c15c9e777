"""Nodes that name models. Files are recognized at once, and loaded when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from .nodes_base import DEVICES, LOADERS, Node, advanced, choice, expect, flag, number, refuse, socket, unsupported
from .nodes_common import host
from .nodes_files import (
    ADAPTERS,
    CLIP_VISIONS,
    LORAS,
    SOME_LORAS,
    TEXT_ENCODERS,
    TINY_VAES,
    TRANSFORMERS,
    VAES,
    FileNode,
    stamp_of,
)
from .nodes_options import OPTIONS, BlockSwap, CompileSettings
from .wanvideo.checkpoints.checkpoint import Checkpoint, recognize, with_adapter
from .wanvideo.checkpoints.detect import check_fit, check_kind
from .wanvideo.checkpoints.dialects import Kind
from .wanvideo.checkpoints.load import (
    load_clip_vision,
    load_text_encoder,
    load_tiny_vae,
    load_transformer,
    load_vae,
    open_checkpoint,
)
from .wanvideo.engine.engine import Engine
from .wanvideo.engine.host import ModelHandle
from .wanvideo.errors import InputError
from .wanvideo.lora.file import check_lora
from .wanvideo.lora.use import LoraUse
from .wanvideo.memory.budget import vae_bytes
from .wanvideo.memory.oom import OomRetry, make_fallbacks
from .wanvideo.memory.residency import Residency, WholeResidency
from .wanvideo.models.vae_tiling import Tiling
from .wanvideo.ops.attention.names import ATTENTION_MODES, STAND_INS
from .wanvideo.request import EngineOptions
from .wanvideo.sampling.conditions import mode_of_adapter
from .wanvideo.video.picture import fit_images

ANY_VAE = "WANVAE,VAE"  # ours or ComfyUI's own: see vae_of
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp16_fast": torch.float16}


# What users' graphs name; a dense file is then quantized with one scale a row, which is nearer to it than any of these.
FP8_NAMES = tuple(f"fp8_{kind}{how}" for kind in ("e4m3fn", "e5m2") for how in ("", "_fast", "_scaled", "_scaled_fast"))


QUANTIZATIONS = {"disabled": None} | dict.fromkeys(FP8_NAMES, "fp8") | {"int8": "int8", "fp4": "fp4"}


ATTENTION = ("sdpa", *(name for name in (*ATTENTION_MODES, *STAND_INS) if name != "sdpa"))


@dataclass(frozen=True)
class Adapter:
    """A recognized audio adapter. mode: the loop that it was trained for."""

    checkpoint: Checkpoint
    mode: str


class LastModel:
    """The model that a node gave out last: the same files, used in the same way, are not loaded again.

    ComfyUI runs a loader anew when anything at its inputs has changed, a LoRA's strength too, and keeps the node itself
    for as long as it is in the graph.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._handle: ModelHandle | None = None

    def get(self, key: Hashable, make: Callable[[], ModelHandle]) -> ModelHandle:
        if self._handle is None or key != self._key:
            self._handle = None  # before the next one takes memory
            self._key, self._handle = key, make()
        return self._handle


@dataclass(frozen=True)
class VideoModel:
    """The transformer with its adapter, not loaded yet, and how it is to be used."""

    handle: ModelHandle
    adapter: Adapter | None
    options: EngineOptions
    loras: tuple[LoraUse, ...] = ()
    ranks: Any = None  # what WanVideoParallel says, or None

    @property
    def patcher(self) -> Any:
        """What ComfyUI's cache recognizes a model by."""
        return self.handle.managed

    @property
    def audio_checkpoint(self) -> Checkpoint:
        """Where its audio weights are."""
        return self.adapter.checkpoint if self.adapter else self.handle.checkpoint

    @property
    def mode(self) -> str | None:
        """The loop that its adapter was trained for; None for a model without one."""
        if self.adapter:
            return self.adapter.mode
        return "infinitetalk" if self.handle.checkpoint.identity.has_audio else None

    def with_swap(self, swap: BlockSwap) -> VideoModel:
        blocks = swap.of(self.handle.checkpoint.identity.num_layers)
        return replace(self, options=replace(self.options, blocks_to_stream=blocks, prefetch=max(1, swap.prefetch)))

    def engine(self, vae: ModelHandle | None, use_tf32: bool = False) -> Engine:
        """What samples with it."""
        options = replace(self.options, tf32=use_tf32)
        adapter = self.adapter.checkpoint if self.adapter else None
        return Engine(host(), self.handle, vae, options, loras=self.loras, adapter=adapter)


@dataclass(frozen=True)
class ClipEncoder:
    """CLIP's image half."""

    handle: ModelHandle

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """pictures [R, 3, H, W] in -1..1 -> [R, 257, dim], squashed to CLIP's square."""
        return self.handle.load().encode(pictures).cpu()

    def tokens(self, images: torch.Tensor, crop: str) -> torch.Tensor:
        """images [R, H, W, 3] in 0..1 -> [R, 257, dim]. crop: center cuts the square out of the middle first."""
        side = min(images.shape[1:3])
        width, height = (side, side) if crop == "center" else (images.shape[2], images.shape[1])
        return self.encode(fit_images(images, width, height))


class WanVideoModelLoader(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["wan 2.1 i2v", "infinitetalk model", "multitalk model", "diffusion model"]
    REQUIRED = {
        "model": TRANSFORMERS,
        "base_precision": choice("bf16", *PRECISIONS),
        "quantization": choice("disabled", *QUANTIZATIONS),
        "load_device": choice("offload_device", *DEVICES),
    }
    OPTIONAL = {
        "attention_mode": choice("sdpa", *ATTENTION),
        "compile_args": socket("WANCOMPILEARGS"),
        "block_swap_args": socket("BLOCKSWAPARGS"),
        "lora": socket("WANVIDLORA"),
        "vram_management_args": socket("VRAM_MANAGEMENTARGS"),
        "extra_model": unsupported("VACEPATH"),
        "fantasytalking_model": unsupported("FANTASYTALKINGMODEL"),
        "multitalk_model": socket("MULTITALKMODEL"),
        "fantasyportrait_model": unsupported("FANTASYPORTRAITMODEL"),
        "rms_norm_function": advanced(choice("default", "default", "pytorch")),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDEOMODEL",), ("model",), "loadmodel"

    def __init__(self) -> None:
        self._last = LastModel()

    @classmethod
    def VALIDATE_INPUTS(cls, model=None):
        return cls.check_files(model=model)

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
        adapter = multitalk_model and expect(multitalk_model, Adapter, "multitalk_model")
        if block_swap_args and vram_management_args:
            raise InputError("block_swap_args and vram_management_args say the same in two ways. Connect one of them.")
        swap = block_swap_args or vram_management_args or BlockSwap(0 if load_device == "main_device" else -1)
        expect(swap, BlockSwap, "block_swap_args")
        compiler = compile_args and expect(compile_args, CompileSettings, "compile_args")
        options = EngineOptions(
            dtype=base_precision.removesuffix("_fast"), quantize=QUANTIZATIONS[quantization], attention=attention_mode,
            compile=compiler and compiler.mode, compile_backend=compiler.backend if compiler else "inductor",
            fp16_accumulation=base_precision == "fp16_fast",
        )  # fmt: skip
        checkpoint = open_checkpoint(TRANSFORMERS.find(model), Kind.TRANSFORMER)
        extra = adapter and adapter.checkpoint
        if extra:
            check_fit(checkpoint.name, checkpoint.identity, extra.name, extra.identity)
        load = partial(
            load_transformer, checkpoint, extra, dtype=PRECISIONS[options.dtype], quantize=options.quantize
        )  # fmt: skip
        key = (stamps(checkpoint), extra and stamps(extra), options.dtype, options.quantize)
        handle = self._last.get(key, lambda: ModelHandle(checkpoint, host(), load, Residency))
        loras = _fitting(_loras(lora), checkpoint, extra)
        return (VideoModel(handle, adapter, options, loras).with_swap(swap),)

    def load_model(
        self, model_name, auto_cpu_offload=False, load_device="offload_device", base_precision="bf16", **options
    ):  # fmt: skip
        """loadmodel under the names that scripts use; auto_cpu_offload keeps what does not fit in host memory."""
        if base_precision in FP8_NAMES:
            base_precision, options = "bf16", options | {"quantization": base_precision}
        load_device = "offload_device" if auto_cpu_offload else load_device
        return self.loadmodel(model_name, base_precision, load_device=load_device, **options)


class MultiTalkModelLoader(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["infinitetalk", "audio adapter"]
    REQUIRED = {"model": ADAPTERS}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("MULTITALKMODEL",), ("model",), "loadmodel"

    @classmethod
    def VALIDATE_INPUTS(cls, model=None):
        return cls.check_files(model=model)

    def loadmodel(self, model):
        path = ADAPTERS.find(model)
        return (Adapter(open_checkpoint(path, Kind.ADAPTER), mode_of_adapter(path.name)),)


class WanVideoVAELoader(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["wan vae"]
    REQUIRED = {"model_name": VAES}
    OPTIONAL = {
        "precision": choice("bf16", "fp16", "fp32", "bf16"),
        "compile_args": socket("WANCOMPILEARGS"),
        "use_cpu_cache": advanced(flag(False)),
        "verbose": advanced(flag(False)),
    }
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVAE",), ("vae",), "loadmodel"

    @classmethod
    def VALIDATE_INPUTS(cls, model_name=None):
        return cls.check_files(model_name=model_name)

    def loadmodel(self, model_name, precision="bf16", compile_args=None, use_cpu_cache=False, verbose=False):
        checkpoint = open_checkpoint(VAES.find(model_name), Kind.VAE)
        load = partial(load_vae, checkpoint, dtype=PRECISIONS[precision])
        return (ModelHandle(checkpoint, host(), load, WholeResidency, precision=precision),)


class WanVideoTinyVAELoader(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["taehv", "taew2_1", "fast vae decode"]
    REQUIRED = {"model_name": TINY_VAES}
    OPTIONAL = {"precision": choice("fp16", "fp16", "fp32", "bf16"), "parallel": advanced(flag(False))}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVAE",), ("vae",), "loadmodel"

    @classmethod
    def VALIDATE_INPUTS(cls, model_name=None):
        return cls.check_files(model_name=model_name)

    def loadmodel(self, model_name, precision="fp16", parallel=False):
        checkpoint = open_checkpoint(TINY_VAES.find(model_name), Kind.TINY_VAE)
        load = partial(load_tiny_vae, checkpoint, dtype=PRECISIONS[precision])
        return (ModelHandle(checkpoint, host(), load, WholeResidency, precision=precision),)


def vae_of(value: Any, can_be_tiny: bool = False) -> ModelHandle:
    """The VAE that a node was given: ours, or ComfyUI's own with the same weights, which our code then runs.

    Args: can_be_tiny: the node only decodes, and nothing goes on from its frames.
    Raises: CheckpointError when ComfyUI's is another model's; InputError for anything else, and for a tiny one.
    """
    module = getattr(value, "first_stage_model", None)
    if not isinstance(module, torch.nn.Module):
        handle = expect(value, ModelHandle, "vae")
    else:
        if not hasattr(value, "wanvideo_handle"):  # it stays with the VAE, as ComfyUI's own caches do
            value.wanvideo_handle = _handle_of(dict(module.state_dict()), value.vae_dtype)
        handle = value.wanvideo_handle
    if handle.checkpoint.kind is Kind.TINY_VAE and not can_be_tiny:
        raise InputError(
            f"{handle.checkpoint.name} is a tiny VAE, which cannot encode, and windows go on from exact frames. "
            "Link a Wan2.1 VAE here, and a tiny one to WanVideo Decode only."
        )
    return handle


def run_vae(
    handle: ModelHandle, size: tuple[int, int, int], tiling: Tiling | None,
    work: Callable[[Any, Tiling | None], torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """What `work` makes with a VAE for which others have made room; in tiles where memory runs out without.

    Args: size: width, height and frames of the clip.
    """
    chosen = [tiling]

    def tile() -> bool:
        was_whole = chosen[0] is None
        chosen[0] = chosen[0] or Tiling.default()
        return was_whole

    element_size = 4 if handle.precision.endswith(("fp32", "float32")) else 2

    def run() -> torch.Tensor:
        return work(handle.load(vae_bytes(*size, chosen[0] is not None, element_size)), chosen[0])

    with torch.inference_mode():
        return OomRetry(0, make_fallbacks(None, tile)).run(run)


def _handle_of(state: dict[str, torch.Tensor], dtype: torch.dtype) -> ModelHandle:
    checkpoint = recognize(state)
    if checkpoint.kind is not Kind.TINY_VAE:
        check_kind(checkpoint.identity, checkpoint.name, Kind.VAE)
    load = partial(load_tiny_vae if checkpoint.kind is Kind.TINY_VAE else load_vae, checkpoint, dtype=dtype)
    return ModelHandle(checkpoint, host(), load, WholeResidency, precision=str(dtype))


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
    def VALIDATE_INPUTS(cls, model_name=None):
        return cls.check_files(model_name=model_name)

    def loadmodel(self, model_name, precision="bf16", load_device="offload_device", quantization="disabled"):
        return (text_encoder(model_name, precision, quantization),)


def text_encoder(model_name: str, precision: str, quantization: str) -> ModelHandle:
    """The text encoder that a loader's or a cached encoder's widgets name."""
    checkpoint = open_checkpoint(TEXT_ENCODERS.find(model_name), Kind.TEXT_ENCODER)
    load = partial(load_text_encoder, checkpoint, dtype=PRECISIONS[precision], quantize=QUANTIZATIONS[quantization])
    return ModelHandle(checkpoint, host(), load, WholeResidency, precision=f"{precision} {quantization}")


class LoadWanVideoClipTextEncoder(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["clip vision", "vit-h"]
    REQUIRED = {"model_name": CLIP_VISIONS, "precision": choice("fp16", "fp16", "fp32", "bf16")}
    OPTIONAL = {"load_device": choice("offload_device", *DEVICES)}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("CLIP_VISION",), ("wan_clip_vision",), "loadmodel"

    @classmethod
    def VALIDATE_INPUTS(cls, model_name=None):
        return cls.check_files(model_name=model_name)

    def loadmodel(self, model_name, precision="fp16", load_device="offload_device"):
        checkpoint = open_checkpoint(CLIP_VISIONS.find(model_name), Kind.CLIP_VISION)
        load = partial(load_clip_vision, checkpoint, dtype=PRECISIONS[precision])
        return (ClipEncoder(ModelHandle(checkpoint, host(), load, WholeResidency)),)


class WanVideoLoraSelect(FileNode):
    CATEGORY = LOADERS
    SEARCH_ALIASES = ["lora", "lightx2v", "fusionx"]
    REQUIRED = {"lora": LORAS, "strength": number(1.0, -1000.0, 1000.0, 0.0001)}
    OPTIONAL = {
        "prev_lora": socket("WANVIDLORA"),
        "blocks": unsupported("SELECTEDBLOCKS"),
        "low_mem_load": advanced(flag(False)),
        "merge_loras": flag(True),
    }
    HIDDEN = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("WANVIDLORA",), ("lora",), "getlorapath"

    @classmethod
    def VALIDATE_INPUTS(cls, lora=None):
        return cls.check_files(lora=lora)

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
    def VALIDATE_INPUTS(cls, lora_0=None, lora_1=None, lora_2=None, lora_3=None, lora_4=None):
        return cls.check_files(lora_0=lora_0, lora_1=lora_1, lora_2=lora_2, lora_3=lora_3, lora_4=lora_4)

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
        model = expect(model, VideoModel, "model")
        extra = model.adapter and model.adapter.checkpoint
        return (replace(model, loras=_fitting(_loras(lora), model.handle.checkpoint, extra)),)


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


def stamps(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """What tells a model's files, and each of their states, from others."""
    return tuple((str(path), stamp_of(path)) for path in checkpoint.paths)


def _loras(lora: Any) -> tuple[LoraUse, ...]:
    if lora is None:
        return ()
    if not (isinstance(lora, tuple) and all(isinstance(item, LoraUse) for item in lora)):
        expect(lora, LoraUse, "lora")
    return lora


def _fitting(loras: tuple[LoraUse, ...], base: Checkpoint, adapter: Checkpoint | None) -> tuple[LoraUse, ...]:
    """`loras`, of which each changes something of the model: told from headers, before anything is loaded."""
    shapes = with_adapter(base, adapter).shapes if loras else {}
    for use in loras:
        check_lora(use.file, shapes)
    return loras


def _chain(previous: Any, slots: Any, merge: bool) -> tuple[LoraUse, ...]:
    """What was chosen before and now; a strength of 0 is no LoRA."""
    added = []
    for name, strength in slots:
        if name != "none" and strength:
            strength = tuple(strength) if isinstance(strength, list) else strength
            added.append(LoraUse(check_lora(LORAS.find(name)), strength, merge=merge))
    return (*_loras(previous), *added)


NODES = (
    WanVideoModelLoader,
    MultiTalkModelLoader,
    WanVideoVAELoader,
    WanVideoTinyVAELoader,
    LoadWanVideoT5TextEncoder,
    LoadWanVideoClipTextEncoder,
    WanVideoLoraSelect,
    WanVideoLoraSelectMulti,
    WanVideoSetLoRAs,
    WanVideoSetBlockSwap,
)
