"""One ComfyUI server with this pack installed, and one browser, for all tests of the nodes.

What is missing on the machine (ComfyUI, Chromium, a download) is an error in CI and a skip that says why elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from support.comfy_client import ComfyClient
from support.comfy_models import required, start_with_pack
from support.comfy_page import ComfyPage, launch_chromium
from support.comfy_server import find_comfyui


@pytest.fixture(scope="session")
def comfyui():
    with required():
        return find_comfyui()


@pytest.fixture(scope="session")
def server(comfyui, tmp_path_factory):
    with start_with_pack(comfyui, tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture(autouse=True)
def english(request):
    """A page that was opened in another language leaves that choice with the server."""
    if {"server", "client"} & set(request.fixturenames):
        settings = request.getfixturevalue("server").base / "user" / "default" / "comfy.settings.json"
        if settings.is_file():
            known = json.loads(settings.read_text(encoding="utf-8"))
            known.pop("Comfy.Locale", None)
            settings.write_text(json.dumps(known), encoding="utf-8")


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


@pytest.fixture
def pictures(tmp_path):
    """Where screenshots go: the folder that WANVIDEO_SCREENSHOTS names, for looking at, else a temporary one."""
    folder = Path(os.environ.get("WANVIDEO_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
