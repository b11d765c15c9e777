"""What reaches an app that listens on this machine only: requests of its own pages, and not those of other sites' pages
that are open in the same browser, be it under a name of theirs that leads to this machine."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

REFUSED = "This app is for this machine only. Open it at http://127.0.0.1, or start it with --host for others."


class OnlyLocal:
    """Refuses what is asked of another name than `names`, which this machine has, or by a page of another site."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            asked = [f"//{headers.get('host', '')}", *headers.getlist("origin")]
            if not all(_host_of(address) in self._names for address in asked):
                app = PlainTextResponse(REFUSED, 403)
        await app(scope, receive, send)


def _host_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
