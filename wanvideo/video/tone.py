"""HDR and wide-gamut video brought to what SDR screens show: Rec. 709, 8 bit.

HLG and PQ of BT.2100 become light, relative to an SDR white of 100 cd/m2; what SDR has is kept as it is, and only
highlights are compressed. Legend: H W rows and columns.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

TRANSFER_PQ, TRANSFER_HLG = 16, 18  # ISO/IEC 23091-2
PRIMARIES_BT709, PRIMARIES_BT2020 = 1, 9
FULL_SCALE = 65280.0  # of white, as FFmpeg writes 16 bits: 255 * 256
WHITE_NITS = 100.0
HLG_PEAK, PQ_PEAK = 10.0, 100.0  # times white: screens of 1000 and 10000 cd/m2
HLG_SYSTEM_GAMMA = 1.2
SDR_GAMMA = 2.4  # BT.1886
KNEE = 0.6  # of white: up to here nothing is compressed
BAND_PIXELS = 2**20  # pixels that are computed at once
BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)  # BT.2087


class Range(Enum):
    """How a video's colors are stored."""

    SDR = "SDR"
    WIDE = "BT.2020"
    HLG = "HLG"
    PQ = "PQ"


def range_of(transfer: int, primaries: int) -> Range:
    """Args: transfer, primaries: the numbers of ISO/IEC 23091-2 that FFmpeg gives for a frame."""
    if transfer == TRANSFER_PQ:
        return Range.PQ
    if transfer == TRANSFER_HLG:
        return Range.HLG
    return Range.WIDE if primaries == PRIMARIES_BT2020 else Range.SDR


def to_sdr(codes: np.ndarray, kind: Range, *, is_wide: bool = True) -> np.ndarray:
    """A picture as an SDR screen shows it.

    Args:
        codes: [H, W, 3] uint16, RGB as coded, white at FULL_SCALE. kind: how, other than SDR. is_wide: with the
        primaries of BT.2020, else of Rec. 709.
    Returns: [H, W, 3] uint8, Rec. 709.
    Source: BT.2100 for HLG and PQ. HLG's system gamma is applied to each channel, as SDR's own is and FFmpeg's zscale
        does, so that SDR put into HLG comes back.
    """
    light = _light_of_codes(kind)
    pixels, rows = np.empty(codes.shape, np.uint8), max(1, BAND_PIXELS // codes.shape[1])
    for top in range(0, len(codes), rows):
        pixels[top : top + rows] = _displayed(light[codes[top : top + rows]], kind, is_wide)
    return pixels


def _displayed(light: np.ndarray, kind: Range, is_wide: bool) -> np.ndarray:
    """Light [h, W, 3], times white, as 8 bits."""
    if is_wide:
        light = light @ BT2020_TO_BT709.T
    light = np.maximum(light, 0)  # colors outside Rec. 709 go to its edge
    if kind in (Range.HLG, Range.PQ):
        light *= _compression(light.max(-1, keepdims=True), HLG_PEAK if kind is Range.HLG else PQ_PEAK)
    levels: np.ndarray = np.round(255 * np.minimum(light, 1) ** np.float32(1 / SDR_GAMMA))
    return levels.astype(np.uint8)


def _compression(brightest: np.ndarray, peak: float) -> np.ndarray:
    """Factor on a pixel's light by its brightest channel: 1 up to the knee, then less, and `peak` becomes white."""
    above = np.maximum(brightest - KNEE, 0) / (1 - KNEE)
    most = (peak - KNEE) / (1 - KNEE)
    squeezed = above * (1 + above / most**2) / (1 + above)
    return np.where(above > 0, (KNEE + (1 - KNEE) * squeezed) / np.maximum(brightest, KNEE), 1)


def _light_of_codes(kind: Range) -> np.ndarray:
    """Light, times white, of each 16-bit code: float32 [65536]."""
    signal = np.minimum(np.arange(65536) / FULL_SCALE, 1.0)
    return {Range.PQ: _pq, Range.HLG: _hlg, Range.WIDE: _sdr}[kind](signal).astype(np.float32)


def _sdr(signal: np.ndarray) -> np.ndarray:
    light: np.ndarray = signal**SDR_GAMMA
    return light


def _pq(signal: np.ndarray) -> np.ndarray:
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = signal ** (1 / m2)
    return 10000 / WHITE_NITS * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def _hlg(signal: np.ndarray) -> np.ndarray:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return HLG_PEAK * scene**HLG_SYSTEM_GAMMA
