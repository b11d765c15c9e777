"""LoRA files: every dialect becomes differences of the transformer's parameters, under our names.

A file is matched against the parameters of the model that it is for: underscored names can be told apart only so, and
what does not fit is known before anything is read or changed.

Legend: N output features, K input features, R rank.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.detect import SLOTS, require
from ..checkpoints.dialects import Kind, dialect, from_canonical
from ..checkpoints.reader import StoredTensor, TensorSource, few, open_tensors
from ..errors import CheckpointError, UnsupportedError
from ..untrusted import answered, parse_json, read_json
from .deltas import Delta, Full, Hadamard, Kronecker, LowRank, is_finite
from .origin import OF_A_BLOCK, foreign_model

Shapes = Mapping[str, tuple[int, ...]]
Stamp = tuple[tuple[Path, int, int], ...]
logger = logging.getLogger("wanvideo")

PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.", "dit.", "model.",
    "module.", "lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_",
)  # fmt: skip
PAIR = re.compile(
    r"(?P<path>.+)\.(?:lora_|lora\.)(?P<side>down|up|A|B)"
    r"(?:\.(?!weight$|bias$)\w+)?\.(?P<leaf>weight|bias)"  # PEFT may put the adapter's name in between
)
OTHER = re.compile(
    r"(?P<path>.+)\.(?P<role>alpha|diff|diff_b|diff_m|w_norm|b_norm|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)"
)
UNKNOWN_FORMS = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lora_mid": "a Tucker decomposition",
    "hada_t1": "a Tucker decomposition", "lokr_t2": "a Tucker decomposition",
}  # fmt: skip
ROLES = {"w_norm": "diff", "b_norm": "diff_b"}  # what LyCORIS calls differences of a norm
PEFT_CONFIG = "adapter_config.json"  # where PEFT keeps the scale, beside the tensors
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # and diffusers, inside the file


@dataclass(frozen=True)
class Lora:
    """A LoRA as it fits one model.

    entries: differences by our parameter names. unmatched: what the file changes that this model does not have, or has
    in another shape; notes: why, where it can be said.
    """

    name: str
    entries: Mapping[str, tuple[Delta, ...]]
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Parameters that the file changes, those included that do not fit."""
        return len(self.entries) + len(self.unmatched)


@dataclass(frozen=True)
class _Scaling:
    """How strong a pair is whose alpha does not lie beside it: what the training tool noted elsewhere."""

    alpha: float | None = None
    patterns: Mapping[str, tuple[int, float]] = field(default_factory=dict)  # which one it is, and alpha, by ends
    rank_stabilized: bool = False

    @classmethod
    def noted(cls, note: Mapping[str, Any]) -> _Scaling:
        values = {key.rpartition(".")[2]: value for key, value in note.items()}
        alpha, patterns = values.get("lora_alpha"), values.get("alpha_pattern") or {}
        return cls(
            None if alpha is None else _number(alpha),
            {end: (place, _number(value)) for place, (end, value) in enumerate(patterns.items())},
            bool(values.get("use_rslora")),
        )

    def of(self, path: str, rank: int, alpha: float | None) -> float:
        if alpha is not None:
            return alpha / rank
        parts = path.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        _, alpha = min((self.patterns[end] for end in ends if end in self.patterns), default=(0, self.alpha))
        if alpha is None:
            return 1.0
        return alpha / (rank**0.5 if self.rank_stabilized else rank)


class LoraSource(TensorSource):
    """An opened LoRA: its header was read, its tensors are read when they are asked for.

    path: what it was opened from; None for tensors in memory. stamp: its files as they were then.
    """

    __hash__, __eq__ = object.__hash__, object.__eq__

    def __init__(self, source: TensorSource, path: Path | None, stamp: Stamp) -> None:
        super().__init__(source, source.name, source.metadata)
        self.path, self.stamp = path, stamp
        self._has_finite_values = False  # known once its values were looked at

    def check_values(self) -> None:
        """Raises: CheckpointError for values that are not finite. A file's values are read once for it."""
        if self._has_finite_values:
            return
        wrong = [_bare(_parsed(key)[0]) for key, tensor in self.items() if not is_finite(tensor)]
        if wrong:
            raise CheckpointError(
                f"{self.name} has values that are not finite numbers in its changes of {few(dict.fromkeys(wrong))}.\n"
                "It is damaged, or its training failed. Download it again, or use another version of it."
            )
        self._has_finite_values = self.path is not None  # those in memory may change


