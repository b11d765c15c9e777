"""Nodes that say how a model is held, compiled, scheduled and cached, and presets of all of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from .nodes_base import CATEGORY, DEVICES, Node, advanced, checked, choice, flag, number, refuse, socket, text, whole
from .nodes_media import size_of
from .wanvideo import checks
from .wanvideo.engine.talk import audio_cfg_scale_of
from .wanvideo.errors import InputError
from .wanvideo.geometry import bucket_size
from .wanvideo.presets import load_preset, preset_names
from .wanvideo.request import SkipLayers, StepCache
from .wanvideo.sampling.schedulers import KNOWN_SCHEDULERS, make_scheduler

SCHEDULER = choice("unipc", *KNOWN_SCHEDULERS)


OPTIONS = f"{CATEGORY}/options"


# How far a value is on its way from the first to the last, from how far the steps are.
EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda way: way, "ease_in": lambda way: way * way, "ease_out": lambda way: way * (2 - way)
}  # fmt: skip


@dataclass(frozen=True)
class BlockSwap:
    """blocks: that stream instead of staying on the device, -1 for as few as fit. prefetch: copied ahead."""

    blocks: int = -1
    prefetch: int = 1
    percent: float | None = None

    def __post_init__(self) -> None:
        checks.number("blocks_to_swap", self.blocks, -1, 1000, whole=True)
        checks.number("prefetch_blocks", self.prefetch, 0, 1000, whole=True)
        if self.percent is not None:
            checks.number("offload_percent", self.percent, 0, 1)

    def of(self, num_blocks: int | None) -> int:
        """How many stream of a model's blocks, which are counted in every transformer that we know."""
        if self.percent is None:
            return self.blocks
        assert num_blocks is not None, "a transformer without blocks is refused by its loader"
        return round(self.percent * num_blocks)


@dataclass(frozen=True)
class CompileSettings:
    """mode, backend: of torch.compile, for each block."""

    mode: str
    backend: str


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
        "use_coefficients": advanced(flag(True)),
    }
    OPTIONAL = {"mode": advanced(choice("e", "e", "e0"))}
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

    @classmethod
    def VALIDATE_INPUTS(cls, blocks=None, start_percent=None, end_percent=None):
        return checked(
            lambda: _skip_layers(**cls.known(blocks=blocks, start_percent=start_percent, end_percent=end_percent))
        )

    def process(self, blocks="10", start_percent=0.1, end_percent=1.0):
        self.check_widgets(blocks=blocks)
        return (_skip_layers(blocks, start_percent, end_percent),)


def _skip_layers(blocks: str = "10", start_percent: float = 0.1, end_percent: float = 1.0) -> SkipLayers:
    numbers = re.split(r"[\s,]+", blocks.strip(" ,"))
    if not all(re.fullmatch(r"[0-9]{1,4}", number) for number in numbers):
        raise InputError(f"blocks {blocks!r:.200} is not usable: give numbers of blocks, e.g. 9, 10.")
    return SkipLayers(tuple(map(int, numbers)), start_percent, end_percent)


