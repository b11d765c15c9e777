"""Packages that some tests need: absent on a user's machine they are a reason to skip, in CI an error."""

import importlib.util

import pytest
from support.comfy_server import in_ci


def need(module, package):
    """Skip the test file, or the test, without `module`, which `pip install package` brings."""
    if importlib.util.find_spec(module) is None:
        unavailable(f"{package} is not installed: pip install {package}")


def unavailable(why):
    """Skip with a reason; where everything should be there, fail."""
    if in_ci():
        raise RuntimeError(why)
    pytest.skip(why, allow_module_level=True)
