"""What holds for every test, whoever starts it where: threads, processes, surroundings, and what is drawn at random."""

import os
import random
from pathlib import Path

import numpy as np
import pytest

THREADS = "OMP_NUM_THREADS"
MOST_PROCESSES = 4  # each takes up to 1.5 GB
# A thread more than there are free cores makes tiny models ten times slower, so one is enough unless you say otherwise;
# set before torch is imported, and for the processes that tests start.
for _name in (THREADS, "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

os.environ["WANVIDEO_CACHE"] = ""  # no test leaves prompts behind, or finds those of another
# Of a user's models, their mirror and the job of several processes that pytest may be started from, no test knows.
for _name in ("WANVIDEO_MODELS", "HF_ENDPOINT", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
    os.environ.pop(_name, None)
for _name in ("no_proxy", "NO_PROXY"):  # tests talk to servers on this machine
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1", "localhost")))

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(int(os.environ[THREADS]))
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # the kernels' own tests then run on the CPU


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test and its fixtures draw does not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def models():
    """A tiny transformer with its adapter and a tiny VAE, for the tests of one file."""
    from support.tiny import tiny_transformer, tiny_vae

    return tiny_transformer(), tiny_vae()


@pytest.fixture(scope="session")
def message_recorder():
    """Notes every TalkError that the library makes in this process."""
    from support.messages import Recorder

    with Recorder() as recorder:
        yield recorder


@pytest.fixture(autouse=True)
def messages_have_their_form(message_recorder):
    """What a test makes the library say is what a user may be told."""
    from support.messages import faults

    message_recorder.take()
    yield
    wrong = [(raised, found) for raised in message_recorder.take() if (found := faults(raised.message))]
    assert not wrong, "\n".join(f"{raised}: {', '.join(found)}" for raised, found in wrong)


@pytest.fixture(autouse=True)
def nothing_is_learned_from_the_machine(tmp_path_factory, monkeypatch):
    """Plans know no earlier runs but those of the test itself."""
    file = tmp_path_factory.getbasetemp() / "learned" / f"{os.urandom(6).hex()}.json"
    monkeypatch.setattr("wanvideo.memory.learned.learned_file", lambda: file)


class _Root:
    """The repository is a package of ComfyUI's and not one of the tests': pytest must not import its `__init__.py`."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Dir | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`pytest -n auto`: a process for each core that this one may use, but one alone where tests share a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if torch.cuda.is_available() or cores == 1 else min(cores, MOST_PROCESSES)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadgroup"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.path.is_relative_to(ROOT / "tests" / "comfyui"):
                item.add_marker(pytest.mark.xdist_group("comfyui"))  # one server and one browser for all of them


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Root())  # hooks of a conftest.py are not asked about the folders above it
