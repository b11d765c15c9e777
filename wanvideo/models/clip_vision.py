"""The CLIP ViT-H/14 image encoder.

Legend: R pictures, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, InputError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH, SMALL_HEAD_WIDTH = 80, 12  # of ViT-H/14, and of towers too small for two heads of that width
EMBEDDINGS = "vision_model.embeddings"


@dataclass(frozen=True)
class ClipVisionConfig:
    """Sizes of a CLIP vision tower, read from its tensors."""

    dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    patch_size: int
    image_size: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> ClipVisionConfig:
        """Args: shapes by the names of transformers' vision tower. Raises: CheckpointError for anything else."""
        wanted = "Use clip_vision_h.safetensors (open-clip ViT-H/14)."
        try:
            dim, _, patch, _ = shapes[f"{EMBEDDINGS}.patch_embedding.weight"]
            if f"{EMBEDDINGS}.class_embedding" not in shapes:
                raise CheckpointError(
                    f"This is a SigLIP encoder, {dim} wide, without the class token of CLIP. {wanted}"
                )
            if dim >= 2 * HEAD_WIDTH and dim % HEAD_WIDTH:
                raise CheckpointError(f"This is a CLIP vision tower of another size, {dim} wide, not 1280. {wanted}")
            tokens = shapes[f"{EMBEDDINGS}.position_embedding.weight"][0]
            layers = [int(n.split(".")[3]) for n in shapes if n.startswith("vision_model.encoder.layers.")]
            return cls(
                dim=dim,
                mlp_dim=shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
                num_layers=1 + max(layers),
                num_heads=max(1, dim // (HEAD_WIDTH if dim >= 2 * HEAD_WIDTH else SMALL_HEAD_WIDTH)),
                patch_size=patch,
                image_size=round((tokens - 1) ** 0.5) * patch,
            )
        except KeyError as missing:
            raise CheckpointError(f"This is no CLIP vision tower: the tensor {missing} is missing. {wanted}") from None


class ClipVisionEncoder(nn.Module):
    """transformers' CLIP vision tower up to its last block but one.

    Source: Wan2.1's CLIP, which feeds the transformer the tokens before the last block, without a final norm.
    """

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        with torch.device("cpu"):  # see text_encoder.py
            from transformers import CLIPVisionConfig, CLIPVisionModel

        self.config = config
        tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.dim,
                intermediate_size=config.mlp_dim,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                patch_size=config.patch_size,
                image_size=config.image_size,
                hidden_act="gelu",
            )
        )
        # transformers 5 has no level between the model and its parts, transformers 4 has one of this name.
        self.vision_model = getattr(tower, "vision_model", tower)
        # No checkpoint holds these indices, so they must be real even where the model is built without memory.
        positions = torch.arange((config.image_size // config.patch_size) ** 2 + 1, device="cpu")
        self.vision_model.embeddings.register_buffer("position_ids", positions[None], persistent=False)

    @property
    def device(self) -> torch.device:
        return self.vision_model.embeddings.class_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_model.embeddings.class_embedding.dtype

    def encode(self, images: Tensor) -> Tensor:
        """images [R, 3, H, W] in -1..1 -> tokens [R, 257, dim]."""
        pixels = preprocess(images.to(self.device), self.config.image_size).to(self.dtype)
        tokens: list[Tensor] = []

        def collect(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            tokens.append(output[0] if isinstance(output, tuple) else output)

        hook = self.vision_model.encoder.layers[self.config.num_layers - 2].register_forward_hook(collect)
        try:
            self.vision_model(pixels)
        finally:
            hook.remove()
        return tokens[0]


def preprocess(images: Tensor, size: int) -> Tensor:
    """images [R, 3, H, W] in -1..1 -> [R, 3, size, size]: squashed to the square, with CLIP's mean and deviation."""
    square = F.interpolate(images.float(), (size, size), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (square * 0.5 + 0.5 - mean) / std


def encode_tiled(encode: Callable[[Tensor], Tensor], images: Tensor, tiles: int, whole: float) -> Tensor:
    """Tokens of pictures, partly from tiles x tiles pieces of each, which show the encoder more detail.

    Args:
        encode: pictures [R, H, W, C] -> tokens [R, 1 + n * n, dim], the class token first.
        images: [R, H, W, C]. tiles: pieces along each side, all of one size: what H and W have beyond a multiple of
            `tiles` is in none. whole: 0..1, the share of the undivided picture's tokens.
    Returns: [R, 1 + n * n, dim]: the pieces' class tokens are averaged, their patches averaged down to n x n.
    Raises: InputError for a picture with fewer pixels than pieces along a side.
    """
    height, width = (size // tiles for size in images.shape[1:3])
    if not height or not width:
        raise InputError(
            f"A picture of {images.shape[2]}x{images.shape[1]} cannot be cut into {tiles} pieces along each side. "
            "Use fewer tiles, or a larger picture."
        )
    undivided = encode(images)
    corners = [(row * height, column * width) for row in range(tiles) for column in range(tiles)]
    pieces = torch.cat([images[:, top : top + height, left : left + width] for top, left in corners])
    tokens = encode(pieces).unflatten(0, (tiles * tiles, len(images)))
    side = round((tokens.shape[2] - 1) ** 0.5)
    patches = tokens[:, :, 1:].unflatten(2, (side, side)).unflatten(0, (tiles, tiles))
    grid = patches.permute(2, 5, 0, 3, 1, 4).flatten(4, 5).flatten(2, 3)
    patches = F.avg_pool2d(grid.float(), tiles).flatten(2).transpose(1, 2).to(tokens)
    divided = torch.cat((tokens[:, :, :1].mean(0), patches), 1)
    return undivided * whole + divided * (1 - whole)
