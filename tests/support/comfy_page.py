"""Drives the real ComfyUI page in headless Chromium: what a user sees, loads, edits and runs."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .comfy_server import Unavailable

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Response

CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--mute-audio",
)  # fmt: skip
INSTALLED_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# What a clean ComfyUI itself reports: files that a new user has not saved, the templates package that is left out,
# slips in its own start-up (with settings in 0.3.75), and look-ups outside that its security policy forbids. Failed
# requests are listed apart.
OWN_HTTP_ERRORS = re.compile(r"404 (/user\.css|/api/userdata\b|/templates/)")
OWN_CONSOLE_ERRORS = re.compile(
    r"the server responded with a status of|graph accessed before initialization|Content Security Policy"
    r"|Error loading (fuse options|core workflow templates)|reading 'id'\)\s+at onChange \("
)

RUN_BUTTON = "[data-testid=queue-button]"

IS_READY = """() => window.app?.graph && window.app.extensionManager
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100"""

# Walks the graph and the graphs inside its subgraph nodes; `visit` gets each node and its id path.
WALK = """const walk = (visit, graph = app.graph, path = '') => {
    for (const node of graph.nodes) {
        const id = path + node.id;
        visit(node, id);
        if (node.isSubgraphNode?.()) walk(visit, node.subgraph, id + ':');
    }
};"""

REPORT = f"""() => {{
    const app = window.app, report = {{types: [], missing: [], marked: [], absent: []}};
    {WALK}
    walk((node, id) => {{
        report.types.push(node.type);
        if (!node.isSubgraphNode?.() && !LiteGraph.registered_node_types[node.type])
            report.missing.push(node.type);
        if (node.has_errors) report.marked.push(`${{id}} ${{node.type}}`);
        for (const widget of node.widgets ?? []) {{
            const values = widget.options?.values;
            if (widget.type === 'combo' && Array.isArray(values) && !values.includes(widget.value))
                report.absent.push(`${{id}} ${{node.type}}.${{widget.name}}: ${{widget.value}}`);
        }}
    }});
    return report;
}}"""

WIDGETS = f"""() => {{
    const app = window.app, widgets = {{}};
    {WALK}
    walk((node, id) => {{
        widgets[id] = {{}};
        for (const widget of node.widgets ?? [])
            if (widget.serialize !== false) widgets[id][widget.name] = widget.value ?? null;
    }});
    return JSON.parse(JSON.stringify(widgets));
}}"""

SOCKETS = """(kind) => window.app.graph.nodes.find((node) => node.type === kind)
    .inputs.filter((input) => !input.widget).map((input) => input.name)"""
# What this pack has written under a node, if it can be seen.
SAID = """(kind) => {
    const node = window.app.graph.nodes.find((node) => node.type === kind);
    const shown = node.widgets.find((widget) => widget.name === 'talking_text')?.element.firstChild;
    const box = shown?.getBoundingClientRect(), frame = shown?.parentElement.getBoundingClientRect();
    return shown?.isConnected && box.height > 5 && frame.height + 1 >= box.height ? shown.innerText : '';
}"""
SET_WIDGET = """([kind, name, value]) => {
    for (const node of window.app.graph.nodes.filter((node) => node.type === kind))
        node.widgets.find((widget) => widget.name === name).value = value;
}"""

MARKED = """() => window.app.graph.nodes
    .filter((node) => node.has_errors
        || ['nodeError', 'executionError'].some((drawn) => node.strokeStyles?.[drawn]?.call(node)))
    .map((node) => `${node.id} ${node.type}`)"""

FIT = """() => {
    const canvas = window.app.canvas;
    canvas.deselectAll?.();
    canvas.fitViewToSelectionAnimated?.({duration: 1});
    window.app.graph.setDirtyCanvas(true, true);
}"""

DIALOGS = """() => [...document.querySelectorAll(
    '.p-dialog, [role=dialog], .p-toast-message, [data-testid*=missing], [data-testid*=error]')]
    .map((element) => element.innerText.trim()).filter(Boolean)"""

# Watches for what comes of a click on Run. The server's own answer tells whether the run was accepted: what the page
# makes of it differs between versions.
WATCH = """(timeout) => {
    const api = window.app.api, send = api.queuePrompt, executed = {};
    window.finishedRun = new Promise((resolve) => {
        const finish = (status, detail) => resolve({status, detail: detail ?? {}, executed});
        api.queuePrompt = async (...values) => {
            api.queuePrompt = send;
            try {
                const answer = await send.apply(api, values);
                if (Object.keys(answer.node_errors ?? {}).length) finish('refused', {refusal: answer.node_errors});
                return answer;
            } catch (error) {
                finish('refused', {refusal: error.response ?? String(error)});
                throw error;
            }
        };
        api.addEventListener('executed', (event) => { executed[event.detail.node] = event.detail.output; });
        for (const status of ['success', 'error', 'interrupted'])
            api.addEventListener('execution_' + status, (event) => finish(status, event.detail), {once: true});
        setTimeout(() => finish('timeout'), timeout);
    });
}"""

# Where nodes are, with their titles, as they are drawn: [x, y, width, height] in the graph's own measure.
BOXES = """() => Object.fromEntries(window.app.graph.nodes.map((node) => {
    const {scale, offset} = window.app.canvas.ds;
    const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
    const box = drawn ? [drawn.x / scale - offset[0], drawn.y / scale - offset[1], drawn.width / scale,
                         drawn.height / scale] : [...node.boundingRect];
    return [`${node.id} ${node.type}`, box];
}))"""

# Videos in the page that can be played, and what comes of it.
VIDEOS = """const videos = [...document.querySelectorAll('video')].filter((video) => video.readyState > 1);"""
CAN_PLAY = f"(count) => {{ {VIDEOS} return videos.length >= count; }}"
PLAYERS = f"""async () => {{
    {VIDEOS}
    for (const video of videos) {{ video.muted = true; await video.play(); }}
    const before = videos.map((video) => video.currentTime);
    await new Promise((resolve) => setTimeout(resolve, 400));
    return videos.map((video, at) => ({{
        duration_s: video.duration, width: video.videoWidth, height: video.videoHeight,
        moves: video.currentTime !== before[at], has_sound: video.webkitAudioDecodedByteCount > 0,
    }}));
}}"""


@dataclass(frozen=True)
class GraphReport:
    """What the page makes of a loaded workflow.

    Args:
        types: type of every node, those inside subgraphs included.
        missing: types the server does not have. marked: nodes shown with an error.
        absent: combo values, mostly model files, that are not in their list.
        dialogs: text of the dialogs and toasts that came up.
    """

    types: list[str]
    missing: list[str]
    marked: list[str]
    absent: list[str]
    dialogs: list[str]


@dataclass(frozen=True)
class Player:
    """A video that the page shows: its length, its size in pixels, whether it moves when it is played, and sounds."""

    duration_s: float
    width: int
    height: int
    moves: bool
    has_sound: bool


@dataclass(frozen=True)
class PageRun:
    """A run started from the page.

    Args:
        status: success, error, interrupted, refused or timeout.
        detail: of the event that ended it; refusal where it was refused.
        executed: node id -> output, of the nodes that show one.
    """

    status: str
    detail: dict[str, Any]
    executed: dict[str, Any] = field(default_factory=dict)


def find_chromium(bundled: str) -> Path:
    """The Chromium to drive: $CHROMIUM_PATH, an installed one, else the one that Playwright has downloaded.

    Raises:
        Unavailable: there is none.
        ValueError: CHROMIUM_PATH names no file.
    """
    given = os.environ.get("CHROMIUM_PATH")
    if given and not Path(given).is_file():
        raise ValueError(f"CHROMIUM_PATH={given} is no file.")
    for candidate in (given, *map(shutil.which, INSTALLED_NAMES), bundled):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise Unavailable("no Chromium: install it, set CHROMIUM_PATH, or run 'playwright install chromium'")


@contextmanager
def launch_chromium() -> Iterator[Browser]:
    """A headless Chromium, closed at the end of the block."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise Unavailable(f"no Playwright ({error}): pip install playwright") from None
    with sync_playwright() as playwright:
        path = find_chromium(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


class ComfyPage:
    """The page of one server in a fresh browser profile.

    Args:
        browser: from `launch_chromium`. url: of the server.
        nodes2: draw nodes as HTML ("Nodes 2.0") in place of the classic canvas.
        locale: language of the interface, for instance "zh".
        size: of the window in pixels.
    """

    def __init__(
        self,
        browser: Browser,
        url: str,
        *,
        nodes2: bool = False,
        locale: str = "en",
        size: tuple[int, int] = (1920, 1080),
    ) -> None:
        self.url = url
        self.console_errors: list[str] = []
        self.http_errors: list[str] = []
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        self.page = self.context.new_page()
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.console_errors.append(f"uncaught: {error}"))
        self.page.on("response", self._on_response)
        settings = {
            "Comfy.TutorialCompleted": True,
            "Comfy.Minimap.Visible": False,
            "Comfy.VueNodes.Enabled": nodes2,
            "Comfy.Locale": locale,
        }
        self.context.request.post(f"{self.url}/api/settings", data=settings, fail_on_status_code=True)
        self.open()

    def open(self) -> None:
        """Load the page, or load it again as a user would after closing the tab."""
        self.page.goto(self.url, wait_until="domcontentloaded")
        self.page.wait_for_function(IS_READY, timeout=120_000)
        self.page.evaluate("() => { window.app.canvas.min_font_size_for_lod = 0; }")  # text is drawn at any zoom
        self._settle()

    def close(self) -> None:
        self.context.close()

    def __enter__(self) -> ComfyPage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, workflow: dict[str, Any], name: str = "workflow") -> GraphReport:
        """Open a workflow (UI format) as if it had been dropped on the page, and say what came of it."""
        self.page.keyboard.press("Escape")
        self.page.evaluate(
            "([workflow, name]) => window.app.loadGraphData(workflow, true, true, name)", [workflow, name]
        )
        self._settle()
        return GraphReport(**self.page.evaluate(REPORT), dialogs=self.page.evaluate(DIALOGS))

    def marked(self) -> list[str]:
        """Nodes that are drawn as wrong, when a graph is refused or where its run ended."""
        return self.page.evaluate(MARKED)

    def sockets(self, kind: str) -> list[str]:
        """Names of the inputs of a node that are no widgets, as they are shown."""
        return self.page.evaluate(SOCKETS, kind)

    def said(self, kind: str) -> str:
        """What is written under a node and can be seen in whole; else nothing."""
        return self.page.evaluate(SAID, kind)

    def set_widget(self, kind: str, name: str, value: Any) -> None:
        """Set a widget of every node of a kind."""
        self.page.evaluate(SET_WIDGET, [kind, name, value])

    def widgets(self) -> dict[str, dict[str, Any]]:
        """Node id (with the ids of the subgraphs around it) -> widget name -> value, of what a workflow keeps."""
        return self.page.evaluate(WIDGETS)

    def workflow(self) -> dict[str, Any]:
        """The graph in UI format, as the page saves it."""
        return json.loads(self.page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))

    def api_graph(self) -> dict[str, Any]:
        """The graph in API format, as the page sends it to the server."""
        return json.loads(self.page.evaluate("async () => JSON.stringify((await window.app.graphToPrompt()).output)"))

    def save_and_reload(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Widget values before, and after saving the graph, loading the page anew and opening what was saved."""
        before, saved = self.widgets(), self.workflow()
        self.open()
        self.load(saved)
        return before, self.widgets()

    def queue(self, timeout_s: float = 300) -> PageRun:
        """Click Run, once, and wait for the end of the run."""
        self.page.evaluate(WATCH, timeout_s * 1000)
        self.page.locator(RUN_BUTTON).click()
        result = PageRun(**self.page.evaluate("() => window.finishedRun"))
        self._settle()
        return result

    def draw_nodes(self, *, nodes2: bool) -> None:
        """Change how nodes are drawn, as the switch in the settings does."""
        self.page.evaluate("(on) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", nodes2)
        self._settle()

    def players(self, count: int) -> list[Player]:
        """The videos in the page, which are played for a moment, as soon as there are `count`."""
        end = time.monotonic() + 30
        while True:
            self.page.wait_for_function(CAN_PLAY, arg=count, timeout=30_000)
            players = [Player(**player) for player in self.page.evaluate(PLAYERS)]
            if len(players) >= count or time.monotonic() > end:  # one may have been put in place of another just then
                return players

    def overlaps(self, gap: float = 0) -> list[str]:
        """Pairs of nodes that are drawn over each other, or with less than `gap` between them."""
        boxes = self.page.evaluate(BOXES)
        return [
            f"{one} and {other}: {boxes[one]}, {boxes[other]}"
            for one, other in itertools.combinations(boxes, 2)
            if _are_near(boxes[one], boxes[other], gap)
        ]

    def screenshot(self, path: Path, *, fit: bool = True) -> Path:
        """Write a PNG of the window; `fit` first closes dialogs and brings the whole graph into view."""
        if fit:
            self.page.keyboard.press("Escape")
            self.page.evaluate(FIT)
            self._settle()
        self.page.screenshot(path=path)
        return path

    def _settle(self) -> None:
        """Let the page draw: its rendering gives no signal that it has finished."""
        self.page.wait_for_timeout(500)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not OWN_CONSOLE_ERRORS.search(message.text):
            self.console_errors.append(f"{message.text} ({message.location.get('url', '')})")

    def _on_response(self, response: Response) -> None:
        error = f"{response.status} {response.url.removeprefix(self.url)}"
        if response.status >= 400 and not OWN_HTTP_ERRORS.match(error):
            self.http_errors.append(error)


def _are_near(one: list[float], other: list[float], gap: float) -> bool:
    """Whether boxes [x, y, width, height] are less than `gap` apart in both directions."""
    return all(one[at] < other[at] + other[at + 2] + gap and other[at] < one[at] + one[at + 2] + gap for at in range(2))
