"""A browser, and a server of the app with tiny models."""

import pytest
from support.app_page import MOST_BYTES, Gate
from support.comfy_page import launch_chromium
from support.comfy_server import Unavailable
from support.needed import unavailable
from support.studio import base, free_port

from wanvideo.app import server
from wanvideo.app.studio import Studio
from wanvideo.app.uploads import Uploads


@pytest.fixture(scope="module")
def browser():
    try:
        with launch_chromium() as browser:
            yield browser
    except Unavailable as error:
        unavailable(str(error))


@pytest.fixture
def gate(monkeypatch):
    return Gate(monkeypatch)


@pytest.fixture
def served(tmp_path, monkeypatch, gate):
    """Starts a server. Args: size: of videos. is_shared: by several users. Returns: its address."""
    arriving, started = tmp_path / "out" / ".arriving", []
    arriving.mkdir(parents=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(arriving))

    def serve(size="48x48", is_shared=False, port=None):
        uploads = Uploads(tmp_path / "out" / "uploads", arriving, MOST_BYTES)
        studio = Studio([*base("multi"), "--size", size], tmp_path / "out", uploads, is_shared)
        port = port or free_port()
        pages = server.launch(studio, server.HOST, port, MOST_BYTES, is_blocking=False)
        started.append((pages, studio))
        return f"http://{server.HOST}:{port}"

    def stop():
        gate.open()
        for pages, studio in started:
            pages.close()
            studio.close()
        started.clear()

    serve.stop = stop
    yield serve
    stop()


@pytest.fixture
def address(served, request):
    """Of a server that one person started for themselves."""
    return served(getattr(request, "param", "48x48"))
