"""Color matching: every frame takes on the colors of the reference picture, against drift over many windows.

Legend: F frames, P pixels of a frame, Q pixels of the reference, channels last. Work is done in float64 on the frames'
own device, a few frames at a time, so that the peak does not depend on the length of a window.
"""

from __future__ import annotations

import difflib
import math

import torch
from torch import Tensor

from ..errors import InputError
from ..request import COLOR_METHODS

PIXELS_AT_ONCE = 2**21
DARKEST = 1 / 255
BRIGHTEST_LOG = 2.0  # reinhard: 100 times white, where a nearly flat frame would otherwise overflow
FLAT_VARIANCE = 1e-10  # a standard deviation of 1/800 of an 8-bit step, in -1..1
FLAT_LAB = 2e-3  # a standard deviation in CIE Lab that no 8-bit picture with any variation has
FLAT_LOG = 1e-6
TIE_STEPS = 2.0**30

RGB_TO_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
LMS_TO_RGB = ((4.4679, -3.5873, 0.1193), (-1.2186, 2.3809, -0.1624), (0.0497, -0.2439, 1.2045))
LMS_AXES = ((3**-0.5,) * 3, (6**-0.5, 6**-0.5, -2 * 6**-0.5), (2**-0.5, -(2**-0.5), 0.0))
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE_D65 = (0.95047, 1.0, 1.08883)


