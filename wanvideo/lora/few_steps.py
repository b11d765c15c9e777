"""LoRAs that were distilled to a few fixed noise levels, told by the names they are published under."""

from __future__ import annotations

import re
from pathlib import PurePath

MOST_STEPS = 8  # a model that takes more was not distilled to fixed levels
_COUNTED = re.compile(r"(?<![0-9])([1-9])[-_ ]?steps?(?![a-z])")
# FusionX is none of them: it runs at any number of steps, and its makers' eight are those of the usual schedule.
_FAMILIES = {"lightx2v": 4, "cfg_step_distill": 4, "stepdistill": 4, "lightning": 4, "rcm": 4}


def few_steps_of(name: str) -> int | None:
    """The number of steps that a LoRA of this file name (or path) was distilled to; None where the name says none."""
    stem = PurePath(name.replace("\\", "/")).name.lower()
    if (counted := _COUNTED.search(stem)) and int(counted[1]) <= MOST_STEPS:
        return int(counted[1])
    found = (steps for family, steps in _FAMILIES.items() if re.search(rf"(?<![a-z]){family}(?![a-z])", stem))
    return next(found, None)
