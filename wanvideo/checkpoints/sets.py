"""Published model files: which repository has them, how large they are, and which a preset or a document needs.

Sizes and SHA-256 are those that the repositories publish; where no SHA-256 is written here the size is rounded, and
what the repository says when it is asked counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..request import EngineOptions

APACHE = "Apache-2.0"
WAV2VEC = "TencentGameMate/chinese-wav2vec2-base"
TOKENIZER = "google/umt5-xxl"
WAN_480, WAN_720 = "Wan-AI/Wan2.1-I2V-14B-480P", "Wan-AI/Wan2.1-I2V-14B-720P"
INFINITETALK, KIJAI = "MeiGen-AI/InfiniteTalk", "Kijai/WanVideo_comfy"
FUSIONX = "vrgamedevgirl84/Wan14BT2VFusioniX"
NUM_SHARDS, SHARDS_BYTES = 7, 65_580_000_000  # of the transformer in float32


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Args:
        name: its path in the repository. size_bytes: rounded where `sha256` is None.
        local: its path below the folder that everything is downloaded to. revision: of the repository.
    """

    repository: str
    name: str
    size_bytes: int
    sha256: str | None
    local: str
    revision: str = "main"

    @property
    def link(self) -> str:
        return f"https://huggingface.co/{self.repository}"


@dataclass(frozen=True)
class ModelSet:
    """Files that are of use together. license: as the repository states it."""

    name: str
    about: str
    files: tuple[RemoteFile, ...]
    license: str = APACHE

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def _files(repository: str, folder: str, *entries: tuple[str, int, str | None]) -> tuple[RemoteFile, ...]:
    """Files of one repository that keep their names below `folder`."""
    return tuple(RemoteFile(repository, name, size, sha, f"{folder}{name}") for name, size, sha in entries)


