"""Drives a ComfyUI server the way its own page does: HTTP for requests, one websocket for what happens."""

from __future__ import annotations

import asyncio
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

END_STATES = {
    "execution_success": "success",
    "execution_error": "error",
    "execution_interrupted": "interrupted",
}
PREVIEW, PREVIEW_WITH_METADATA = 1, 4  # kinds of binary message
JPEG, PNG = 1, 2


class PromptRefused(RuntimeError):
    """The server refused a graph, or a branch of it; the message lists what it said of each node."""


class UnexpectedEnd(RuntimeError):
    """A graph ended otherwise than the test expected."""


@dataclass(frozen=True)
class Event:
    """One websocket message: its type, its data, and when it came, in seconds since the graph was sent."""

    kind: str
    data: dict[str, Any]
    at_s: float


@dataclass(frozen=True)
class Preview:
    """A picture shown while a node runs; `node` is None where the server does not say which."""

    mime: str
    picture: bytes
    at_s: float
    node: str | None = None


@dataclass(frozen=True)
class OutputFile:
    """A file that a node put out, as the server names it."""

    node: str
    filename: str
    subfolder: str
    folder_type: str


@dataclass
class Run:
    """Everything the server told about one run of a graph."""

    prompt_id: str
    status: str = ""
    events: list[Event] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)

    def data_of(self, kind: str) -> list[dict[str, Any]]:
        """The data of every event of a type, in order."""
        return [event.data for event in self.events if event.kind == kind]

    @property
    def texts(self) -> list[str]:
        """What was shown under this pack's nodes, in order."""
        return [data["text"] for data in self.data_of("wanvideo.text")]

    def executed_nodes(self) -> list[str]:
        """Ids of the nodes that ran, in order; those taken from the cache are not among them."""
        return [data["node"] for data in self.data_of("executing") if data.get("node") is not None]

    def cached_nodes(self) -> set[str]:
        return {node for data in self.data_of("execution_cached") for node in data["nodes"]}

    def error(self) -> dict[str, Any]:
        """node_id, node_type, exception_type, exception_message, traceback of the node that failed; {} if none did."""
        return next(iter(self.data_of("execution_error")), {})

    def outputs(self) -> dict[str, dict[str, Any]]:
        return self.history.get("outputs", {})

    def files(self) -> Iterator[OutputFile]:
        for node, output in self.outputs().items():
            for items in output.values():
                for item in items if isinstance(items, list) else ():
                    if isinstance(item, dict) and "filename" in item:
                        yield OutputFile(node, item["filename"], item.get("subfolder", ""), item.get("type", "output"))


