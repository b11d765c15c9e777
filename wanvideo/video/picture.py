"""Still pictures: read, and fit to the size of the video.

Legend: H W rows and columns; pictures are uint8 [H, W, 3] RGB, masks are bool [H, W], as numpy arrays.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

MAX_RESIZED_PIXELS = 2**28
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def load_picture(path: str | Path) -> np.ndarray:
    """A picture as it is meant to be seen: turned as its EXIF says, transparent parts on white.

    Args:
        path: any format that Pillow reads; of several pages or frames the first; 16 bit is brought to 8, CMYK to RGB.
    Returns: [H, W, 3] uint8.
    Raises: InputError when the file is missing, damaged or not a picture.
    """
    return np.array(_open(Path(path), "white"))


def load_mask(path: str | Path) -> np.ndarray:
    """Where a mask picture is white (above half); transparent parts count as black.

    Returns: [H, W] bool.
    Raises: InputError when the file is missing, damaged, not a picture, or nowhere white.
    """
    levels = np.asarray(_open(Path(path), "black").convert("L"))
    mask = levels > 127
    if not mask.any():
        raise InputError(
            f"The mask {path} is nowhere white: its brightest value is {levels.max()} of 255. "
            "Paint the person white (above 127) on black."
        )
    return mask


def fit(picture: np.ndarray, width: int, height: int) -> Tensor:
    """Scale a picture until it covers the video's size, and cut what sticks out evenly from both sides.

    Args:
        picture: [H, W, 3] uint8.
        width, height: of the video, pixels.
    Returns: [3, height, width] float32 in -1..1.
    Source: resize_and_centercrop of MultiTalk / InfiniteTalk (Pillow, bilinear).
    """
    resized_width, resized_height, left, top = _placement(picture.shape[1], picture.shape[0], width, height)
    image = Image.fromarray(picture).resize((resized_width, resized_height), Image.Resampling.BILINEAR)
    cropped = np.array(image.crop((left, top, left + width, top + height)))
    return (torch.from_numpy(cropped).permute(2, 0, 1).float() / 255 - 0.5) * 2


def fit_images(images: Tensor, width: int, height: int) -> Tensor:
    """Pictures from memory, fitted as `fit` does; those that have the video's size keep every value.

    Args:
        images: [R, H, W, 3 or 4] float 0..1; a fourth channel is left out.
    Returns: [R, 3, height, width] float32 in -1..1.
    Raises: InputError for another shape, no picture at all, or values that are no numbers.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or not len(images):
        raise InputError(f"Pictures of shape {list(images.shape)} are not usable. Give [number, rows, columns, 3].")
    images = images[..., :3].float()
    if not torch.isfinite(images).all():
        raise InputError("The picture has values that are no numbers (NaN or infinite).")
    if tuple(images.shape[1:3]) == (height, width):
        return images.permute(0, 3, 1, 2) * 2 - 1
    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return torch.stack([fit(picture, width, height) for picture in levels])


def fit_mask(mask: np.ndarray, width: int, height: int) -> Tensor:
    """The part of a mask that `fit` keeps of its picture, with the nearest pixel's value.

    Args:
        mask: [H, W] bool, of the picture's size.
    Returns: [height, width] bool.
    """
    resized_width, resized_height, left, top = _placement(mask.shape[1], mask.shape[0], width, height)
    levels = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None, None]
    resized = F.interpolate(levels, (resized_height, resized_width), mode="nearest")[0, 0] > 0
    return resized[top : top + height, left : left + width]


def _placement(source_width: int, source_height: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Size after scaling, and the left and top edge of the part that is kept."""
    scale = max(height / source_height, width / source_width)
    resized_width, resized_height = math.ceil(scale * source_width), math.ceil(scale * source_height)
    if resized_width * resized_height > MAX_RESIZED_PIXELS:
        raise InputError(
            f"A picture of {source_width}x{source_height} is too narrow for a video of {width}x{height}: "
            "hardly anything of it would be seen. Crop it nearer to the video's shape first."
        )
    return resized_width, resized_height, round((resized_width - width) / 2), round((resized_height - height) / 2)


def _open(path: Path, behind: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image), behind, path)
    except FileNotFoundError:
        raise InputError(f"There is no picture {path}.") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{path} is not a picture that can be read. Save it as PNG or JPEG.") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"The picture {path} is too large: {error}") from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"The picture {path} cannot be read: {error}. Save it anew as PNG or JPEG.") from None


def _to_rgb(image: Image.Image, behind: str, path: Path) -> Image.Image:
    if image.mode in SIXTEEN_BIT:
        levels = np.asarray(image).astype(np.float64)
        if levels.min() < 0 or levels.max() > 65535:
            raise InputError(f"The picture {path} has values beyond 16 bit. Save it with 8 or 16 bits a channel.")
        return Image.fromarray(np.round(levels / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InputError(f"The picture {path} holds floating point values. Save it with 8 or 16 bits a channel.")
    if {"A", "a"} & set(image.getbands()) or "transparency" in image.info:
        backdrop = Image.new("RGBA", image.size, behind)
        return Image.alpha_composite(backdrop, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def to_images(pixels: Tensor, normalization: str = "default") -> Tensor:
    """Decoded pixels of about -1..1 as pictures of 0..1.

    Args: normalization: default, clamp; minmax, stretch lowest to highest; none, as they are (-1..1).
    """
    if normalization == "none":
        return pixels
    if normalization == "minmax":
        low, high = pixels.amin(), pixels.amax()
        return (pixels - low) / (high - low).clamp_min(1e-6)
    return (pixels / 2 + 0.5).clamp(0, 1)
