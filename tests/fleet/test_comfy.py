"""Graphs on ComfyUI servers: filled from jobs, posted, followed, fetched; servers that die, refuse or fail."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support import jobs

from wanvideo.cli import batch
from wanvideo.cli.main import run
from wanvideo.errors import InputError
from wanvideo.fleet import comfy
from wanvideo.fleet.comfy import Template
from wanvideo.fleet.jobs import Entry

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "$image"}},
    "2": {"class_type": "LoadAudio", "inputs": {"audio": "$audio1"}},
    "3": {"class_type": "Sampler", "inputs": {"text": "a $$ and $prompt", "seed": "$base_seed", "model": ["1", 0]}},
}


class FakeServer:
    """As much of ComfyUI as is asked for. ends: what becomes of graphs: ok, error, dies (it stops answering)."""

    def __init__(self, ends="ok"):
        self.graphs, self.uploads, self.ends, self.suffix = [], {}, ends, ".mp4"
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def answer(self, data, status=200):
                data = data if isinstance(data, bytes) else json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                if fake.ends == "dies" and fake.graphs:
                    return self.connection.close()
                if self.path.startswith("/history/"):
                    return self.answer(fake.history(self.path.rpartition("/")[2]))
                if self.path.startswith("/view"):
                    return self.answer(b"a video of " + self.path.encode())
                self.answer({"queue_running": [], "queue_pending": []})

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/upload/image":
                    name = body.split(b'filename="')[1].split(b'"')[0].decode()
                    fake.uploads[name] = body
                    return self.answer({"name": name, "subfolder": ""})
                if fake.ends == "refuses":
                    errors = {"3": {"class_type": "Sampler", "errors": [{"details": "seed is wrong"}]}}
                    return self.answer({"error": {"message": "no"}, "node_errors": errors}, 400)
                if self.path == "/prompt":
                    fake.graphs.append(json.loads(body)["prompt"])
                self.answer({"prompt_id": str(len(fake.graphs))})

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def history(self, prompt):
        if self.ends == "error":
            data = {"node_type": "Sampler", "exception_message": "out of memory"}
            return {prompt: {"status": {"status_str": "error", "messages": [["execution_error", data]]}}}
        videos = [{"filename": f"{prompt}{self.suffix}", "type": "output"}]
        files = {"images": [{"filename": "a.png"}], "gifs": videos}
        return {prompt: {"status": {"status_str": "success"}, "outputs": {"9": files}}}

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def servers(monkeypatch):
    monkeypatch.setattr(comfy, "POLL_S", 0.05)
    monkeypatch.setattr(comfy, "LOST_S", 0.3)
    monkeypatch.setattr(comfy, "AWAY_S", 0.3)
    made = []

    def make(*ends):
        made.extend(FakeServer(end) for end in ends)
        return made[-len(ends) :]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def arguments(tmp_path):
    job = {"cond_image": jobs.picture(tmp_path), "cond_audio": {"person1": jobs.speech(tmp_path, 0.1)}}
    lines = [{**job, "prompt": f"Job {n}.", "name": f"{n}", "flags": {"base_seed": n}} for n in range(3)]
    (tmp_path / "jobs.json").write_text(json.dumps(lines))
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    return [
        str(tmp_path / "jobs.json"), "--out", str(tmp_path / "out"), "--engine", "comfy",
        "--template", str(tmp_path / "graph.json"), "--server",
    ]  # fmt: skip


def test_servers_share_the_jobs_and_a_dead_one_loses_its_own(tmp_path, servers, arguments, capsys):
    good, dead = servers("ok", "dies")
    assert run(batch.main, [*arguments, good.url, dead.url]) == 0
    assert "3 of 3 jobs are done" in capsys.readouterr().out and len(good.graphs) == 3 and len(dead.graphs) == 1
    graph = next(graph for graph in good.graphs if graph["3"]["inputs"]["seed"] == 2)
    assert graph["3"]["inputs"]["text"] == "a $ and Job 2." and graph["3"]["inputs"]["model"] == ["1", 0]
    assert graph["1"]["inputs"]["image"] in good.uploads and graph["2"]["inputs"]["audio"].endswith(".wav")
    assert (tmp_path / "out" / "2.mp4").read_bytes().startswith(b"a video of /view?filename=")


def test_another_kind_of_video_takes_no_name_of_the_user_s_and_is_not_made_twice(servers, arguments, tmp_path, capsys):
    (good,) = servers("ok")
    good.suffix = ".webm"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.webm").write_bytes(b"the user's")
    for event in ("done", "there"):
        assert run(batch.main, [*arguments, good.url, "--json"]) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert sum(said["event"] == event for said in events) == 3
    assert len(good.graphs) == 3 and (tmp_path / "out" / "1.webm").read_bytes() == b"the user's"
    assert (tmp_path / "out" / "1.mp4.webm").read_bytes().startswith(b"a video of")


def test_the_name_of_a_file_stands_wherever_its_part_does_and_a_prompt_is_a_prompt(tmp_path):
    inputs = {"a": "$image", "b": "$image [input]", "c": "$prompt", "d": "$$", "e": "$$image"}
    (tmp_path / "graph.json").write_text(json.dumps({"1": {"class_type": "A", "inputs": inputs}}))
    job = {"prompt": "$image", "cond_image": jobs.picture(tmp_path), "cond_audio": {}}
    work = Template.read(tmp_path / "graph.json").work(Entry("here", "a", job, {}, tmp_path / "a.mp4"))
    assert list(work.filled({"image": "1.png"})["1"]["inputs"].values()) == [
        "1.png", "1.png [input]", "$image", "$", "$image",
    ]  # fmt: skip


def test_a_graph_that_fails_is_tried_elsewhere_and_one_that_is_refused_is_not(servers, arguments, capsys, tmp_path):
    bad, good = servers("error", "ok")
    assert run(batch.main, [*arguments, bad.url, good.url]) == 0 and bad.graphs
    capsys.readouterr()
    (refuses,) = servers("refuses")
    assert run(batch.main, [*arguments, refuses.url, "--out", str(tmp_path / "elsewhere"), "--json"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    failed = [event for event in events if event["event"] == "failed"]
    assert len(failed) == 3 and all(event["tries"] == 1 for event in failed)
    assert "Sampler: seed is wrong" in failed[0]["note"]


def test_parts_that_a_job_does_not_have_are_said_first(tmp_path, servers, arguments, capsys):
    graph = {"1": {"class_type": "A", "inputs": {"a": "$audio2", "b": ["$steps"]}}}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    (good,) = servers("ok")
    assert run(batch.main, [*arguments, good.url]) == 2
    assert "$audio2, and the job has no such part" in capsys.readouterr().err and not good.graphs
    (tmp_path / "graph.json").write_text(json.dumps({"nodes": []}))
    with pytest.raises(InputError, match="API format"):
        Template.read(tmp_path / "graph.json")


def test_a_file_that_is_not_there_is_said_first(tmp_path):
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    job = {"prompt": "a", "cond_image": "missing.png", "cond_audio": {"person1": "missing.wav"}}
    with pytest.raises(InputError, match=r"There is no file missing.png"):
        Template.read(tmp_path / "graph.json").work(Entry("here", "a", job, {"base_seed": 1}, tmp_path / "a.mp4"))
