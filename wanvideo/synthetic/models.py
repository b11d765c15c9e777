"""Complete sets of models with random weights, laid out as users have them: to try, test and measure everything.

Two layouts: `official` (the folders of Wan-AI and MeiGen-AI) and `comfy` (ComfyUI's models folder, under the names that
the workflow templates give; all of it is bfloat16, whatever a name says). Tensors are drawn and written one after
another, so even the full size needs little memory.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.dialects import Kind, dialect, from_canonical
from ..checkpoints.reader import StoredTensor, TensorSource, open_tensors
from ..checkpoints.safetensors_file import write_safetensors
from ..durable import written_aside
from ..errors import InputError, OutputError
from ..text.tokenizer import EMBEDDED
from .tokenizer import sentencepiece_model, write_tokenizer
from .weights import (
    POSITION_GROUPS,
    POSITION_KERNEL,
    SIZES,
    SPEECH_KERNELS,
    SPEECH_STRIDES,
    Sizes,
    random_source,
    shapes_of,
)

LAYOUTS = ("official", "comfy")
WAN, SPEECH = "Wan2.1-I2V-14B-480P", "chinese-wav2vec2-base"
NUM_SHARDS = 7
LORA_NAME = "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors"
FUSIONX_NAME = "FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors"


@dataclass(frozen=True)
class WrittenFile:
    """One file of a set. part: which model it belongs to."""

    part: str
    path: Path
    size_bytes: int


@dataclass(frozen=True)
class _Maker:
    """Where a set goes and how big it is."""

    out: Path
    sizes: Sizes
    seed: int

    def source(self, kind: Kind, name: str = "") -> TensorSource:
        """Random weights under canonical names. name: tells models of one kind apart."""
        return random_source(shapes_of(kind, self.sizes), self.seed, f"{kind.value} {name}")


def make_models(
    out: str | Path,
    size: str = "tiny",
    layout: str = "official",
    seed: int = 0,
    parts: Sequence[str] | None = None,
) -> list[WrittenFile]:
    """Write a set of models that fit each other.

    Args:
        out: folder, made if missing. size: tiny (a laptop runs it), small (about 1 GB) or full (14B, 50 GB).
        seed: the same seed gives the same weights in both layouts.
        parts: which of PARTS; None: all.
    Raises: InputError for an unknown size, layout or part; OutputError when a file is there already or space is short.
    """
    out = Path(out).expanduser()
    for name, value, known in (("size", size, SIZES), ("layout", layout, LAYOUTS)):
        if value not in known:
            raise InputError(f"{name} {value!r} is not offered. Use one of {', '.join(known)}.")
    chosen = tuple(PARTS) if parts is None else tuple(parts)
    for part in chosen:
        if part not in PARTS:
            raise InputError(f"There is no part {part!r}. Use one of {', '.join(PARTS)}.")
    maker = _Maker(out, SIZES[size], seed)
    _check_room(maker, chosen)
    written = []
    for part in chosen:
        paths = PARTS[part][LAYOUTS.index(layout)](maker)
        written += [WrittenFile(part, path, path.stat().st_size) for path in paths]
    return written


def _check_room(maker: _Maker, parts: Sequence[str]) -> None:
    needed = sum(2 * math.prod(shape) for part in parts for shape in _part_shapes(maker.sizes, part))
    place = next(path for path in (maker.out, *maker.out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise OutputError(f"{place} is a file; name a folder to write the models to.")
    free = shutil.disk_usage(place).free
    if needed * 1.5 > free:
        raise OutputError(
            f"The models need about {needed * 1.5 / 1e9:.0f} GB, {place} has {free / 1e9:.0f} GB free. "
            "Name another folder, a smaller size or fewer parts."
        )


def _part_shapes(sizes: Sizes, part: str) -> list[tuple[int, ...]]:
    kinds = {kind.name.lower(): kind for kind in Kind}
    return list(shapes_of(kinds[part], sizes).values()) if part != "tokenizer" else []


def _check_new(path: Path) -> None:
    if path.exists():
        raise OutputError(f"{path} exists already. Name an empty folder, or remove it first.")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}). Choose another folder.") from None


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path`."""
    _check_new(path)
    with _written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as scratch:
            yield scratch


def _safetensors(path: Path, source: TensorSource, dtype: torch.dtype = torch.bfloat16) -> Path:
    tensors = [(key, tensor.shape, _stored_dtype(tensor, dtype), tensor.read) for key, tensor in source.items()]
    with _new_file(path) as scratch:
        write_safetensors(scratch, tensors)
    return path


