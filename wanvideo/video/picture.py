"""Still pictures: read, and fit to the size of the video.

Legend: H W rows and columns; pictures are uint8 [H, W, 3] RGB, masks are bool [H, W], as numpy arrays.
"""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..audio.container import refuse_by_head
from ..errors import InputError
from ..untrusted import answered, regular_file
from .jpeg import decode_jpeg

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA", "JPEG2000", "QOI")
MAX_PIXELS = 2**26  # of a picture: 67 million
LIMIT = f"At most {MAX_PIXELS / 1e6:.0f} million are read: scale it down."
BAND_PIXELS = 2**20  # that are converted at once
ORIENTATION = 0x0112  # in EXIF
WHAT = "a picture"
MAX_RESIZED_PIXELS = 2**28
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def load_picture(path: str | Path) -> np.ndarray:
    """A picture as it is meant to be seen: turned as its EXIF says, transparent parts on white.

    Args:
        path: PNG, JPEG, WebP, AVIF, TIFF, BMP, GIF, PPM, TGA, JPEG 2000, and HEIF where pillow-heif is registered, of
            at most 67 million pixels; of several pages or frames the first; 16 bit is brought to 8, CMYK to RGB.
    Returns: [H, W, 3] uint8.
    Raises: InputError when the file is missing, damaged or not a picture.
    """
    return _load(Path(path), "white")


def load_channels(path: str | Path) -> np.ndarray:
    """A picture with the colors that its transparent parts have, as ComfyUI's LoadImage gives both, turned upright.

    Returns: [H, W, 4] uint8, red, green, blue and opacity.
    Raises: InputError as `load_picture`.
    """
    with _opened(Path(path)) as image:
        colors = to_array(image, "", str(path), Path(path).expanduser())
        orientation = image.getexif().get(ORIENTATION, 1)
        opacity = np.asarray(image.convert("RGBA").getchannel("A"))
    return np.dstack((colors, _upright(opacity, orientation)))


def load_mask(path: str | Path) -> np.ndarray:
    """Where a mask picture is white (above half); transparent parts count as black.

    Returns: [H, W] bool.
    Raises: InputError when the file is missing, damaged, not a picture, or nowhere white.
    """
    levels = np.asarray(Image.fromarray(_load(Path(path), "black")).convert("L"))
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
    Raises: InputError for another shape, no picture at all, whole numbers, or values that are no numbers.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or not len(images):
        raise InputError(f"Pictures of shape {list(images.shape)} are not usable. Give [number, rows, columns, 3].")
    images = images[..., :3]
    check_levels(images)
    images = images.float()
    if tuple(images.shape[1:3]) == (height, width):
        return images.permute(0, 3, 1, 2) * 2 - 1
    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return torch.stack([fit(picture, width, height) for picture in levels])


def check_levels(images: Tensor) -> None:
    """Raises: InputError for pictures from memory that have no levels 0..1: whole numbers, or values that are none."""
    if not images.is_floating_point():
        raise InputError(f"Pictures of {images.dtype} are not usable. Give levels from 0 to 1, as float32.")
    if not torch.isfinite(images).all():
        raise InputError("The picture has values that are no numbers (NaN or infinite). Make it anew.")


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


def identify(path: Path, what: str = WHAT) -> Image.Image | None:
    """A picture of which nothing but the header is read; None for a file that is none.

    Args: what: the kind of file that is wanted, for messages.
    Raises: InputError when the file is missing, has too many pixels, or a damaged header.
    """
    file = regular_file(path, what)
    refuse_by_head(file, what)
    Image.init()
    with answered(str(path)), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is a lower one
        try:
            image = Image.open(_BoundedFile(file), formats=[name for name in FORMATS if name in Image.OPEN])
        except Image.UnidentifiedImageError:
            return None
        except Image.DecompressionBombError:
            raise InputError(f"The picture {path} has too many pixels. {LIMIT}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise InputError(f"The picture {path} has {width}x{height} pixels. {LIMIT}")
    return image


def read_no_other_kinds() -> None:
    """From now on Pillow opens in this process what is read here alone, whoever calls it: not EPS, of which it has
    Ghostscript run the program that the file is."""
    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]


class _BoundedFile(io.BufferedReader):
    """A file of which no more is asked than it has: Pillow believes the lengths of damaged chunks, up to 4 GB.

    It is closed with the last picture that reads from it.
    """

    def __init__(self, path: Path) -> None:
        self._size = path.stat().st_size
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))

    def __del__(self) -> None:
        self.close()


def to_array(image: Image.Image, behind: str, name: str, file: Path | None = None) -> np.ndarray:
    """The pixels [H, W, 3] uint8 of a picture, upright, its transparent parts on the color `behind`.

    Args: behind: empty for the colors that they have themselves. file: that it is in, if it may be a JPEG, which is
        read as ComfyUI does (see `jpeg`).
    Raises: InputError when it is damaged or holds values that cannot be shown; `name` says which picture.
    """
    with answered(f"The picture {name}"):
        image.load()  # refuses what is damaged, also where its pixels are decoded anew
        orientation = image.getexif().get(ORIENTATION, 1)
        pixels = None
        if file is not None and image.format in ("JPEG", "MPO") and image.mode == "RGB":
            pixels = decode_jpeg(file, *image.size)
        if pixels is None:
            pixels = _rgb_pixels(image, behind, name)
        return np.ascontiguousarray(_upright(pixels, orientation))


def _rgb_pixels(image: Image.Image, behind: str, name: str) -> np.ndarray:
    """[H, W, 3] uint8 of a loaded picture, converted band by band."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(_to_rgb(image.crop((0, top, width, bottom)), behind, name))
    return pixels


def _opened(path: Path) -> Image.Image:
    image = identify(path)
    if image is None:
        raise InputError(f"{path} is not a picture that can be read. Save it as PNG or JPEG.")
    return image


def _load(path: Path, behind: str) -> np.ndarray:
    with _opened(path) as image:
        return to_array(image, behind, str(path), path.expanduser())


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turned and mirrored as EXIF's orientation 1..8 says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def _to_rgb(image: Image.Image, behind: str, name: str) -> Image.Image:
    if image.mode in SIXTEEN_BIT:
        levels = np.asarray(image).astype(np.float64)
        if levels.min() < 0 or levels.max() > 65535:
            raise InputError(f"The picture {name} has values beyond 16 bit. Save it with 8 or 16 bits a channel.")
        return Image.fromarray(np.round(levels / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InputError(f"The picture {name} holds floating point values. Save it with 8 or 16 bits a channel.")
    if behind and ({"A", "a"} & set(image.getbands()) or "transparency" in image.info):
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
