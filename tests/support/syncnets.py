"""SyncNets with drawn weights in the published naming, faces to look at, and a network that follows dark mouths."""

import math

import torch
import torch.nn.functional as F
from support import recipes

# Channels of the six convolutions of each branch, and of the two layers behind them.
PUBLISHED = (64, 192, 384, 256, 256, 512), (96, 256, 256, 256, 256, 512), 512, 1024
NARROW = (4, 6, 8, 8, 8, 12), (4, 6, 8, 8, 8, 12), 12, 16
PLACES = (0, 4, 8, 11, 14, 18)
KERNELS = {
    "netcnnaud": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3), (5, 4)),
    "netcnnlip": ((5, 7, 7), (1, 5, 5), (1, 3, 3), (1, 3, 3), (1, 3, 3), (1, 6, 6)),
}


def shapes(sizes=NARROW):
    """Key -> shape, without the counters of newer torches."""
    sound, mouth, hidden, out = sizes
    found = {}
    for name, widths, before in (("netcnnaud", sound, 1), ("netcnnlip", mouth, 3)):
        for place, width, kernel in zip(PLACES, widths, KERNELS[name], strict=True):
            found[f"{name}.{place}.weight"], before = (width, before, *kernel), width
            found |= {f"{name}.{place}.bias": (width,)} | _norm(f"{name}.{place + 1}", width)
    for name, widths in (("netfcaud", sound), ("netfclip", mouth)):
        found |= {f"{name}.0.weight": (hidden, widths[-1]), f"{name}.0.bias": (hidden,)} | _norm(f"{name}.1", hidden)
        found |= {f"{name}.3.weight": (out, hidden), f"{name}.3.bias": (out,)}
    return found


def _norm(name, width):
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def state_dict(seed, sizes=NARROW):
    """Weights ~ N(0, 2 / fan_in), of the first and last layers so that distances are about 10, as published ones."""
    scales = {
        "netcnnlip.0.weight": 0.01,
        "netcnnaud.0.weight": 0.05,
        "netfcaud.3.weight": 0.3,
        "netfclip.3.weight": 0.3,
    }
    weights = {}
    for key, shape in shapes(sizes).items():
        if len(shape) > 1:
            weights[key] = recipes.tensor(key, shape, seed, scales.get(key, 1) * (2 / math.prod(shape[1:])) ** 0.5)
        elif key.endswith("running_var"):
            weights[key] = 0.5 + recipes.tensor(key, shape, seed).abs()
        else:
            weights[key] = recipes.tensor(key, shape, seed, 0.1, 1.0 if key.endswith("weight") else 0.0)
    return weights


def faces(seed, num_frames):
    """[F, 224, 224, 3] uint8: squares of 28 pixels that change from frame to frame."""
    squares = recipes.tensor("faces", (num_frames, 8, 8, 3), seed, 50, 128).clamp(0, 255).to(torch.uint8)
    return squares.repeat_interleave(28, 1).repeat_interleave(28, 2)


class DarkMouths:
    """Stands for a trained SyncNet: how wide a drawn mouth is, and how loud a sound, in each of five frames."""

    def mouths(self, faces):
        dark = (faces[..., 0] < 100).float().mean((1, 2))
        return (dark / 0.3 * 4).unfold(0, 5, 1)  # so much of a crop has a mouth that is wide open

    def sounds(self, mfccs):
        loud = F.avg_pool1d(mfccs[None, :, 0], 4, 4)[0].exp() ** 0.25
        return (loud / loud.max() * 4).unfold(0, 5, 1)
