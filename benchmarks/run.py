"""Measures the engine on this machine's GPU with random full-size weights, checks what it measures, and prints a table.

    python benchmarks/run.py [--sections ceilings,forward_480p,...] [--out FILE] [--repeats 5] [--peer FILE]
                             [--against benchmarks/baseline.json] [--record benchmarks/baseline.json]

Every section also compares its result with a plain one, so that a fast wrong answer shows. Exit codes: 1 where a
section failed, or is slower or larger than recorded (see baseline.py); 0 also for a card of which nothing is recorded,
which is said.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from functools import partial
from pathlib import Path

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as the command line does

import torch  # noqa: E402

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import baseline  # noqa: E402
import kernels  # noqa: E402
import loading  # noqa: E402
import transformer  # noqa: E402
import windows  # noqa: E402
from measure import Report, free, read_peer  # noqa: E402

EXACT, FAST = (("bf16", "auto"),), ("fp8", transformer.FAST)
SECTIONS = {
    "ceilings": kernels.ceilings,
    "kernels": kernels.kernels,
    "linears": kernels.linears,
    "attention": kernels.attention_backends,
    "block": transformer.block,
    "forward_480p": partial(transformer.forward, size="480p", cases=(*EXACT, ("fp8", "auto"), FAST)),
    "forward_720p": partial(transformer.forward, size="720p", cases=(FAST,)),
    "forward_720p_bf16": partial(transformer.forward, size="720p", cases=EXACT),
    "formats": transformer.formats,
    "streaming_fp8": partial(transformer.streaming, storage="fp8", mode=transformer.FAST),
    "streaming_bf16": partial(transformer.streaming, storage="bf16", mode="auto"),
    "compiled": transformer.compiled,
    "profile": transformer.profile,
    "vae": windows.vae,
    "window": windows.window,
    "cards_fp8": partial(windows.cards, storage="fp8"),
    "cards_bf16": partial(windows.cards, storage="bf16"),
    "loading": loading.loading,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which parts to run, in this order")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file too")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs; the median counts")
    parser.add_argument("--peer", type=Path, help="a file of --out, whose values are printed beside these")
    baseline.add_flags(parser)
    flags = parser.parse_args()
    runs = baseline.check_flags(parser, flags)
    unknown = set(flags.sections.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if not torch.cuda.is_available():
        parser.error("a CUDA GPU is needed")
    report = Report(flags.repeats, read_peer(flags.peer), flags.out)
    cudnn = torch.backends.cudnn.version()
    now = time.strftime("%Y-%m-%d %H:%M")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {cudnn}, {now}", flush=True)
    failed = []
    for section in flags.sections.split(","):
        start = time.perf_counter()
        try:
            SECTIONS[section](report)
        except Exception:  # noqa: BLE001 - the other sections are still worth measuring
            traceback.print_exc()
            failed.append(section)
        free()
        print(f"-- {section}: {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        print(f"Failed: {', '.join(failed)}")
    return max(baseline.finish(flags, report.run, runs), int(bool(failed)))


if __name__ == "__main__":
    sys.exit(main())