def open_lora(file: str | Path | Mapping[str, Tensor] | TensorSource) -> LoraSource:
    """Open a LoRA without reading its tensors. One that is open, and whose files did not change, is returned.

    Raises: CheckpointError when it is no LoRA, or is for another model; UnsupportedError for a form of LoRA that cannot
        be applied exactly.
    """
    if isinstance(file, LoraSource):
        if file.path is None or stamp_of(file.path) == file.stamp:
            return file
        file = file.path
    path = Path(file).expanduser() if isinstance(file, str | Path) else None
    stamp = () if path is None else stamp_of(path)
    source = open_tensors(file)
    with answered(source.name, CheckpointError):
        require(source, Kind.LORA)
        _check_form(source)
        _check_origin(source)
    config = None if path is None else _peft_config(path)
    if config is not None:
        noted = {DIFFUSERS_CONFIG: json.dumps(read_json(config, "the settings of a LoRA", CheckpointError))}
        source = TensorSource(source, source.name, source.metadata | noted)
    with answered(source.name, CheckpointError):
        _check_layers(source)
    return LoraSource(source, path, stamp)


def check_lora(file: str | Path | Mapping[str, Tensor] | TensorSource, shapes: Shapes | None = None) -> LoraSource:
    """Open a LoRA where it is chosen, and look at its values once.

    Args: shapes: of the transformer's parameters by name, unquantized; None while it is not known.
    Raises: as `open_lora` and `read_lora`, and CheckpointError when nothing of it fits or values are not finite.
    """
    source = open_lora(file)
    source.check_values()
    if shapes is not None:
        lora = read_lora(source, shapes)
        if lora.unmatched:
            few_names = few(lora.unmatched)
            logger.warning("%s: %d of %d differences fit this model; the others are left out (%s).",
                           lora.name, len(lora.entries), lora.total, few_names)  # fmt: skip
    return source


def _check_form(source: TensorSource) -> None:
    for marker, form in UNKNOWN_FORMS.items():
        found = next((key for key in source if f".{marker}" in key), None)
        if found:
            raise UnsupportedError(
                f"{source.name} is a LoRA with {form} ({found}), which cannot be applied. "
                "Use a version of it that has plain low-rank pairs."
            )
    for key, tensor in source.items():
        is_alpha = key.endswith(".alpha")
        if not (tensor.dtype.is_floating_point or (is_alpha and not tensor.dtype.is_complex)):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{source.name} has {key} as {kind}; the numbers of a LoRA are floating-point.")
        if is_alpha and math.prod(tensor.shape) != 1:
            raise CheckpointError(
                f"{source.name} has {key} of shape {list(tensor.shape)}, which is one number. Download it again."
            )


def _check_layers(source: TensorSource) -> None:
    """Every part of every layer is there and of a shape that can be multiplied out, whatever the model is."""
    scaling = _scaling(source)
    for path, roles in _grouped(source).items():
        _deltas(source.name, path, roles, scaling)


def _check_origin(source: TensorSource) -> None:
    paths = {_bare(_parsed(key)[0]): key for key in source}
    width = None
    for key, tensor in source.items():
        path, role = _parsed(key)
        if width is None and role in ("up", "down") and len(tensor.shape) >= 2 and OF_A_BLOCK.search(path):
            width = tensor.shape[0 if role == "up" else 1]
    model = foreign_model(paths, width)
    if model is not None:
        raise CheckpointError(
            f"{source.name} is a LoRA for {model}, which changes {few(paths, 2)}; none of it fits Wan2.1-I2V-14B.\n"
            f"Use a LoRA for Wan2.1 14B, e.g. {SLOTS[Kind.LORA].example}."
        )


def stamp_of(path: str | Path) -> Stamp:
    """The files that a LoRA's path stands for, and when and how they were written; () when one is missing."""
    try:
        return tuple((file.resolve(), file.stat().st_mtime_ns, file.stat().st_size) for file in files_of(path))
    except (OSError, ValueError, RuntimeError):
        return ()


