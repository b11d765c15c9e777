"""Help of nodes under a prefix: the page is sent to that of the node, and nobody to another server."""

import asyncio
import importlib
from types import SimpleNamespace

import pytest
from support.pack import NAME, load_pack

web = pytest.importorskip("aiohttp.web")


@pytest.fixture
def answer(monkeypatch):
    """The head of what a server with the middleware answers to a path."""
    from aiohttp.test_utils import TestServer

    load_pack()
    prefixed = importlib.import_module(f"{NAME}.nodes_prefixed")

    async def ask(path):
        app = web.Application()
        monkeypatch.setattr(prefixed, "prompt_server", lambda: SimpleNamespace(app=app))
        prefixed.serve_texts("Talk", ["WanVideoSampler"])
        async with TestServer(app) as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            return head.decode()

    return lambda path: asyncio.run(ask(path))


def test_help_is_that_of_the_node(answer):
    head = answer("/extensions/pack/docs/TalkWanVideoSampler/en.md")
    assert " 302 " in head and "Location: /extensions/pack/docs/WanVideoSampler/en.md\r\n" in head
    assert " 404 " in answer("/extensions/pack/docs/TalkOther/en.md")


@pytest.mark.parametrize(
    "start", ["//evil.example", "///evil.example", "/%2Fevil.example", "/%5Cevil.example", "/%0D%0ASet-Cookie:%20a=b"]
)
def test_nobody_is_sent_to_another_server(answer, start):
    head = answer(f"{start}/docs/TalkWanVideoSampler/en.md")
    assert not any(line.startswith(("Set-Cookie", "Location: //", "Location: /\\")) for line in head.splitlines())
