"""How far two tensors are apart, and tensors to try it with."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(*shape, seed=0):
    """Standard normal float32 on the device of these tests, the same for the same shape and seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + 10_000 * seed)).to(DEVICE)


def relative_error(ours, expected):
    """Of the whole: 0.01 is one percent of its length."""
    return float((ours.float() - expected.float()).norm() / expected.float().norm())


def psnr(ours, expected):
    """Of pictures in -1..1, in decibels."""
    return float(10 * torch.log10(4 / (ours - expected).square().mean().clamp_min(1e-12)))
