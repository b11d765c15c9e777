"""One ComfyUI server with this pack installed, and one browser, for all tests of the nodes.

What is missing on the machine (ComfyUI, Chromium, a download) is an error in CI and a skip that says why elsewhere.
"""

from __future__ import annotations

import contextlib

import pytest
from support.comfy_client import ComfyClient
from support.comfy_page import ComfyPage, launch_chromium
from support.comfy_server import PACK_NAME, REPOSITORY, ComfyServer, Unavailable, find_comfyui, in_ci, install_pack


@contextlib.contextmanager
def required():
    try:
        yield
    except Unavailable as reason:
        if in_ci():
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def comfyui():
    with required():
        return find_comfyui()


@pytest.fixture(scope="session")
def prepare_models():
    """Called with the server's models folder before the server starts; replace it to put model files there."""
    return lambda models: None


@pytest.fixture(scope="session")
def server(comfyui, prepare_models, tmp_path_factory):
    server = ComfyServer(comfyui, tmp_path_factory.mktemp("comfyui"))
    install_pack(REPOSITORY, server.custom_nodes, PACK_NAME)
    prepare_models(server.models)
    with server:
        assert not server.import_errors(), "\n".join(server.import_errors().values())
        yield server


@pytest.fixture
def client(server):
    return ComfyClient(server.url)


@pytest.fixture(scope="module")
def browser():
    # Not for the session: while Playwright runs, no other test of this process can start an event loop.
    with contextlib.ExitStack() as stack:
        with required():
            browser = stack.enter_context(launch_chromium())
        yield browser


@pytest.fixture
def open_page(browser):
    """open_page(server, nodes2=..., locale=...) -> ComfyPage, closed at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda server, **options: stack.enter_context(ComfyPage(browser, server.url, **options))