class WanVideoExperimentalArgs(Node):
    CATEGORY = OPTIONS
    REQUIRED = {
        "video_attention_split_steps": advanced(text()),
        "cfg_zero_star": advanced(flag(False)),
        "use_zero_init": advanced(flag(False)),
        "zero_star_steps": advanced(whole(0, 0, 10000)),
        "use_fresca": advanced(flag(False)),
        "fresca_scale_low": advanced(number(1.0, 0.0, 10.0)),
        "fresca_scale_high": advanced(number(1.25, 0.0, 10.0)),
        "fresca_freq_cutoff": advanced(whole(20, 0, 10000)),
        "use_tcfg": advanced(flag(False)),
        "raag_alpha": advanced(number(0.0, 0.0, 10.0)),
        "bidirectional_sampling": advanced(flag(False)),
        "temporal_score_rescaling": advanced(flag(False)),
        "tsr_k": advanced(number(0.95, 0.0, 100.0)),
        "tsr_sigma": advanced(number(1.0, 0.0, 1.0)),
    }
    OPTIONAL = {"use_tf32": flag(False), "force_contiguous_tensors": flag(True)}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("EXPERIMENTALARGS",), ("exp_args",), "process"

    @classmethod
    def VALIDATE_INPUTS(
        cls, video_attention_split_steps="", cfg_zero_star=None, use_zero_init=None, use_fresca=None, use_tcfg=None,
        raag_alpha=None, bidirectional_sampling=None, temporal_score_rescaling=None,
    ):  # fmt: skip
        return checked(
            lambda: _refuse_unless_off(
                video_attention_split_steps=str(video_attention_split_steps or "").strip(),
                cfg_zero_star=cfg_zero_star, use_zero_init=use_zero_init, use_fresca=use_fresca, use_tcfg=use_tcfg,
                raag_alpha=raag_alpha, bidirectional_sampling=bidirectional_sampling,
                temporal_score_rescaling=temporal_score_rescaling,
            )
        )  # fmt: skip

    def process(
        self, video_attention_split_steps="", cfg_zero_star=False, use_zero_init=False, zero_star_steps=0,
        use_fresca=False, fresca_scale_low=1.0, fresca_scale_high=1.25, fresca_freq_cutoff=20, use_tcfg=False,
        raag_alpha=0.0, bidirectional_sampling=False, temporal_score_rescaling=False, tsr_k=0.95, tsr_sigma=1.0,
        use_tf32=False, force_contiguous_tensors=True,
    ):  # fmt: skip
        self.check_widgets(video_attention_split_steps=video_attention_split_steps)
        _refuse_unless_off(
            video_attention_split_steps=video_attention_split_steps.strip(), cfg_zero_star=cfg_zero_star,
            use_zero_init=use_zero_init, use_fresca=use_fresca, use_tcfg=use_tcfg, raag_alpha=raag_alpha,
            bidirectional_sampling=bidirectional_sampling, temporal_score_rescaling=temporal_score_rescaling,
        )  # fmt: skip
        return (Experimental(use_tf32),)


def _refuse_unless_off(**switches: Any) -> None:
    refuse(**{name: value or None for name, value in switches.items()})


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
    OPTIONAL = {"sigmas": socket("SIGMAS"), "enhance_hf": advanced(flag(False))}
    HIDDEN = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES: tuple[str | list[str], ...] = ("SIGMAS", "INT", "FLOAT", list(KNOWN_SCHEDULERS), "INT", "INT")
    RETURN_NAMES: tuple[str, ...] = ("sigmas", "steps", "shift", "scheduler", "start_step", "end_step")
    FUNCTION = "process"

    @classmethod
    def VALIDATE_INPUTS(
        cls, scheduler=None, steps=None, shift=None, start_step=None, end_step=None, sigmas=False, enhance_hf=None
    ):
        def check() -> None:
            refuse(enhance_hf=enhance_hf or None)
            known = cls.known(steps=steps, shift=shift, start_step=start_step, end_step=end_step)
            check_schedule(scheduler, known, has_sigmas=sigmas is not False)

        return checked(check)

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


def check_schedule(name: str | None, known: dict[str, Any], has_sigmas: bool) -> None:
    """What can be told of a schedule when a graph is queued. Args: known: numbers whose value is known by then."""
    if name is None:
        return
    if not isinstance(name, str):
        raise InputError(f"scheduler is {type(name).__name__}, not text. Choose one of the list.")
    if "steps" not in known or has_sigmas:  # how many steps there are shows when it runs
        known = {"steps": 4, "shift": known.get("shift", 5.0)}
    start_step, end_step = known.get("start_step", 0), known.get("end_step", -1)
    make_schedule(name, known["steps"], known.get("shift", 5.0), start_step, end_step, None)