def _stored_dtype(tensor: StoredTensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.dtype.is_floating_point else tensor.dtype


def _torch_file(path: Path, source: TensorSource, dtype: torch.dtype) -> Path:
    """A torch file, by way of a mapped file, so that the weights never are in memory together."""
    mappable = path.with_name(f".{path.name}.mapped")
    try:
        with _new_file(path) as scratch:
            _safetensors(mappable, source, dtype)
            mapped = open_tensors(mappable)
            torch.save({key: mapped.tensor(key) for key in mapped}, scratch)
            del mapped
    finally:
        with contextlib.suppress(OSError):
            mappable.unlink(missing_ok=True)
    return path


def _json(path: Path, data: dict[str, Any]) -> Path:
    with _new_file(path) as scratch:
        scratch.write_text(json.dumps(data, indent=2), encoding="utf-8")
    return path


def _transformer_official(maker: _Maker) -> list[Path]:
    source, folder = maker.source(Kind.TRANSFORMER), maker.out / WAN
    total = sum(math.prod(tensor.shape) for tensor in source.values())
    shards: list[dict[str, StoredTensor]] = [{} for _ in range(NUM_SHARDS)]
    done = current = 0
    for key, tensor in source.items():
        current += bool(shards[current]) and done * NUM_SHARDS // total > current
        shards[current][key] = tensor
        done += math.prod(tensor.shape)
    names = [f"diffusion_pytorch_model-{n + 1:05}-of-{NUM_SHARDS:05}.safetensors" for n in range(NUM_SHARDS)]
    paths = [_safetensors(folder / name, source.replaced(part)) for name, part in zip(names, shards, strict=True)]
    index = {key: name for name, part in zip(names, shards, strict=True) for key in part}
    config, sizes = maker.sizes.transformer, {"total_size": 2 * total}
    paths.append(
        _json(folder / "diffusion_pytorch_model.safetensors.index.json", {"metadata": sizes, "weight_map": index})
    )
    paths.append(
        _json(
            folder / "config.json",
            {
                "_class_name": "WanModel", "model_type": "i2v", "dim": config.dim, "ffn_dim": config.ffn_dim,
                "num_heads": config.num_heads, "num_layers": config.num_layers, "in_dim": config.in_dim,
                "out_dim": config.out_dim, "freq_dim": config.freq_dim, "text_len": 512, "eps": 1e-6,
            },
        )
    )  # fmt: skip
    return paths


def _transformer_comfy(maker: _Maker) -> list[Path]:
    path = maker.out / "diffusion_models" / "wan2.1_i2v_480p_14B_fp8_scaled.safetensors"
    return [_safetensors(path, maker.source(Kind.TRANSFORMER))]


def _adapter_official(maker: _Maker) -> list[Path]:
    folder = maker.out / "InfiniteTalk"
    return [
        _safetensors(folder / name / "infinitetalk.safetensors", maker.source(Kind.ADAPTER, name))
        for name in ("single", "multi")
    ]


def _adapter_comfy(maker: _Maker) -> list[Path]:
    single = maker.out / "diffusion_models" / "Wan2_1-InfiniTetalk-Single_fp16.safetensors"
    multi = maker.out / "model_patches" / "Wan2_1-InfiniteTalk-Multi_fp16.safetensors"
    return [
        _safetensors(single, maker.source(Kind.ADAPTER, "single")),
        _safetensors(multi, maker.source(Kind.ADAPTER, "multi")),
    ]


def _vae_official(maker: _Maker) -> list[Path]:
    return [_torch_file(maker.out / WAN / "Wan2.1_VAE.pth", maker.source(Kind.VAE), torch.float32)]


def _vae_comfy(maker: _Maker) -> list[Path]:
    return [_safetensors(maker.out / "vae" / "wan_2.1_vae.safetensors", maker.source(Kind.VAE))]


def _text_official(maker: _Maker) -> list[Path]:
    source = from_canonical(maker.source(Kind.TEXT_ENCODER), dialect(Kind.TEXT_ENCODER, "official"))
    return [_torch_file(maker.out / WAN / "models_t5_umt5-xxl-enc-bf16.pth", source, torch.bfloat16)]


def _text_comfy(maker: _Maker) -> list[Path]:
    tokenizer = torch.frombuffer(bytearray(sentencepiece_model()), dtype=torch.uint8)
    source = maker.source(Kind.TEXT_ENCODER) | open_tensors({EMBEDDED: tokenizer})
    return [_safetensors(maker.out / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", source)]


def _clip_official(maker: _Maker) -> list[Path]:
    source = from_canonical(maker.source(Kind.CLIP_VISION), dialect(Kind.CLIP_VISION, "official"))
    source = source | random_source({"log_scale": (), "textual.token_embedding.weight": (16, 64)}, maker.seed, "text")
    name = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    return [_torch_file(maker.out / WAN / name, source, torch.bfloat16)]


def _clip_comfy(maker: _Maker) -> list[Path]:
    return [_safetensors(maker.out / "clip_vision" / "clip_vision_h.safetensors", maker.source(Kind.CLIP_VISION))]


def _speech_source(maker: _Maker) -> TensorSource:
    return from_canonical(maker.source(Kind.AUDIO_ENCODER), dialect(Kind.AUDIO_ENCODER, "weight_norm"), "wav2vec2.")


def _speech_folder(folder: Path, maker: _Maker) -> list[Path]:
    sizes = maker.sizes
    extras = {"quantizer.codevectors": (1, 8, 4), "quantizer.weight_proj.weight": (8, 4)}
    extras |= {"quantizer.weight_proj.bias": (8,)}
    extras |= {f"project_{name}.{leaf}": (4,) for name in ("hid", "q") for leaf in ("weight", "bias")}
    source = _speech_source(maker) | random_source(extras, maker.seed, "pre-training")
    config = {
        "architectures": ["Wav2Vec2ForPreTraining"], "model_type": "wav2vec2", "hidden_size": sizes.speech_dim,
        "num_hidden_layers": sizes.speech_layers, "num_attention_heads": max(2, sizes.speech_dim // 64),
        "intermediate_size": sizes.speech_ffn, "conv_dim": [sizes.speech_conv] * len(SPEECH_KERNELS),
        "conv_kernel": list(SPEECH_KERNELS), "conv_stride": list(SPEECH_STRIDES), "conv_bias": False,
        "feat_extract_norm": "group", "do_stable_layer_norm": False,
        "num_conv_pos_embeddings": POSITION_KERNEL, "num_conv_pos_embedding_groups": POSITION_GROUPS,
    }  # fmt: skip
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False, "feature_size": 1,
        "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False, "sampling_rate": 16000,
    }  # fmt: skip
    return [
        _torch_file(folder / "pytorch_model.bin", source, torch.float32),
        _json(folder / "config.json", config),
        _json(folder / "preprocessor_config.json", preprocessor),
    ]


def _speech_official(maker: _Maker) -> list[Path]:
    return _speech_folder(maker.out / SPEECH, maker)


def _speech_comfy(maker: _Maker) -> list[Path]:
    path = maker.out / "wav2vec2" / "wav2vec2-chinese-base_fp16.safetensors"
    folder = maker.out / "transformers" / "TencentGameMate" / SPEECH
    return [_safetensors(path, _speech_source(maker)), *_speech_folder(folder, maker)]


def _tokenizer(folder: Path) -> list[Path]:
    with _written(folder):
        return write_tokenizer(folder)


def _tokenizer_official(maker: _Maker) -> list[Path]:
    _check_new(maker.out / WAN / "google" / "umt5-xxl" / "tokenizer.json")
    return _tokenizer(maker.out / WAN / "google" / "umt5-xxl")


def _tokenizer_comfy(maker: _Maker) -> list[Path]:
    """None: the text encoder's file carries it."""
    return []


def _lora_official(maker: _Maker) -> list[Path]:
    return [*_lora_comfy(maker), _safetensors(maker.out / FUSIONX_NAME, maker.source(Kind.LORA, "fusionx"))]


def _lora_comfy(maker: _Maker) -> list[Path]:
    return [_safetensors(maker.out / "loras" / LORA_NAME, maker.source(Kind.LORA))]


PARTS: dict[str, tuple[Callable[[_Maker], list[Path]], Callable[[_Maker], list[Path]]]] = {
    "transformer": (_transformer_official, _transformer_comfy),
    "adapter": (_adapter_official, _adapter_comfy),
    "vae": (_vae_official, _vae_comfy),
    "text_encoder": (_text_official, _text_comfy),
    "tokenizer": (_tokenizer_official, _tokenizer_comfy),
    "clip_vision": (_clip_official, _clip_comfy),
    "audio_encoder": (_speech_official, _speech_comfy),
    "lora": (_lora_official, _lora_comfy),
}
