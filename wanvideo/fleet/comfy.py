"""Jobs on ComfyUI servers: each job's graph is posted to one that is free, its results are fetched."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..durable import write_atomically
from ..errors import InputError
from ..job import parse_job
from ..untrusted import read_json, regular_file
from .dispatch import JobFailed, PlaceLost, Stopped
from .jobs import Entry
from .messages import Step
from .server import NoAnswer, Refused, Server

POLL_S = 1.0
LOST_S = 15.0  # without an answer a server is lost
AWAY_S = 60.0  # that is waited for its return
PART = re.compile(r"\$(\$|[a-z][a-z0-9_]*)")
VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".gif")
Graph = dict[str, Any]


@dataclass(frozen=True)
class GraphWork:
    """A job as a graph.

    Args:
        graph: in API format, with the names of parts. values: what stands for these. files: those that are files, which
            are uploaded first.
    """

    name: str
    output: Path
    graph: Graph
    values: Mapping[str, Any]
    files: Mapping[str, Path]

    @property
    def key(self) -> Hashable:
        return None  # which models a server holds is its own business

    def is_done(self) -> bool:
        """Whether its result is there already."""
        return any(self.made_as(suffix).is_file() for suffix in VIDEOS)

    def made_as(self, suffix: str) -> Path:
        """Where a video of this suffix goes; one that is no mp4 beside the output, whose other names may be taken."""
        return self.output if suffix == self.output.suffix.lower() else self.output.with_name(self.output.name + suffix)

    def filled(self, names: Mapping[str, str]) -> Graph:
        """The graph of a server that has the files under these names."""
        return _filled_graph(self.graph, {**self.values, **names}.__getitem__)


@dataclass(frozen=True)
class Template:
    """A graph in API format with parts of jobs: $prompt, $image, $video, $audio1 to $audio6, $name, and every flag
    that jobs have. A text that is nothing but a part becomes its value, number or text; $$ is a dollar."""

    path: Path
    graph: Graph

    @classmethod
    def read(cls, path: Path) -> Template:
        """Raises: InputError for what is no graph in API format."""
        graph = read_json(path, "a graph in API format")
        if not isinstance(graph, dict) or not graph or not all(
            isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in graph.values()
        ):  # fmt: skip
            raise InputError(f"{path} is no graph in API format. Export it in ComfyUI with Workflow, Export (API).")
        return cls(path, graph)

    def work(self, entry: Entry) -> GraphWork:
        """The graph of a job. Raises: InputError for files that are not there and parts that the job does not have."""
        job = parse_job(entry.job)
        values: dict[str, Any] = {**entry.flags, "name": entry.name, "prompt": str(job.prompts)}
        files = {"image": job.reference, "video": job.reference}
        files |= {f"audio{number}": path for number, path in enumerate(job.audios, 1) if path is not None}
        used: dict[str, Path] = {}

        def value(name: str) -> Any:
            if name in files:
                used[name] = regular_file(files[name], f"the file of ${name}")
            elif name not in values:
                raise InputError(
                    f'{self.path} has ${name}, and the job has no such part. Add it to the job\'s "flags".'
                )
            return values.get(name)

        _filled_graph(self.graph, value)
        return GraphWork(entry.name, entry.output, self.graph, values, used)


class ComfyPlace:
    """A server, which is given one job at a time."""

    def __init__(self, url: str) -> None:
        self.server, self.name = Server(url), url
        self.key: Hashable = None
        self._stops = threading.Event()

    def run(self, work: GraphWork, on_step: Callable[[Step], None], on_line: Callable[[str], None]) -> Path:
        try:
            names = {part: self.server.upload(path) for part, path in work.files.items()}
            prompt = self.server.queue(work.filled(names))
            on_line(f"{self.name} has it as {prompt}")
            outputs = self._follow(prompt)
            return self._fetch(outputs, work)
        except Refused as error:
            raise JobFailed(f"{self.name} refused the graph: {error}", is_final=True) from None
        except NoAnswer as error:
            raise PlaceLost(f"{self.name} does not answer ({error}). Start it again.") from None

    def is_there(self) -> bool:
        end = time.monotonic() + AWAY_S
        while time.monotonic() < end and not self._stops.wait(POLL_S):
            if self.server.answers():
                return True
        return False

    def stop(self) -> None:
        self._stops.set()

    def close(self) -> None:
        """A server is its owner's."""

    def _follow(self, prompt: str) -> dict[str, Any]:
        """Outputs of a graph, by node, once it ran."""
        last_answer = time.monotonic()
        while not self._stops.wait(POLL_S):
            try:
                history = self.server.history(prompt)
                known = history is not None or self.server.has(prompt)
                last_answer = time.monotonic()
            except NoAnswer:
                if time.monotonic() - last_answer > LOST_S:
                    raise
                continue
            if history is not None:
                status = history.get("status", {})
                if status.get("status_str") == "error":
                    raise JobFailed(_error(status, self.name))
                return dict(history.get("outputs", {}))
            if not known:  # it was started anew, or somebody emptied its queue
                raise JobFailed(f"{self.name} does not know the job any more. Start it again.")
        self.server.cancel(prompt)
        raise Stopped("The server was told to stop. Start the batch again.")

    def _fetch(self, outputs: dict[str, Any], work: GraphWork) -> Path:
        """The video among the outputs, written to where it was asked for."""
        found = [
            item for output in outputs.values() if isinstance(output, dict) for items in output.values()
            if isinstance(items, list) for item in items
            if isinstance(item, dict) and str(item.get("filename", "")).lower().endswith(VIDEOS)
        ]  # fmt: skip
        if not found:
            raise JobFailed(f"{self.name} ran the graph and no node put out a video. Add one that saves it.", True)
        best = next((item for item in found if item.get("type") == "output"), found[0])
        path = work.made_as(Path(str(best["filename"])).suffix.lower())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self.server.view(best))
        return path


def _filled_graph(graph: Graph, value: Callable[[str], Any]) -> Graph:
    return {name: {**node, "inputs": _filled(node.get("inputs", {}), value)} for name, node in graph.items()}


def _filled(data: Any, value: Callable[[str], Any]) -> Any:
    """Inputs of a graph with what `value` says of each part that they name."""
    if isinstance(data, dict):
        return {name: _filled(inner, value) for name, inner in data.items()}
    if isinstance(data, list):
        return [_filled(inner, value) for inner in data]
    if not isinstance(data, str):
        return data
    whole = PART.fullmatch(data)
    if whole and whole[1] != "$":
        return value(whole[1])
    return PART.sub(lambda match: "$" if match[1] == "$" else str(value(match[1])), data)


def _error(status: Mapping[str, Any], server: str) -> str:
    """What the history says of a graph that failed."""
    for message in status.get("messages", []):
        if isinstance(message, list) and len(message) == 2 and message[0] == "execution_error":
            data = message[1] if isinstance(message[1], dict) else {}
            said = str(data.get("exception_message")).strip()[:800]
            return f"{server} failed in {data.get('node_type')}: {said}\nMend that, or read its log."
    return f"{server} ended the graph: {json.dumps(status)[:300]}. Read its log."
