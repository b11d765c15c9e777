"""Wrong input of every kind, without end: each case is answered with a TalkError, or used.

`python tests/fuzz --minutes N` runs all families; one is a module here with
`cases(random, folder) -> Iterator[(name, call)]`: endless, the same for the same seed, its files in `folder`. A call
returns where the input can be used and raises TalkError where it cannot; anything else is a violation.
"""

from pathlib import Path

HERE = Path(__file__).parent
FAMILIES = tuple(name for name in ("requests", "media", "models", "widgets") if (HERE / f"{name}.py").exists())
