"""Help and translations for nodes under a prefix: the page asks for both by the id that a node has here."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from .nodes_common import prompt_server

I18N = ("/i18n", "/api/i18n")


def serve_texts(prefix: str, names: Iterable[str]) -> None:
    """Answer what the page asks of `prefix` + name with what it is told of name. Args: names: of our nodes."""
    server = prompt_server()
    if not prefix or server is None:
        return
    from aiohttp import web

    ours = frozenset(names)

    @web.middleware
    async def answer(request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        prefixed, plain = f"/docs/{prefix}", request.path.replace(f"/docs/{prefix}", "/docs/", 1)
        is_here = not request.path.startswith("//")  # which would name another server
        if is_here and prefixed in request.path and plain.rpartition("/docs/")[2].split("/")[0] in ours:
            raise web.HTTPFound(plain)
        response = await handler(request)
        if request.path not in I18N or getattr(response, "text", None) is None:
            return response
        languages = json.loads(response.text)
        for language in languages.values():
            nodes = language.get("nodeDefs", {})
            nodes |= {prefix + name: nodes[name] for name in ours & set(nodes)}
        return web.json_response(languages)

    server.app.middlewares.append(answer)