def make_schedule(
    name: str, steps: int, shift: float, start_step: int, end_step: int, sigmas: Any, enhance_hf: bool = False
) -> Schedule:
    refuse(enhance_hf=enhance_hf or None)
    try:
        levels = None if sigmas is None else tuple(float(level) for level in sigmas)
    except (TypeError, ValueError):
        raise InputError(
            f"sigmas are {type(sigmas).__name__}, not noise levels. Connect the SIGMAS of a scheduler."
        ) from None
    steps = steps if levels is None else len(levels) - 1
    make_scheduler(name, steps, shift, start_step=start_step, end_step=end_step, sigmas=levels)
    return Schedule(name, steps, shift, start_step, end_step, levels)


class CreateCFGScheduleFloatList(Node):
    CATEGORY = OPTIONS
    SEARCH_ALIASES = ["cfg schedule", "guidance schedule"]
    REQUIRED = {
        "steps": whole(30, 2, 1000),
        "cfg_scale_start": number(5.0, 0.0, 30.0),
        "cfg_scale_end": number(5.0, 0.0, 30.0),
        "interpolation": choice("linear", *EASINGS),
        "start_percent": number(0.0, 0.0, 1.0),
        "end_percent": number(1.0, 0.0, 1.0),
    }
    HIDDEN = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("FLOAT",), ("float_list",), "process"

    @classmethod
    def VALIDATE_INPUTS(cls, cfg_scale_start=None, cfg_scale_end=None, start_percent=None, end_percent=None):
        def check() -> None:
            cls.known(cfg_scale_start=cfg_scale_start, cfg_scale_end=cfg_scale_end)
            known = cls.known(start_percent=start_percent, end_percent=end_percent)
            _check_span(known.get("start_percent", 0.0), known.get("end_percent", 1.0))

        return checked(check)

    def process(
        self, steps=30, cfg_scale_start=5.0, cfg_scale_end=5.0, interpolation="linear", start_percent=0.0,
        end_percent=1.0, unique_id=None,
    ):  # fmt: skip
        self.check_widgets(
            steps=steps, cfg_scale_start=cfg_scale_start, cfg_scale_end=cfg_scale_end, start_percent=start_percent,
            end_percent=end_percent,
        )  # fmt: skip
        _check_span(start_percent, end_percent)
        first, last = (min(int(steps * percent), steps - 1) for percent in (start_percent, end_percent))
        scales = [1.0] * steps
        for step in range(first, last + 1):
            way = EASINGS[interpolation]((step - first) / max(1, last - first))
            scales[step] = round(cfg_scale_start + (cfg_scale_end - cfg_scale_start) * way, 2)
        if start_percent > 0:
            scales[0] = 1.0
        return (scales,)


def _check_span(start: float, end: float) -> None:
    if end < start:
        raise InputError(f"end_percent {end} is before start_percent {start}. Give the smaller one first.")


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
        picture = (832, 480) if image is None else size_of(image)
        width, height = bucket_size(chosen.size, *picture)
        audio_cfg = audio_cfg_scale_of(s.audio_guidance_scale, s.guidance_scale)
        strength = chosen.loras[0].strength if chosen.loras else 0.0
        swap = BlockSwap(chosen.options.blocks_to_stream, chosen.options.prefetch)
        return (
            width, height, s.window_frames, s.motion_frames, s.steps, s.guidance_scale, audio_cfg, s.shift,
            s.scheduler, strength, swap, chosen.describe(),
        )  # fmt: skip


NODES = (
    WanVideoBlockSwap,
    WanVideoVRAMManagement,
    WanVideoTorchCompileSettings,
    WanVideoTeaCache,
    WanVideoMagCache,
    WanVideoEasyCache,
    WanVideoSLG,
    WanVideoExperimentalArgs,
    WanVideoScheduler,
    WanVideoSchedulerv2,
    CreateCFGScheduleFloatList,
    WanVideoTalkingPreset,
)
