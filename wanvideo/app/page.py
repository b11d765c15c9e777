"""One page in one language: components, and what each button asks of the studio."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any
from urllib.parse import quote

import gradio as gr

from ..errors import TalkError
from .fields import PRIVATE, Fields
from .queue import ENDED, RUNNING, WAITING, Task
from .studio import Studio
from .texts import ENGLISH, Texts

VIDEO_ROUTE, DRIFT_ROUTE = "talk/video", "talk/drift"
POLL_S = 1.0
USER_KEY = "talking-video-user"
PREPARE = {"concurrency_id": "prepare", "concurrency_limit": 1}  # speech is made by one at a time
# A video that has grown takes the place of the one that plays, and goes on where that was.
GOES_ON = (
    'ontimeupdate="if(this.readyState>1)window.talkAt={run:this.dataset.run,at:this.currentTime,muted:this.muted,'
    'rests:this.paused&amp;&amp;!this.ended}" onpause="this.isConnected&amp;&amp;this.ontimeupdate()" '
    'onloadedmetadata="let was=window.talkAt;if(was?.run===this.dataset.run){this.muted=was.muted;'
    'this.currentTime=was.at;was.rests||this.play()}"'
)


class Page:
    """Builds the components in the Blocks that are open, and connects them."""

    def __init__(self, studio: Studio, texts: Texts) -> None:
        self.studio, self.texts = studio, texts
        gr.Navbar(main_page_name=ENGLISH.language)
        gr.Markdown(f"# {texts.title}\n{texts.intro}")
        self.task = gr.BrowserState("", storage_key="talking-video-task")
        self.user = gr.BrowserState("", storage_key=USER_KEY, secret=USER_KEY)  # the same after the server ran anew
        self.last = gr.State("")
        with gr.Row():
            with gr.Column():
                self.fields = Fields(studio, texts, self._answer)
            with gr.Column():
                self._result()
        self._runs()
        self._connect()

    def _result(self) -> None:
        say = self.texts
        with gr.Row():
            self.plan_button = gr.Button(say.plan, elem_id="plan")
            self.run_button = gr.Button(say.run, variant="primary", elem_id="run")
            self.cancel_button = gr.Button(say.cancel, variant="stop", interactive=False, elem_id="cancel")
        self.planned = gr.Textbox(label=say.plan, lines=4, interactive=False, visible=False, elem_id="planned")
        self.status = gr.HTML(f"<p data-state='none'>{say.no_task}</p>", elem_id="status")
        self.video = gr.HTML("", elem_id="video")

    def _runs(self) -> None:
        say = self.texts
        with gr.Accordion(say.runs, open=True):
            self.listed = gr.HTML(elem_id="runs")
            with gr.Row():
                self.chosen = gr.Dropdown([], label=say.chosen_run, allow_custom_value=True, elem_id="chosen")
                self.watch_button = gr.Button(say.watch, elem_id="watch")
                self.resume_button = gr.Button(say.resume, elem_id="resume")
                self.refresh_button = gr.Button(say.refresh, elem_id="refresh")

    def _connect(self) -> None:
        listing = [self.listed, self.chosen]
        self.plan_button.click(self._plan, self.fields.inputs, self.planned, **PRIVATE, **PREPARE)
        self.run_button.click(self._run, [self.user, *self.fields.inputs], self.task, **PRIVATE, **PREPARE)
        self.cancel_button.click(self.studio.queue.cancel, self.task, None, **PRIVATE)
        self.watch_button.click(
            lambda name, user: self._player(name, user, 0), [self.chosen, self.user], self.video, **PRIVATE
        )
        self.resume_button.click(self._resume, [self.chosen, self.user], self.task, **PRIVATE)
        self.refresh_button.click(self._list, self.user, listing, **PRIVATE)
        gr.on([gr.context.Context.root_block.load], self._enter, self.user, [self.user, *listing], **PRIVATE)
        gr.Timer(POLL_S).tick(
            self._poll, [self.task, self.last, self.user],
            [self.last, self.status, self.video, self.cancel_button, *listing],
            show_progress="hidden", concurrency_limit=None, **PRIVATE,
        )  # fmt: skip

    def _plan(self, *values: Any) -> Any:
        return gr.update(value=self._answer(lambda: self.studio.plan(self.fields.form(values))), visible=True)

    def _run(self, user: str, *values: Any) -> str:
        return self._answer(lambda: self.studio.submit(self.fields.form(values), user)).id

    def _resume(self, name: str, user: str) -> str:
        return self._answer(lambda: self.studio.resume(name or "", user)).id

    def _enter(self, user: str) -> tuple[str, str, Any]:
        user = self.studio.user(user)
        return user, *self._list(user)

    def _list(self, user: str) -> tuple[str, Any]:
        say, runs = self.texts, self._answer(lambda: self.studio.runs(user))
        if not runs:
            return f"<p>{say.no_runs}</p>", gr.update(choices=[], value=None)
        head = "".join(f"<th>{escape(column)}</th>" for column in say.run_columns)
        rows = [
            (
                run.name,
                say.state(run.state),
                f"{run.num_windows}/{run.of_windows}",
                f"{run.seconds:.1f}",
                run.prompt[:80],
            )
            for run in runs
        ]
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><tr>{head}</tr>{body}</table>", gr.update(choices=[run.name for run in runs])

    def _poll(self, name: str, last: str, user: str) -> tuple[Any, ...]:
        """What changed since the last time; nothing where nothing did."""
        task = self.studio.queue.find(name or "")
        if task is None or task.user != user:
            return tuple(gr.skip() for _ in range(6))
        run = self.studio.run_of(task) if task.state != WAITING else None
        now = f"{task.id} {task.state} {task.window} {run}"
        bar = f"<progress style='width:100%' max='{task.num_steps or 1}' value='{task.step}'></progress>"
        status = f"<p data-state='{task.state}'>{self._status(task)}</p>{bar}"
        button = gr.update(interactive=task.state not in ENDED)
        if now == last:
            return last, status, gr.skip(), button, gr.skip(), gr.skip()
        version = 10**6 if task.output else task.window
        video = self._player(run, user, version) if run else gr.skip()
        return now, status, video, button, *self._list(user)

    def _status(self, task: Task) -> str:
        say = self.texts
        parts = [f"<b>{say.state(task.state)}</b>"]
        if task.state == WAITING:
            parts.append(say.waits.format(self.studio.queue.num_before(task)))
        if task.step and task.state not in ENDED:
            parts.append(
                say.progress.format(task.window + 1, task.num_windows or "?", task.step, task.num_steps or "?")
            )
            if task.seconds_left is not None:
                parts.append(say.left.format(round(task.seconds_left)))
            parts.append(say.grows)
        elif task.state == RUNNING:
            parts.append(say.prepares)
        parts += [escape(task.message)] if task.message else []
        parts += [escape(task.output.name)] if task.output else []
        return " · ".join(parts)

    def _player(self, name: str, user: str, version: int) -> str:
        home = self._answer(lambda: self.studio.place(user))
        self._answer(lambda: self.studio.video_of(name or "", home))
        place, label = f"{home}/{quote(name)}" if home else quote(name), escape(name)
        player = (
            f'<video controls preload="auto" style="width:100%;max-height:600px" data-run="{label}" {GOES_ON} '
            f'src="{VIDEO_ROUTE}/{place}?v={version}"></video>'
        )
        if self.studio.drift_of(name, home) is not None:
            player += f'<figure><img style="max-width:100%" src="{DRIFT_ROUTE}/{place}?v={version}" alt="">'
            player += f"<figcaption>{escape(self.texts.drift)}</figcaption></figure>"
        return player

    def _answer(self, ask: Callable[[], Any]) -> Any:
        """What it gives; what it refuses is player until the user closes it."""
        try:
            return ask()
        except TalkError as error:
            raise gr.Error(escape(str(error)), duration=None, title=self.texts.wrong) from None
