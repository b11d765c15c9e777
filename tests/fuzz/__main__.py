"""`python tests/fuzz`: all families for some minutes or some cases each; fails when a case breaks the promise.

Not `python -m tests.fuzz`: packages that are installed may bring a `tests` of their own (color-matcher does), which
Python prefers to a folder without `__init__.py`.
"""

import argparse
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(TESTS.parent), str(TESTS)]  # as pytest has it; the folder of the families would hide `requests`

from fuzz import FAMILIES, child, harness  # noqa: E402


def main():
    parser = argparse.ArgumentParser("python tests/fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="in all; without it and --cases: 5")
    parser.add_argument("--cases", type=int, help="of each family")
    parser.add_argument("--family", choices=FAMILIES, help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="index of the first case, to run one again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        return child.main(flags.child, flags.seed, flags.start, flags.cases, flags.folder)
    families = (flags.family,) if flags.family else FAMILIES
    minutes = 5.0 if flags.minutes is None and flags.cases is None else flags.minutes
    end, tallies = float("inf") if minutes is None else time.monotonic() + 60 * minutes, []
    for number, family in enumerate(families):
        seconds = (end - time.monotonic()) / (len(families) - number)
        tallies.append(harness.run_family(family, flags.seed, flags.cases or 10**9, seconds, flags.start))
        print(harness.table(tallies[-1:]), flush=True)
    print(harness.table(tallies))
    return any(tally.violations for tally in tallies)


if __name__ == "__main__":
    raise SystemExit(main())
