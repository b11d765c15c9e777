"""What holds for every test: how many threads it may use, and where its package begins."""

import os
from pathlib import Path

import pytest

THREADS = "OMP_NUM_THREADS"
# A thread more than there are free cores makes tiny models ten times slower, so one is enough unless you say otherwise;
# set before torch is imported, and for the processes that tests start.
for _name in (THREADS, "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(int(os.environ[THREADS]))
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # the kernels' own tests then run on the CPU


class _Root:
    """The repository is a package of ComfyUI's and not one of the tests': pytest must not import its `__init__.py`."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Dir | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Root())  # hooks of a conftest.py are not asked about the folders above it