def match_color(frames: Tensor, reference: Tensor, method: str, strength: float = 1.0) -> Tensor:
    """Move the colors of every frame towards those of the reference picture.

    Args:
        frames: [F, H, W, 3] in -1..1, floating point; values beyond are kept, only `lab` clips its own result.
        reference: [h, w, 3] in -1..1, of any size.
        method: one of request.COLOR_METHODS; mvgd means mkl and hm-mvgd-hm means hm-mkl-hm.
        strength: 0 (nothing) to 1 (all of it); a blend between the frames and the matched ones.
    Returns: [F, H, W, 3] of the frames' dtype and device; `disabled` and strength 0 return the frames themselves.
    Raises: InputError for an unknown method, strength or shape.
    Source: color-matcher 0.6; `lab`: InfiniteTalk with scikit-image. Unlike there, gray and flat frames and values at
        or below black give finite results with every method; `reinhard` takes all that is darker than 1/255 for that.
    """
    _check(frames, reference, method, strength)
    if method == "disabled" or strength == 0 or not len(frames):
        return frames
    target = reference.to(frames.device, torch.float64).flatten(0, 1)
    at_once = max(1, PIXELS_AT_ONCE // (frames.shape[1] * frames.shape[2]))
    matched = torch.empty_like(frames)
    for source, result in zip(frames.split(at_once), matched.split(at_once), strict=True):
        pixels = source.to(torch.float64).flatten(1, 2)
        blended = torch.lerp(pixels, _match(pixels, target, method), float(strength))
        result.copy_(blended.view(source.shape))
    return matched


def _check(frames: Tensor, reference: Tensor, method: str, strength: float) -> None:
    if method not in COLOR_METHODS:
        close = difflib.get_close_matches(str(method), COLOR_METHODS, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"color_match {method!r} is not offered.{hint} Use one of {', '.join(COLOR_METHODS)}.")
    if not 0 <= strength <= 1:
        raise InputError(f"color_strength {strength!r} is not usable. Give a number from 0 to 1.")
    if frames.ndim != 4 or frames.shape[-1] != 3 or reference.ndim != 3 or reference.shape[-1] != 3:
        raise InputError(
            f"Colors cannot be matched between frames {list(frames.shape)} and a reference {list(reference.shape)}. "
            "Give [F, H, W, 3] and [H, W, 3]."
        )


def _match(pixels: Tensor, target: Tensor, method: str) -> Tensor:
    """[F, P, 3] and [Q, 3], both in -1..1 -> [F, P, 3]."""
    if method in ("mkl", "mvgd"):
        return _match_covariance(pixels, target)
    if method == "hm":
        return _match_histogram(pixels, target)
    if method in ("hm-mkl-hm", "hm-mvgd-hm"):
        linear = _match_covariance(_match_histogram(pixels, target), target)
        # Equal colors must stay equal, or rounding would rank them and the histogram spread them apart.
        return _match_histogram((linear * TIE_STEPS).round() / TIE_STEPS, target)
    transfer = _match_log_opponents if method == "reinhard" else _match_lab
    return transfer(pixels * 0.5 + 0.5, target * 0.5 + 0.5) * 2 - 1


def _match_histogram(pixels: Tensor, target: Tensor) -> Tensor:
    """Each channel by itself: a value moves to the one with the same share of pixels at or below it.

    Between two values of the target the shares are interpolated. Shares are compared as whole numbers, counts times
    the other picture's size, so no rounding decides which two.
    """
    num_pixels, num_target = pixels.shape[1], target.shape[0]
    source = pixels.movedim(-1, 0).contiguous()
    ordered = target.T.contiguous().sort(-1).values
    at_most = torch.searchsorted(ordered, ordered, right=True)
    below = torch.searchsorted(ordered, ordered)
    previous = ordered.gather(-1, (below - 1).clamp_min(0))

    rank = torch.searchsorted(source.sort(-1).values, source, right=True).flatten(1)
    share = rank * num_target
    position = ((share + num_pixels - 1).div(num_pixels, rounding_mode="floor") - 1).clamp_min(0)
    low = below.gather(-1, position)
    fraction = (share - low * num_pixels) / ((at_most.gather(-1, position) - low) * num_pixels)
    upper = ordered.gather(-1, position)
    matched = torch.where(low > 0, torch.lerp(previous.gather(-1, position), upper, fraction.double()), upper)
    return matched.view(source.shape).movedim(0, -1)


def _match_covariance(pixels: Tensor, target: Tensor) -> Tensor:
    """The linear map between two Gaussians that moves colors least (Monge-Kantorovich)."""
    mean, covariance = _moments(pixels)
    target_mean, target_covariance = _moments(target[None])
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(FLAT_VARIANCE)  # the same in both roots: gray takes on colors that go with the lightness
    root = vectors * values.sqrt()[:, None]
    middle = root.mT @ target_covariance @ root
    middle_values, middle_vectors = torch.linalg.eigh(middle)
    middle_root = (middle_vectors * middle_values.clamp_min(0).sqrt()[:, None]) @ middle_vectors.mT
    outer = vectors * values.rsqrt()[:, None]
    moved: Tensor = (pixels - mean) @ (outer @ middle_root @ outer.mT) + target_mean
    return moved


def _moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Means [F, 1, 3] and sample covariances [F, 3, 3] of [F, P, 3]."""
    mean = pixels.mean(1, keepdim=True)
    num_pixels = pixels.shape[1]
    # Many short products instead of one that is long and only 3 x 3 wide: 60 times faster on a GPU.
    blocks = (pixels - mean).unflatten(1, (math.gcd(num_pixels, 1024), -1))
    return mean, (blocks.mT @ blocks).sum(1) / max(1, num_pixels - 1)


def _match_log_opponents(pixels: Tensor, target: Tensor) -> Tensor:
    """Means and deviations in the logarithmic opponent space of Reinhard et al., for values in 0..1."""

    def opponents(rgb: Tensor) -> Tensor:
        return (rgb.clamp_min(DARKEST) @ _matrix(RGB_TO_LMS, rgb).T).log10() @ _matrix(LMS_AXES, rgb).T

    moved = _match_deviations(opponents(pixels), opponents(target), FLAT_LOG)
    lms = 10 ** (moved @ _matrix(LMS_AXES, moved)).clamp_max(BRIGHTEST_LOG)
    return lms @ _matrix(LMS_TO_RGB, lms).T


def _match_lab(pixels: Tensor, target: Tensor) -> Tensor:
    """Means and deviations in CIE Lab, for values in 0..1; the result is clipped to 0..1."""
    return _lab_to_rgb(_match_deviations(rgb_to_lab(pixels), rgb_to_lab(target), FLAT_LAB)).clamp(0, 1)


def _match_deviations(pixels: Tensor, target: Tensor, flat: float) -> Tensor:
    """Give every channel the target's mean and deviation; one that does not vary takes the mean alone."""
    deviation = pixels.std(1, correction=0, keepdim=True)
    ratio = torch.where(deviation > flat, target.std(0, correction=0) / deviation.clamp_min(flat), 0.0)
    return (pixels - pixels.mean(1, keepdim=True)) * ratio + target.mean(0)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """CIE Lab (white point D65) of sRGB values [..., 3] in 0..1."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp_min(0) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ (_matrix(RGB_TO_XYZ, rgb).T / rgb.new_tensor(WHITE_D65))
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp_min(0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), -1)


def _lab_to_rgb(lab: Tensor) -> Tensor:
    lightness, a, b = lab.unbind(-1)
    y = (lightness + 16) / 116
    roots = torch.stack((y + a / 500, y, (y - b / 200).clamp_min(0)), -1)
    xyz = torch.where(roots > 0.2068966, roots**3, (roots - 16 / 116) / 7.787) * lab.new_tensor(WHITE_D65)
    linear = xyz @ torch.linalg.inv(_matrix(RGB_TO_XYZ, lab)).T
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)


def _matrix(rows: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    return like.new_tensor(rows)
