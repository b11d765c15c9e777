"""The tensors that decide the sizes of each model, checked before any of them is used as one.

A row is a name and its shape: a number is that size, a letter a size that is the same in all rows (`6D` six times it).
What most rows say of a letter counts, so that the one tensor which is wrong is named, whichever it is.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import CheckpointError
from .dialects import Kind

Shapes = Mapping[str, tuple[int, ...]]
_SIDE = re.compile(r"(\d*)([A-Z]?)")


@dataclass(frozen=True)
class Side:
    """One size of a shape: factor times what a letter stands for, or the factor itself."""

    factor: int
    letter: str

    def value(self, sizes: Mapping[str, int]) -> int | None:
        """None: it may be anything."""
        if not self.letter:
            return self.factor
        return self.factor * sizes[self.letter] if self.letter in sizes else None


@dataclass(frozen=True)
class Table:
    """Args: rows: by name. blocks: how the names of numbered blocks begin. group: used where a name begins so."""

    rows: Mapping[str, tuple[Side, ...]]
    blocks: str = ""
    group: str = ""


def _table(text: str, blocks: str = "", group: str = "") -> Table:
    rows = {}
    for name, *sides in filter(None, map(str.split, text.splitlines())):
        found = [_SIDE.fullmatch(side) for side in sides]
        rows[name] = tuple(Side(int(match[1] or 1), match[2]) for match in found if match)
    return Table(rows, blocks, group)


_WAN = _table(
    """
    patch_embedding.weight D C 1 2 2
    patch_embedding.bias D
    text_embedding.0.weight D X
    text_embedding.0.bias D
    text_embedding.2.weight D D
    time_embedding.0.weight D 256
    time_embedding.2.weight D D
    time_projection.1.weight 6D D
    head.head.weight 64 D
    head.modulation 1 2 D
    blocks.0.modulation 1 6 D
    blocks.0.self_attn.q.weight D D
    blocks.0.ffn.0.weight F D
    blocks.0.ffn.0.bias F
    blocks.0.ffn.2.weight D F
    """,
    blocks="blocks.",
)
_IMAGE = _table(
    """
    img_emb.proj.0.weight I
    img_emb.proj.1.weight I I
    img_emb.proj.3.weight D I
    """,
    group="img_emb.",
)
_AUDIO = _table(
    """
    audio_proj.proj1.weight H 5U
    audio_proj.proj1.bias H
    audio_proj.proj1_vf.weight H 8U
    audio_proj.proj2.weight H H
    audio_proj.proj3.weight P H
    audio_proj.proj3.bias P
    audio_proj.norm.weight A
    audio_proj.norm.bias A
    blocks.0.norm_x.weight D
    blocks.0.audio_cross_attn.q_linear.weight D D
    blocks.0.audio_cross_attn.kv_linear.weight 2D A
    blocks.0.audio_cross_attn.proj.weight D D
    """,
    blocks="blocks.",
    group="audio_proj.",
)
_LAYER = "encoder.block.0.layer"
_CLIP = "vision_model.encoder.layers.0"
_POSITION = "encoder.pos_conv_embed.conv"
TABLES: dict[Kind, tuple[Table, ...]] = {
    Kind.TRANSFORMER: (_WAN, _IMAGE, _AUDIO),
    Kind.ADAPTER: (_AUDIO,),
    Kind.VAE: (
        _table(
            """
            conv1.weight 2Z 2Z 1 1 1
            conv1.bias 2Z
            conv2.weight Z Z 1 1 1
            conv2.bias Z
            encoder.conv1.weight W 3 3 3 3
            encoder.conv1.bias W
            decoder.conv1.weight 4W Z 3 3 3
            decoder.head.0.gamma W 1 1 1
            decoder.head.2.weight 3 W 3 3 3
            """
        ),
    ),
    Kind.TINY_VAE: (
        _table(
            """
            decoder.1.weight A 16 3 3
            decoder.1.bias A
            decoder.3.conv.0.weight A 2A 3 3
            decoder.7.conv.weight A A 1 1
            decoder.8.weight B A 3 3
            decoder.9.conv.0.weight B 2B 3 3
            decoder.13.conv.weight 2B B 1 1
            decoder.14.weight C B 3 3
            decoder.15.conv.0.weight C 2C 3 3
            decoder.19.conv.weight 2C C 1 1
            decoder.20.weight D C 3 3
            decoder.22.weight 3 D 3 3
            decoder.22.bias 3
            """
        ),
    ),
    Kind.TEXT_ENCODER: (
        _table(
            f"""
            shared.weight V D
            encoder.final_layer_norm.weight D
            {_LAYER}.0.layer_norm.weight D
            {_LAYER}.0.SelfAttention.relative_attention_bias.weight B N
            {_LAYER}.0.SelfAttention.q.weight Q D
            {_LAYER}.0.SelfAttention.k.weight Q D
            {_LAYER}.0.SelfAttention.o.weight D Q
            {_LAYER}.1.DenseReluDense.wi_0.weight F D
            {_LAYER}.1.DenseReluDense.wi_1.weight F D
            {_LAYER}.1.DenseReluDense.wo.weight D F
            """,
            blocks="encoder.block.",
        ),
        _table(
            "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight B N",
            group="encoder.block.1.layer.0.SelfAttention.relative_attention_bias.",
        ),
        _table(
            "encoder.block.2.layer.0.SelfAttention.relative_attention_bias.weight B N",
            group="encoder.block.2.layer.0.SelfAttention.relative_attention_bias.",
        ),
    ),
    Kind.CLIP_VISION: (
        _table(
            f"""
            vision_model.embeddings.class_embedding D
            vision_model.embeddings.patch_embedding.weight D 3 P P
            vision_model.embeddings.position_embedding.weight T D
            vision_model.pre_layrnorm.weight D
            {_CLIP}.self_attn.q_proj.weight D D
            {_CLIP}.mlp.fc1.weight M D
            {_CLIP}.mlp.fc1.bias M
            {_CLIP}.mlp.fc2.weight D M
            """,
            blocks="vision_model.encoder.layers.",
        ),
    ),
    Kind.AUDIO_ENCODER: (
        _table(
            "feature_extractor.conv_layers.0.conv.weight C 1 10\n"
            + "".join(
                f"feature_extractor.conv_layers.{n}.conv.weight C C {kernel}\n"
                for n, kernel in enumerate((3, 3, 3, 3, 2, 2), 1)
            )
            + f"""
            feature_projection.layer_norm.weight C
            feature_projection.projection.weight H C
            feature_projection.projection.bias H
            encoder.layer_norm.weight H
            {_POSITION}.bias H
            {_POSITION}.parametrizations.weight.original0 1 1 128
            {_POSITION}.parametrizations.weight.original1 H G 128
            encoder.layers.0.attention.q_proj.weight H H
            encoder.layers.0.feed_forward.intermediate_dense.weight F H
            encoder.layers.0.feed_forward.intermediate_dense.bias F
            encoder.layers.0.feed_forward.output_dense.weight H F
            """,
            blocks="encoder.layers.",
        ),
    ),
    Kind.SYNCNET: (
        _table(
            """
            netcnnaud.0.weight A 1 3 3
            netcnnaud.4.weight B A 3 3
            netcnnaud.8.weight C B 3 3
            netcnnaud.11.weight D C 3 3
            netcnnaud.14.weight E D 3 3
            netcnnaud.18.weight F E 5 4
            netcnnlip.0.weight G 3 5 7 7
            netcnnlip.4.weight H G 1 5 5
            netcnnlip.8.weight I H 1 3 3
            netcnnlip.11.weight J I 1 3 3
            netcnnlip.14.weight K J 1 3 3
            netcnnlip.18.weight L K 1 6 6
            netfcaud.0.weight M F
            netfcaud.3.weight N M
            netfclip.0.weight M L
            netfclip.3.weight N M
            netfclip.3.bias N
            """
        ),
    ),
}


def check_shapes(name: str, kind: Kind, shapes: Shapes) -> None:
    """Check the tensors that decide a model's sizes, by its own names of them.

    Raises: CheckpointError naming those that are missing or wrong, their shapes, and what is expected.
    """
    rows: dict[str, tuple[Side, ...]] = {}
    for table in TABLES.get(kind, ()):
        if not table.group or any(key.startswith(table.group) for key in shapes):
            rows |= table.rows
            _check_blocks(name, kind, shapes, table.blocks)
    sizes, contested = _sizes(rows, shapes)
    for key, sides in rows.items():
        expected = [side.value(sizes) for side in sides]
        if key not in shapes or not _fits(shapes[key], expected):
            raise _misfit(name, kind, key, shapes.get(key), expected)
    for letter in contested:
        keys = [key for key, sides in rows.items() if any(side.letter == letter for side in sides)]
        differ = " and ".join(f"{key} is {list(shapes[key])}" for key in keys)
        raise _refusal(name, kind, f"{differ}, which do not agree")
    _check_arithmetic(name, kind, sizes)


def rank_checked(name: str, kind: Kind, shapes: Shapes, key: str) -> tuple[int, ...]:
    """The shape of a tensor of the table, which has as many sides as it should. Raises: CheckpointError."""
    sides = next(table.rows[key] for table in TABLES[kind] if key in table.rows)
    shape = shapes.get(key)
    if shape is None or len(shape) != len(sides) or 0 in shape:
        raise _misfit(name, kind, key, shape, [None if side.letter else side.factor for side in sides])
    return shape


def block_count(shapes: Shapes, start: str) -> int:
    """How many numbered blocks there are, by the highest number. Args: start: how their names begin."""
    return 1 + max((number for number in _block_numbers(shapes, start) if number is not None), default=-1)


def _block_numbers(shapes: Shapes, start: str) -> Iterator[int | None]:
    for key in shapes:
        if key.startswith(start):
            number = key[len(start) :].partition(".")[0]
            yield int(number) if number.isascii() and number.isdigit() and len(number) < 6 else None


def _check_blocks(name: str, kind: Kind, shapes: Shapes, start: str) -> None:
    if not start:
        return
    numbers = set(_block_numbers(shapes, start))
    wanted = range(block_count(shapes, start))
    missing = next((number for number in wanted if number not in numbers), None)
    if None in numbers or missing is not None or not wanted:
        fault = "one is in a block without a number" if None in numbers else f"all of {start}{missing or 0} are missing"
        raise _refusal(name, kind, fault)


def _sizes(rows: Mapping[str, tuple[Side, ...]], shapes: Shapes) -> tuple[dict[str, int], set[str]]:
    """What each letter stands for by most rows, and the letters of which two values are as frequent."""
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for key, sides in rows.items():
        shape = shapes.get(key, ())
        if len(shape) != len(sides):
            continue
        for size, side in zip(shape, sides, strict=True):
            if side.letter and size and size % side.factor == 0:
                votes[side.letter][size // side.factor] += 1
    ranked = {letter: counts.most_common(2) for letter, counts in votes.items()}
    ties = {letter for letter, top in ranked.items() if len(top) > 1 and top[0][1] == top[1][1]}
    return {letter: top[0][0] for letter, top in ranked.items() if letter not in ties}, ties


def _fits(shape: tuple[int, ...], expected: list[int | None]) -> bool:
    return len(shape) == len(expected) and all(
        size > 0 if wanted is None else size == wanted for size, wanted in zip(shape, expected, strict=True)
    )


def _misfit(
    name: str, kind: Kind, key: str, shape: tuple[int, ...] | None, expected: list[int | None]
) -> CheckpointError:
    wanted = f"[{', '.join('any' if size is None else str(size) for size in expected)}]"
    found = f"{key} is missing, which is {wanted}" if shape is None else f"{key} is {list(shape)}, not {wanted}"
    return _refusal(name, kind, found)


def _refusal(name: str, kind: Kind, fault: str) -> CheckpointError:
    return CheckpointError(
        f"{name} does not fit: of the tensors of its {kind.value}, {fault}.\n"
        "It is incomplete, or made for another model. Download it again, or use another version of it."
    )


def _check_arithmetic(name: str, kind: Kind, sizes: Mapping[str, int]) -> None:
    """Sizes that have to be multiples of others."""
    fault = ""
    if kind is Kind.TEXT_ENCODER and sizes["Q"] % sizes["N"]:
        fault = f"{sizes['Q']} features of attention are not a multiple of {sizes['N']} heads"
    if kind is Kind.CLIP_VISION and math.isqrt(sizes["T"] - 1) ** 2 != sizes["T"] - 1:
        key, shape = "vision_model.embeddings.position_embedding.weight", [sizes["T"], sizes["D"]]
        fault = f"{key} is {shape}, which is not one row for a square picture's patches and one more"
    if kind is Kind.AUDIO_ENCODER and sizes["H"] % sizes["G"]:
        fault = f"a width of {sizes['H']} is not a multiple of groups of {sizes['G']}"
    if "P" in sizes and "A" in sizes and sizes["P"] % sizes["A"]:
        fault = f"audio_proj.proj3 makes {sizes['P']} numbers, which are not tokens of {sizes['A']}"
    if fault:
        raise CheckpointError(
            f"{name} does not fit: {fault}. It is damaged, or made for another model: download it again."
        )