def files_of(path: str | Path) -> list[Path]:
    """The files that a LoRA's path stands for: what is read of any of them counts."""
    path, config = Path(path).expanduser(), _peft_config(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return files if config is None or config in files else [*files, config]


def _peft_config(path: str | Path) -> Path | None:
    path = Path(path).expanduser()
    config = (path if path.is_dir() else path.parent) / PEFT_CONFIG
    return config if config.is_file() and (path.is_dir() or path.stem == "adapter_model") else None


def read_lora(source: TensorSource, shapes: Shapes) -> Lora:
    """Match a LoRA with the parameters of a transformer.

    Args: shapes: of the model's parameters by name, as they are unquantized.
    Raises: CheckpointError when half of a pair is missing, a parameter is changed twice under two names, or nothing
        fits.
    """
    scaling, names = _scaling(source), _Names(shapes)
    entries: dict[str, tuple[Delta, ...]] = {}
    unmatched: list[str] = []
    notes: dict[str, None] = {}
    for path, roles in _grouped(source).items():
        changed = _deltas(source.name, path, roles, scaling)
        if not changed:
            unmatched.append(path)
        for leaf, deltas in changed.items():
            name = names.find(path, leaf)
            if name is None:
                unmatched.append(f"{path}.{leaf}")
                continue
            wrong = next((delta for delta in deltas if not _same(delta.shape, shapes[name])), None)
            if wrong is not None:
                unmatched.append(f"{path}.{leaf}")
                notes[_misfit(name, wrong.shape, shapes[name])] = None
                continue
            if name in entries:
                raise CheckpointError(
                    f"{source.name} changes {name} twice, under two names. The file is damaged: download it again."
                )
            entries[name] = tuple(delta.reshaped(shapes[name]) for delta in deltas)
    lora = Lora(source.name, entries, tuple(unmatched), tuple(notes))
    if not entries:
        why = f" ({'; '.join(lora.notes[:2])})" if notes else ""
        raise CheckpointError(
            f"{source.name} fits nothing of this model: it changes {few(unmatched, 2)}{why}.\n"
            f"Use a LoRA for Wan2.1 14B, e.g. {SLOTS[Kind.LORA].example}."
        )
    return lora


def _scaling(source: TensorSource) -> _Scaling:
    text = source.metadata.get(DIFFUSERS_CONFIG)
    if text is None:
        return _Scaling()
    try:
        noted = parse_json(text, "its settings", CheckpointError)
        return _Scaling.noted(noted)
    except (ValueError, TypeError, AttributeError):
        raise CheckpointError(
            f"The settings that come with {source.name} cannot be read, so its scale is not known. Download it again."
        ) from None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(value)
    return float(value)


def _grouped(source: TensorSource) -> dict[str, dict[str, StoredTensor]]:
    """Tensors by the layer that they change, prefixes taken off, and by their part in it."""
    groups: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in source.items():
        path, role = _parsed(key)
        path = _bare(path)
        group = groups.setdefault(path, {})
        if role in group:
            raise CheckpointError(
                f"{source.name} has {path} twice, under two names. The file is damaged: download it again."
            )
        group[role] = tensor
    return groups


def _parsed(key: str) -> tuple[str, str]:
    """A key's layer, and its role there; a key of no known form is its own layer and has no role."""
    pair = PAIR.fullmatch(key)
    if pair:
        side = {"A": "down", "B": "up"}.get(pair["side"], pair["side"])
        return pair["path"], side if pair["leaf"] == "weight" else f"{side}_bias"
    other = OTHER.fullmatch(key)
    return (other["path"], ROLES.get(other["role"], other["role"])) if other else (key, "")


def _bare(path: str) -> str:
    while True:
        prefix = next((prefix for prefix in PREFIXES if path.startswith(prefix)), None)
        if prefix is None:
            return path
        path = path.removeprefix(prefix)


class _Names:
    """Our parameter for a layer as any dialect calls it: dotted or underscored, in our names or diffusers'."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        stub = {name: StoredTensor(shape, torch.float32, lambda: torch.empty(0)) for name, shape in shapes.items()}
        theirs = from_canonical(TensorSource(stub, "parameters"), dialect(Kind.TRANSFORMER, "diffusers"))
        self.layers: dict[str, str] = {}
        for name, other in zip(shapes, theirs, strict=True):
            ours = _layer(name)
            for spelled in (ours, _layer(other), f"multitalk_{ours}"):
                self.layers.setdefault(spelled, ours)
                self.layers.setdefault(spelled.replace(".", "_"), ours)

    def find(self, path: str, leaf: str) -> str | None:
        if leaf == "modulation":
            path, leaf = f"{path}_modulation" if "." not in path and "_" in path else f"{path}.modulation", "weight"
        layer = self.layers.get(path) or self.layers.get(path.replace(".", "_"))  # kohya's tools leave some dots
        found = (name for name in (f"{layer}.{leaf}", layer if leaf == "weight" else None) if name in self.shapes)
        return next(found, None)


def _layer(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".bias")


def _deltas(file: str, path: str, roles: Mapping[str, StoredTensor], scaling: _Scaling) -> dict[str, tuple[Delta, ...]]:
    """The differences of a layer's parameters: weight, bias, modulation."""
    found: dict[str, list[Delta]] = {}
    alpha = _alpha(file, path, roles["alpha"]) if "alpha" in roles else None
    if "down" in roles or "up" in roles:
        down, up = _whole(file, path, roles, ("down", "up"))
        _check_pair(file, path, up, down)
        scale = scaling.of(path, down.shape[0], alpha)
        found["weight"] = [LowRank(down, up, scale)]
        if "up_bias" in roles:
            found["bias"] = [Full(roles["up_bias"], scale)]
    if any(role.startswith("hada_") for role in roles):
        first_up, first_down, second_up, second_down = _whole(
            file, path, roles, ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        )
        _check_pair(file, path, first_up, first_down)
        _check_pair(file, path, second_up, second_down)
        if [first_up.shape[0], first_down.shape[1:]] != [second_up.shape[0], second_down.shape[1:]]:
            raise _damaged(file, path, (first_up, first_down, second_up, second_down))
        scale = scaling.of(path, first_down.shape[0], alpha)
        found.setdefault("weight", []).append(Hadamard(first_up, first_down, second_up, second_down, scale))
    if any(role.startswith("lokr_") for role in roles):
        found.setdefault("weight", []).append(_kronecker(file, path, roles, alpha))
    for role, leaf in (("diff", "weight"), ("diff_b", "bias"), ("diff_m", "modulation")):
        if role in roles:
            found.setdefault(leaf, []).append(Full(roles[role], 1.0))
    return {leaf: tuple(deltas) for leaf, deltas in found.items()}


def _kronecker(file: str, path: str, roles: Mapping[str, StoredTensor], alpha: float | None) -> Kronecker:
    factors, ranks = [], []
    for number in "12":
        whole = f"lokr_w{number}"
        names = (whole,) if whole in roles else (f"{whole}_a", f"{whole}_b")
        parts = _whole(file, path, roles, names)
        if len(parts) == 2:
            _check_pair(file, path, *parts)
            ranks.append(parts[1].shape[0])
        elif len(parts[0].shape) < 2 or 0 in parts[0].shape:
            raise _damaged(file, path, parts)
        factors.append(parts)
    # Where no factor is decomposed there is no rank, and alpha means nothing.
    return Kronecker(factors[0], factors[1], alpha / ranks[-1] if ranks and alpha is not None else 1.0)


def _alpha(file: str, path: str, stored: StoredTensor) -> float:
    value = float(stored.read().float().reshape(()))
    if not math.isfinite(value):
        raise CheckpointError(f"{file} has an alpha of {path} that is no finite number. Download it again.")
    return value


def _check_pair(file: str, path: str, up: StoredTensor, down: StoredTensor) -> None:
    """up [N, R, ...] and down [R, K, ...] have one rank R."""
    are_matrices = min(len(up.shape), len(down.shape)) >= 2 and 0 not in up.shape + down.shape
    if not are_matrices or up.shape[1] != down.shape[0] or math.prod(up.shape[2:]) != 1:
        raise _damaged(file, path, (down, up))


def _damaged(file: str, path: str, parts: Iterable[StoredTensor]) -> CheckpointError:
    shapes = " and ".join(str(list(part.shape)) for part in parts)
    return CheckpointError(
        f"{file} is damaged: the pair of {path} is {shapes}, which are no matrices of one rank. Download it again."
    )


def _whole(file: str, path: str, roles: Mapping[str, StoredTensor], names: Iterable[str]) -> tuple[StoredTensor, ...]:
    missing = [name for name in names if name not in roles]
    if missing:
        raise CheckpointError(f"{file} is incomplete: {path} lacks {few(missing)}. Download it again.")
    return tuple(roles[name] for name in names)


def _same(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether two shapes are one but for sides of length 1 (a 1x1 convolution is a matrix)."""
    return [side for side in shape if side != 1] == [side for side in wanted if side != 1]


def _misfit(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if name == "patch_embedding.weight" and shape[0] == wanted[0]:
        kind = " (text-to-video)" if shape[1] == 16 else ""
        return f"its patch embedding is for {shape[1]} channels{kind}, the model's has {wanted[1]}"
    return f"{name} would be {list(shape)}, the model's is {list(wanted)}"