def _transformer(repository: str) -> tuple[RemoteFile, ...]:
    shards = [f"diffusion_pytorch_model-{i:05}-of-{NUM_SHARDS:05}.safetensors" for i in range(1, NUM_SHARDS + 1)]
    entries = [("config.json", 250, None), ("diffusion_pytorch_model.safetensors.index.json", 119_000, None)]
    entries += [(name, SHARDS_BYTES // NUM_SHARDS, None) for name in shards]
    return _files(repository, f"{repository.partition('/')[2]}/", *entries)


_TOKENIZER: tuple[tuple[str, int, str | None], ...] = (
    ("tokenizer.json", 16_837_417, "6e197b4d3dbd71da14b4eb255f4fa91c9c1f2068b20a2de2472967ca3d22602b"),
    ("tokenizer_config.json", 61_728, "ed9a3a8b0faa71a70a32847e0435fe036e6e112d4df4edb7bb48a921e344dc05"),
    ("special_tokens_map.json", 6_623, "7b8a9f5040adb67b5805abdfd42c1f8d0f3d0e711f10726580eb3789cd0ad61d"),
)
_T5 = ("models_t5_umt5-xxl-enc-bf16.pth", 11_361_920_418,
       "7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d")  # fmt: skip
_ENCODERS: tuple[tuple[str, int, str | None], ...] = (
    ("Wan2.1_VAE.pth", 507_609_880, "38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981"),
    ("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", 4_772_359_047,
     "628c9998b613391f193eb67ff68da9667d75f492911e4eb3decf23460a158c38"),
    *((f"{TOKENIZER}/{name}", size, sha) for name, size, sha in _TOKENIZER),
)  # fmt: skip
_REPACKED = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"
_LIGHTX2V = "lightx2v_I2V_14B_480p_cfg_step_distill_{}_bf16.safetensors"
_SETS = (
    ModelSet("base-480p", "Wan2.1 image-to-video 14B, 480P, in float32 shards", _transformer(WAN_480)),
    ModelSet("base-720p", "Wan2.1 image-to-video 14B, 720P, in float32 shards", _transformer(WAN_720)),
    ModelSet(
        "encoders-480p", "VAE, CLIP and tokenizer in the 480P folder",
        _files(WAN_480, "Wan2.1-I2V-14B-480P/", *_ENCODERS),
    ),
    ModelSet(
        "encoders-720p", "VAE, CLIP and tokenizer in the 720P folder",
        _files(WAN_720, "Wan2.1-I2V-14B-720P/", *_ENCODERS),
    ),
    ModelSet("t5-480p", "UMT5-XXL in bf16, in the 480P folder", _files(WAN_480, "Wan2.1-I2V-14B-480P/", _T5)),
    ModelSet("t5-720p", "UMT5-XXL in bf16, in the 720P folder", _files(WAN_720, "Wan2.1-I2V-14B-720P/", _T5)),
    ModelSet(
        "infinitetalk-single", "InfiniteTalk audio adapter for one speaker, float32",
        _files(INFINITETALK, "InfiniteTalk/", ("single/infinitetalk.safetensors", 9_950_000_000, None)),
    ),
    ModelSet(
        "infinitetalk-multi", "InfiniteTalk audio adapter for two speakers, float32",
        _files(INFINITETALK, "InfiniteTalk/", ("multi/infinitetalk.safetensors", 9_950_000_000, None)),
    ),
    ModelSet(
        "infinitetalk-fp8", "480P transformer with InfiniteTalk for one speaker and the text encoder, both in fp8",
        _files(
            INFINITETALK, "InfiniteTalk/",
            ("quant_models/infinitetalk_single_fp8.safetensors", 19_500_000_000, None),
            ("quant_models/infinitetalk_single_fp8.json", 49_300, None),
            ("quant_models/t5_fp8.safetensors", 6_730_000_000, None),
            ("quant_models/t5_map_fp8.json", 12_500, None),
        ),
    ),
    ModelSet(
        "wav2vec", "speech encoder chinese-wav2vec2-base",
        _files(
            WAV2VEC, "chinese-wav2vec2-base/",
            ("config.json", 1_800, None), ("preprocessor_config.json", 160, None),
            ("pytorch_model.bin", 380_000_000, None),
        ),
        "MIT",
    ),
    ModelSet(
        "wav2vec-safetensors", "the same weights as safetensors, from a proposal in the repository",
        (RemoteFile(WAV2VEC, "model.safetensors", 380_000_000, None, "chinese-wav2vec2-base/model.safetensors",
                    "refs/pr/1"),),
        "MIT",
    ),
    ModelSet(
        "lightx2v", "LoRA for 4 steps, of rank 128",
        (RemoteFile(KIJAI, f"Lightx2v/{_LIGHTX2V.format('rank128')}", 1_470_000_000, None,
                    _LIGHTX2V.format("rank128")),),
    ),
    ModelSet(
        "lightx2v-rank64", "LoRA for 4 steps, of rank 64",
        (RemoteFile(KIJAI, f"Lightx2v/{_LIGHTX2V.format('rank64')}", 738_005_744,
                    "85c4a61c30e0497aa44b91d93a893b624708461a56fe5485183b28fa07e2dfb3", _LIGHTX2V.format("rank64")),),
    ),
    ModelSet(
        "lightx2v-t2v", "LoRA for 4 steps, of the text-to-video model",
        _files(KIJAI, "", ("Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors", 319_000_000, None)),
    ),
    ModelSet(
        "fusionx", "LoRA for 8 steps",
        _files(FUSIONX, "", ("FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors", 370_000_000, None)),
        "none stated",
    ),
    ModelSet(
        "tokenizer", "tokenizer of the text encoder",
        _files(TOKENIZER, f"{TOKENIZER}/", *((name, size, None) for name, size, _ in _TOKENIZER)),
    ),
)  # fmt: skip
SETS = {item.name: item for item in _SETS}
# What a document has a reader download, under its own name.
DOCUMENTS = {
    "documents": ("base-480p", "encoders-480p", "t5-480p", "infinitetalk-single", "infinitetalk-multi",
                  "infinitetalk-fp8", "wav2vec", "wav2vec-safetensors", "lightx2v", "lightx2v-t2v", "fusionx"),
    "rtx4090": ("encoders-480p", "infinitetalk-single", "infinitetalk-fp8", "wav2vec"),
}  # fmt: skip


def _one(repository: str, folder: str, name: str, size_bytes: int) -> RemoteFile:
    return RemoteFile(repository, name, size_bytes, None, f"{folder}/{name.rpartition('/')[2]}")


@dataclass(frozen=True)
class ComfyFiles:
    """Files of a video's models as ComfyUI keeps them, below its models folder; their sizes are rounded."""

    transformer: RemoteFile = _one(
        _REPACKED, "diffusion_models", "wan2.1_i2v_480p_14B_fp8_scaled.safetensors", 16_400_000_000
    )
    transformer_720: RemoteFile = _one(
        _REPACKED, "diffusion_models", "wan2.1_i2v_720p_14B_fp8_scaled.safetensors", 16_400_000_000
    )
    single: RemoteFile = _one(KIJAI, "diffusion_models", "Wan2_1-InfiniTetalk-Single_fp16.safetensors", 5_000_000_000)
    multi: RemoteFile = _one(KIJAI, "diffusion_models", "Wan2_1-InfiniteTalk-Multi_fp16.safetensors", 5_000_000_000)
    vae: RemoteFile = _one(_REPACKED, "vae", "wan_2.1_vae.safetensors", 250_000_000)
    text_encoder: RemoteFile = _one(_REPACKED, "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors", 6_700_000_000)
    clip_vision: RemoteFile = _one(_REPACKED, "clip_vision", "clip_vision_h.safetensors", 1_300_000_000)
    audio_encoder: RemoteFile = _one(
        "Kijai/wav2vec2_safetensors", "wav2vec2", "wav2vec2-chinese-base_fp16.safetensors", 200_000_000
    )
    lightx2v: RemoteFile = _one(KIJAI, "loras", f"Lightx2v/{_LIGHTX2V.format('rank64')}", 738_005_744)
    fusionx: RemoteFile = _one(FUSIONX, "loras", "FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors", 370_000_000)


def for_preset(options: EngineOptions, size: str, lora_files: Iterable[str]) -> tuple[ModelSet, ...]:
    """The smallest sets that a preset runs with, for one speaker.

    At 480 in fp8 the published fp8 files replace the float32 transformer, adapter and text encoder.
    Args: options, size: of the preset. lora_files: the names that its LoRAs go by.
    """
    scale = "720p" if size.endswith("720") else "480p"
    if options.quantize == "fp8" and scale == "480p":
        names = ["infinitetalk-fp8"]
    else:
        names = [f"base-{scale}", f"t5-{scale}", "infinitetalk-single"]
    published = {Path(file.name).name: item for item in _SETS for file in item.files}
    loras = [published[base] for name in lora_files if (base := Path(name).name) in published]
    return (*(SETS[name] for name in (*names, f"encoders-{scale}", "wav2vec")), *loras[:1])


def sets_with(path: Path) -> tuple[str, ...]:
    """Names of the sets that have a file of this name and folder or, if `path` is a folder, the files right in it."""
    found = []
    for item in _SETS:
        names = [Path(file.local).parts for file in item.files if file.revision == "main"]
        if any(path.parts[-2:][-len(parts) :] == parts[-2:] or parts[:-1] == (path.name,) for parts in names):
            found.append(item.name)
    return tuple(found)


def files_of(repository: str) -> tuple[RemoteFile, ...]:
    """All files of a repository's main revision that some set has."""
    files = (file for item in _SETS for file in item.files)
    return tuple({f.name: f for f in files if f.repository == repository and f.revision == "main"}.values())
