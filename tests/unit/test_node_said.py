"""What is shown under nodes: warnings and progress of the run that goes on, in the page and workflow it came from."""

import sys
from types import SimpleNamespace

import pytest
from support.pack import load_pack, node

load_pack()
common = sys.modules["pack_under_test.nodes_common"]
WORKFLOW = {"extra_pnginfo": {"workflow": {"id": "mine"}}}


class Page:
    """A server whose page, or a script where `client` is None, has queued graphs."""

    def __init__(self, monkeypatch, client="page", extra=WORKFLOW):
        self.shown, self.running = [], None
        self.server = SimpleNamespace(
            client_id=client,
            last_prompt_id="",
            prompt_queue=self,
            send_sync=lambda *message: self.shown.append(message),
        )
        self.extra = extra
        handler = common._PageWarnings()
        monkeypatch.setattr(common, "PromptServer", SimpleNamespace(instance=self.server))
        monkeypatch.setattr(common, "get_executing_context", lambda: self.running, raising=False)
        monkeypatch.setattr(common, "in_comfyui", lambda: True)
        monkeypatch.setattr(common, "_warnings", handler)
        monkeypatch.setattr(common.logger, "handlers", [handler])

    def get_current_queue_volatile(self):
        return [(0, self.server.last_prompt_id, {}, self.extra, [])], []

    def run(self, prompt_id, node_id):
        self.server.last_prompt_id = prompt_id
        self.running = SimpleNamespace(prompt_id=prompt_id, node_id=node_id)

    def texts(self):
        assert all(kind == "wanvideo.text" and to == "page" for kind, _, to in self.shown)
        return [(told["workflow"], told["node"], told["text"]) for _, told, _ in self.shown]


@pytest.fixture
def page(monkeypatch):
    return Page(monkeypatch)


def test_a_warning_is_shown_under_the_node_that_runs(page):
    page.run("1", "7")
    common.logger.warning("too %s", "short")
    common._send_text("step 1", "7")
    page.run("2", "7")
    common.logger.warning("other")
    shown = ["", "too short", "too short\nstep 1", "", "other"]
    assert page.texts() == [("mine", "7", text) for text in shown]


def test_a_node_that_runs_again_shows_nothing_of_the_run_before(page):
    page.run("1", "5:7")
    common.logger.warning("too short")
    page.run("2", "5:7")
    node("WanVideoAPG").process()
    common._send_text("step 1", "5:7")
    node("WanVideoAPG").process()  # a node that another one works with
    assert page.texts() == [("mine", "5:7", text) for text in ("", "too short", "", "step 1")]


def test_what_a_node_is_warned_of_before_its_inputs_run_is_still_there_when_it_runs(page):
    page.run("1", "7")
    common.logger.warning("too short")
    page.run("1", "8")
    node("WanVideoAPG").process()
    page.run("1", "7")
    node("WanVideoAPG").process()
    common._send_text("step 1", "7")
    shown = [("7", ""), ("7", "too short"), ("8", ""), ("7", "too short\nstep 1")]
    assert page.texts() == [("mine", *told) for told in shown]


def test_a_graph_that_no_page_has_queued_writes_in_no_page(monkeypatch):
    page = Page(monkeypatch, client=None)
    page.run("1", "7")
    common.logger.warning("too short")
    common.RunProgress("7").show(common.output_folder() / "video.mp4", 1, 1)
    assert page.shown == []


@pytest.mark.parametrize(
    "extra",
    [{}, None, {"extra_pnginfo": []}, {"extra_pnginfo": {"workflow": 3}}, {"extra_pnginfo": {"workflow": {"id": 3}}}],
)
def test_a_workflow_without_an_id_is_told_by_its_node_alone(monkeypatch, extra):
    page = Page(monkeypatch, extra=extra)
    page.run("1", "7")
    common._send_text("step 1", "7")
    assert page.texts() == [(None, "7", "step 1")]
