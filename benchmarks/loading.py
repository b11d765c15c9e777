"""Loading the full-size set from page cache: how long it takes, and how much anonymous host memory it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from measure import GIB, Report

from wanvideo.checkpoints.dialects import Kind
from wanvideo.synthetic.weights import SIZES, shapes_of

BLOCK = 2**25  # random weights that are written again and again; drawing 19 billion would take minutes
CASES = (("fp8", "cuda"), ("fp8", "cpu"))
LOAD = """
import sys, threading, time, torch
from wanvideo import load_transformer
peak, done = 0, threading.Event()
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024
def watch():
    global peak
    while not done.wait(0.02):
        peak = max(peak, anonymous())
base, adapter, quantize, device = sys.argv[1:]
if device == "cuda":
    torch.zeros(1, device=device)
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
model = load_transformer(base, adapter, quantize=quantize or None, device=device)
if device == "cuda":
    torch.cuda.synchronize()
seconds = time.perf_counter() - start
done.set()
tensors = [*model.parameters(), *model.buffers()]
size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
print(seconds, max(peak, anonymous()), before, size)
"""


def write_set(folder: Path) -> tuple[Path, Path, int]:
    """Transformer and adapter in bf16 with repeating random weights, and their bytes together."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    data, total, paths = memoryview(block.view(torch.uint8).numpy()), 0, []
    for kind in (Kind.TRANSFORMER, Kind.ADAPTER):
        path = folder / f"{kind.name.lower()}.safetensors"
        total += _write(path, shapes_of(kind, SIZES["full"]), data)
        paths.append(path)
    return paths[0], paths[1], total


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]], data: memoryview) -> int:
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = offset
        while left:
            left -= file.write(data[: min(left, len(data))])
    return offset


def loading(report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="wanvideo-loading-") as folder:
        base, adapter, total = write_set(Path(folder))
        for quantize, device in CASES:
            command = [sys.executable, "-c", LOAD, str(base), str(adapter), quantize or "", device]
            root = Path(__file__).resolve().parents[1]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True)
            name = f"{total / 1e9:.1f} GB bf16 as {quantize or 'bf16'} to {device}"
            if done.returncode:
                report.add("loading", name, float("nan"), "s", f"FAILED: {done.stderr[-300:]}")
                continue
            seconds, peak, before, size = map(float, done.stdout.split()[-4:])
            note = f"model {size / GIB:.1f} GiB, RssAnon {before / GIB:.1f} GiB before"
            report.add("loading", name, seconds, "s", note)
            report.add("loading", f"{name}, peak RssAnon", peak / GIB, "GiB")