class ComfyClient:
    """A client of one server.

    Args:
        url: for instance http://127.0.0.1:8188.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex

    def get(self, path: str) -> Any:
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=120) as response:
            return response.read()

    def post(self, path: str, data: dict[str, Any]) -> Any:
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = response.read()
        return json.loads(answer) if answer else None

    def version(self) -> str:
        return self.get("/system_stats")["system"]["comfyui_version"]

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        return self.get("/object_info" + (f"/{urllib.parse.quote(node)}" if node else ""))

    def nodes_of(self, pack: str) -> dict[str, Any]:
        """object_info of the nodes that the pack in this folder of custom_nodes brings."""
        return {
            name: info
            for name, info in self.object_info().items()
            if info["python_module"] == f"custom_nodes.{pack}"
        }  # fmt: skip

    def queue(self) -> dict[str, list]:
        """The runs of the server: queue_running and queue_pending."""
        return self.get("/queue")

    def history(self, prompt_id: str) -> dict[str, Any]:
        """What the server keeps of a finished run; {} while it is not finished."""
        return self.get(f"/history/{prompt_id}").get(prompt_id, {})

    def interrupt(self, prompt_id: str | None = None) -> None:
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def cancel(self, prompt_id: str) -> None:
        """Take a run from the queue, or interrupt it if it has begun."""
        self.post("/queue", {"delete": [prompt_id]})
        self.interrupt(prompt_id)

    def free(self) -> None:
        """Ask the server to unload models and forget cached results; it does so when no graph runs."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def upload(self, file: Path, subfolder: str = "") -> str:
        """Put a picture, sound or video into the server's input folder; returns its name for a Load node."""

        async def send() -> dict[str, str]:
            form = aiohttp.FormData({"subfolder": subfolder, "type": "input", "overwrite": "true"})
            form.add_field("image", file.read_bytes(), filename=file.name, content_type="application/octet-stream")
            async with aiohttp.ClientSession(raise_for_status=True) as session:
                async with session.post(f"{self.url}/upload/image", data=form) as response:
                    return await response.json()

        stored = _in_own_loop(send)
        return f"{stored['subfolder']}/{stored['name']}" if stored["subfolder"] else stored["name"]

    def download(self, file: OutputFile, folder: Path) -> Path:
        """Fetch an output file into `folder` and return its path."""
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": file.folder_type}
        path = folder / file.filename
        path.write_bytes(self.get_bytes("/view?" + urllib.parse.urlencode(query)))
        return path

    def run(
        self,
        graph: dict[str, Any],
        *,
        expect: str = "success",
        on_event: Callable[[Event], None] | None = None,
        timeout_s: float = 300,
    ) -> Run:
        """Run a graph in API format to its end.

        Args:
            graph: {node id: {"class_type": ..., "inputs": {...}}}.
            expect: success, error or interrupted.
            on_event: called with every event of this run as it comes; it may call this client.
            timeout_s: for the whole run.
        Raises:
            PromptRefused: a node or a value is not accepted, be it only in one branch of the graph.
            UnexpectedEnd: the run did not end as expected; the message holds the node's error.
            TimeoutError: the run did not end in time; it has been interrupted.
        """
        run = _in_own_loop(lambda: self._run(graph, on_event, timeout_s))
        # The history is written a moment after the event that ends a run.
        end = time.monotonic() + 60
        while not run.history and time.monotonic() < end:
            run.history = self.history(run.prompt_id)
            time.sleep(0.02)
        if run.status != expect:
            error = run.error()
            said = "".join(error.get("traceback", [])) + str(error.get("exception_message", ""))
            raise UnexpectedEnd(
                f"{run.status} instead of {expect} in node {error.get('node_id')} {error.get('node_type')}\n{said}"
            )
        return run

    async def _run(self, graph: dict[str, Any], on_event: Callable[[Event], None] | None, timeout_s: float) -> Run:
        start = time.monotonic()
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            run = Run(await self._submit(session, graph))
            try:
                await asyncio.wait_for(self._listen(socket, run, on_event, start), timeout_s)
            except asyncio.TimeoutError:
                self.cancel(run.prompt_id)
                last = run.events[-1] if run.events else None
                raise TimeoutError(f"the run did not end within {timeout_s} s; its last event was {last}") from None
        return run

    async def _submit(self, session: aiohttp.ClientSession, graph: dict[str, Any]) -> str:
        async with session.post(f"{self.url}/prompt", json={"prompt": graph, "client_id": self.client_id}) as response:
            text = await response.text()
        try:
            answer = json.loads(text)
        except json.JSONDecodeError:
            raise PromptRefused(f"HTTP {response.status}: {text[:1000]}") from None
        # With one valid output the server answers 200 and drops the branches that are wrong.
        if response.status != 200 or answer.get("node_errors"):
            if "prompt_id" in answer:
                self.cancel(answer["prompt_id"])
            raise PromptRefused(_refusal(answer))
        return answer["prompt_id"]

    async def _listen(
        self, socket: aiohttp.ClientWebSocketResponse, run: Run, on_event: Callable[[Event], None] | None, start: float
    ) -> None:
        while not run.status:
            message = await socket.receive()
            at_s = time.monotonic() - start
            if message.type == aiohttp.WSMsgType.BINARY:
                preview = read_preview(message.data, at_s)
                run.previews.extend([preview] if preview else [])
            elif message.type == aiohttp.WSMsgType.TEXT:
                content = json.loads(message.data)
                event = Event(content["type"], content.get("data") or {}, at_s)
                if event.data.get("prompt_id", run.prompt_id) == run.prompt_id:
                    run.events.append(event)
                    run.status = END_STATES.get(event.kind, "")
                    if on_event:
                        on_event(event)
            else:
                raise ConnectionError(f"the server closed the websocket: {message}")


def read_preview(message: bytes, at_s: float) -> Preview | None:
    """A binary websocket message as a picture; None for one that is no picture."""
    (kind,) = struct.unpack_from(">I", message)
    if kind == PREVIEW:
        (picture_format,) = struct.unpack_from(">I", message, 4)
        mime = {JPEG: "image/jpeg", PNG: "image/png"}.get(picture_format, "")
        return Preview(mime, message[8:], at_s)
    if kind == PREVIEW_WITH_METADATA:
        (length,) = struct.unpack_from(">I", message, 4)
        metadata = json.loads(message[8 : 8 + length])
        return Preview(metadata["image_type"], message[8 + length :], at_s, metadata.get("node_id"))
    return None


def _refusal(answer: dict[str, Any]) -> str:
    lines = [answer["error"]["message"]] if answer.get("error") else []
    for node, said in (answer.get("node_errors") or {}).items():
        for error in said["errors"]:
            lines.append(f"node {node} {said['class_type']}: {error['message']}: {error['details']}")
    return "\n".join(lines) or json.dumps(answer)


def _in_own_loop(work: Callable[[], Any]) -> Any:
    """Run a coroutine in a thread of its own: while a browser is driven, this thread already has an event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()
