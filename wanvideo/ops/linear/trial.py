"""Products that a build of PyTorch may lack on a device, or get wrong: tried before they are used."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger("wanvideo")


def agrees(name: str, multiply: Callable[[], Tensor], exact: Tensor, largest_error: float) -> bool:
    """Whether `multiply` works here and gives `exact`; where it does not, that is said.

    Args: name: of the format. exact: of the same numbers, in float32. largest_error: as a share of `exact`.
    """
    try:
        error = float((multiply().float() - exact).norm() / exact.norm())
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, AttributeError, NotImplementedError) as failure:
        reason = str(failure).partition("\n")[0]
        logger.info("Products in %s do not work here (%s); weights are widened.", name, reason)
        return False
    if not error <= largest_error:
        logger.warning("Products in %s are off by %.0f %% here; weights are widened instead.", name, 100 * error)
    return error <= largest_error
