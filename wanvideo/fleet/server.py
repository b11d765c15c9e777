"""A ComfyUI server over HTTP: its queue, history and files."""

from __future__ import annotations

import http.client
import json
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, UnsupportedError
from ..untrusted import parse_json

TIMEOUT_S = 60.0
SHORT_S = 5.0
UNSAFE = str.maketrans('"?\\\r\n', "_____")  # in the name of an uploaded file
MAX_ERROR = 600  # characters


class NoAnswer(UnsupportedError):
    """Nobody answers there, or something that is no ComfyUI."""


class Refused(UnsupportedError):
    """The server does not take a request."""


class Server:
    """One server. Args: url: http://host:8188."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"--server {url[:200]!r} is no address of a server. Write it as http://host:8188.")
        self.url, self._client = url.rstrip("/"), secrets.token_hex(16)

    def answers(self) -> bool:
        """Whether it can be used now."""
        try:
            self._json("/system_stats", timeout_s=SHORT_S)
        except (NoAnswer, Refused):
            return False
        return True

    def upload(self, path: Path) -> str:
        """Put a file into its input folder, under a name of its own. Returns: the name."""
        boundary, name = secrets.token_hex(16), f"{path.stem[:60]}_{secrets.token_hex(6)}{path.suffix}"
        safe = name.encode("ascii", "replace").decode().translate(UNSAFE)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{safe}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        answer = self._json("/upload/image", body, f"multipart/form-data; boundary={boundary}")
        inside = str(answer.get("subfolder") or "")
        return f"{inside}/{answer['name']}" if inside else str(answer["name"])

    def queue(self, graph: Mapping[str, Any]) -> str:
        """Queue a graph. Returns: the id of its run. Raises: Refused with what is wrong with it."""
        data = json.dumps({"prompt": graph, "client_id": self._client}).encode()
        return str(self._json("/prompt", data)["prompt_id"])

    def history(self, prompt: str) -> dict[str, Any] | None:
        """What came of a run; None while it is not finished."""
        found = self._json(f"/history/{prompt}").get(prompt)
        return found if isinstance(found, dict) else None

    def has(self, prompt: str) -> bool:
        """Whether a run waits or runs, or has just ended."""
        queue = self._json("/queue")
        items = [*queue.get("queue_running", ()), *queue.get("queue_pending", ())]
        return any(prompt in item for item in items if isinstance(item, list)) or self.history(prompt) is not None

    def cancel(self, prompt: str) -> None:
        """Take a run out of the queue, and interrupt it where it runs."""
        for path, data in (("/queue", {"delete": [prompt]}), ("/interrupt", {"prompt_id": prompt})):
            try:
                self._request(path, json.dumps(data).encode(), timeout_s=SHORT_S)
            except (NoAnswer, Refused):
                return

    def view(self, item: Mapping[str, Any]) -> bytes:
        """A file that a run put out, as its history names it."""
        defaults = {"subfolder": "", "type": "output"}
        names = {name: item.get(name, defaults.get(name)) for name in ("filename", *defaults)}
        return self._request(f"/view?{urllib.parse.urlencode(names)}", timeout_s=10 * TIMEOUT_S)

    def _json(
        self, path: str, data: bytes | None = None, kind: str = "application/json", timeout_s: float = TIMEOUT_S
    ) -> dict[str, Any]:  # fmt: skip
        answer = parse_json(self._request(path, data, kind, timeout_s), f"{self.url}{path}", NoAnswer)
        if not isinstance(answer, dict):
            raise NoAnswer(f"{self.url}{path} is not ComfyUI's. Name a ComfyUI server.")
        return answer

    def _request(
        self, path: str, data: bytes | None = None, kind: str = "application/json", timeout_s: float = TIMEOUT_S
    ) -> bytes:
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind} if data is not None else {})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            said = error.read(10**6).decode(errors="replace")
            if error.code >= 500:
                raise NoAnswer(f"it answers with status {error.code}. Read its log.") from None
            raise Refused(f"{_what(said)[:MAX_ERROR]} (status {error.code}). Mend the graph.") from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"{str(getattr(error, 'reason', error))[:200]}. Start it again.") from None


def _what(said: str) -> str:
    """What ComfyUI says is wrong with a graph, without its details."""
    try:
        data = json.loads(said)
        errors = [
            f"{node.get('class_type')}: {', '.join(str(e.get('details') or e.get('message')) for e in node['errors'])}"
            for node in data.get("node_errors", {}).values()
        ]
        return "; ".join(errors) or str(data["error"]["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return " ".join(said.split())
