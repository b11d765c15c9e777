"""SyncNet: how far the sound of a fifth of a second is from the mouth that is seen in it.

Legend: F frames at 25 fps, M rows of MFCCs at 100 Hz, C channels, D numbers of a vector. Module names are those of the
published file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 224  # pixels of a face
SPAN = 5  # frames that are compared at once
ROWS_PER_FRAME = 4  # of MFCCs
CONVS = (0, 4, 8, 11, 14, 18)  # places of the convolutions in both branches
BATCH = 16  # spans at once, whose first layer takes some 150 MB


@dataclass(frozen=True)
class SyncNetConfig:
    """sound, mouth: channels of the six convolutions of each branch. hidden, out: of the two layers behind them."""

    sound: tuple[int, ...]
    mouth: tuple[int, ...]
    hidden: int
    out: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> SyncNetConfig:
        """Args: shapes of the tensors by their names, which have been checked to agree."""
        sound, mouth = (
            tuple(shapes[f"{name}.{place}.weight"][0] for place in CONVS) for name in ("netcnnaud", "netcnnlip")
        )
        out, hidden = shapes["netfclip.3.weight"]
        return cls(sound, mouth, hidden, out)


class RunningNorm(nn.Module):
    """Batch normalization by the means and variances of training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.get_buffer("running_mean"), self.get_buffer("running_var"), self.weight, self.bias)


class SyncNet(nn.Module):
    """Sounds and mouths that belong together get vectors [D] that are near each other.

    Source: Chung and Zisserman, "Out of time: automated lip sync in the wild" (2016), with the sizes of the published
    syncnet_v2.model.
    """

    def __init__(self, config: SyncNetConfig) -> None:
        super().__init__()
        self.netcnnaud = _sound_branch(config.sound)
        self.netcnnlip = _mouth_branch(config.mouth)
        self.netfcaud = _head(config.sound[-1], config.hidden, config.out)
        self.netfclip = _head(config.mouth[-1], config.hidden, config.out)

    @torch.no_grad()
    def mouths(self, faces: Tensor) -> Tensor:
        """Each five frames that follow one another: faces [F, 224, 224, 3] uint8 RGB -> [F - 4, D], F >= 5."""
        pixels = faces.flip(3).permute(3, 0, 1, 2)[None].float()  # it was trained with BGR
        # Only the first layer looks along time, so that frames which spans share are read once.
        vectors: Tensor = self.netfclip(self.netcnnlip(pixels)[0, :, :, 0, 0].T)
        return vectors

    @torch.no_grad()
    def sounds(self, mfccs: Tensor) -> Tensor:
        """The same 200 ms of sound: MFCCs [M, 13] float32 -> [(M - 20) // 4 + 1, D], M >= 20."""
        spans = mfccs.unfold(0, SPAN * ROWS_PER_FRAME, ROWS_PER_FRAME)[:, None]
        return torch.cat([self.netfcaud(self.netcnnaud(part).flatten(1)) for part in spans.split(BATCH)])


def _sound_branch(widths: tuple[int, ...]) -> nn.Sequential:
    """[spans, 1, 13, 20] -> [spans, C, 1, 1]."""
    a, b, c, d, e, f = widths
    return nn.Sequential(
        *_normalized(nn.Conv2d(1, a, 3, padding=1)), nn.Identity(),
        *_normalized(nn.Conv2d(a, b, 3, padding=1)), nn.MaxPool2d(3, (1, 2)),
        *_normalized(nn.Conv2d(b, c, 3, padding=1)),
        *_normalized(nn.Conv2d(c, d, 3, padding=1)),
        *_normalized(nn.Conv2d(d, e, 3, padding=1)), nn.MaxPool2d(3, 2),
        *_normalized(nn.Conv2d(e, f, (5, 4))),
    )  # fmt: skip


def _mouth_branch(widths: tuple[int, ...]) -> nn.Sequential:
    """[1, 3, F, 224, 224] -> [1, C, F - 4, 1, 1]."""
    a, b, c, d, e, f = widths
    return nn.Sequential(
        *_normalized(nn.Conv3d(3, a, (SPAN, 7, 7), (1, 2, 2))), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
        *_normalized(nn.Conv3d(a, b, (1, 5, 5), (1, 2, 2), (0, 1, 1))), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        *_normalized(nn.Conv3d(b, c, (1, 3, 3), padding=(0, 1, 1))),
        *_normalized(nn.Conv3d(c, d, (1, 3, 3), padding=(0, 1, 1))),
        *_normalized(nn.Conv3d(d, e, (1, 3, 3), padding=(0, 1, 1))), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
        *_normalized(nn.Conv3d(e, f, (1, 6, 6))),
    )  # fmt: skip


def _normalized(conv: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, ...]:
    return conv, RunningNorm(conv.out_channels), nn.ReLU(inplace=True)


def _head(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), RunningNorm(hidden), nn.ReLU(), nn.Linear(hidden, out))
