"""One page in one language: components, and what each button asks of the studio."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from html import escape
from typing import Any
from urllib.parse import quote

import gradio as gr
import numpy as np

from ..audio.voices import VOICES
from ..errors import TalkError
from ..presets import preset_names
from ..request import NEGATIVE_PROMPT
from ..video.picture import load_picture
from ..video.reader import open_frames
from .form import BOXES, FILES, MASKS, MOST_PEOPLE, NO_REGIONS, SCHEDULERS, TEXT, Form, Knobs
from .queue import ENDED, WAITING, Task
from .studio import Studio
from .texts import ENGLISH, Texts
from .uploads import PICTURES, SOUNDS, VIDEOS

VIDEO_ROUTE = "talk/video"
FIRST_VOICES = ("af_heart", "am_adam", "bf_emma")
POLL_S = 1.0
PICTURE, MOVING = "picture", "video"
SIZES = ("infinitetalk-480", "infinitetalk-720")
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
IN_ORDER = PRIVATE | {"trigger_mode": "always_last"}  # an answer never comes after that to a later change
PREPARE = {"concurrency_id": "prepare", "concurrency_limit": 1}  # speech is made by one at a time


class Page:
    """Builds the components in the Blocks that are open, and connects them."""

    def __init__(self, studio: Studio, texts: Texts) -> None:
        self.studio, self.texts = studio, texts
        gr.Navbar(main_page_name=ENGLISH.language)
        gr.Markdown(f"# {texts.title}\n{texts.intro}")
        self.task = gr.BrowserState("", storage_key="talking-video-task")
        self.last = gr.State("")
        with gr.Row():
            with gr.Column():
                self.fields = [*self._reference(), *self._speech(), *self._numbers()]
            with gr.Column():
                self._result()
        self._runs()
        self._connect()

    def _reference(self) -> list[Any]:
        say = self.texts
        kind = gr.Radio([(say.picture, PICTURE), (say.video, MOVING)], value=PICTURE, label=say.reference_kind)
        picture = gr.File(label=say.picture, file_types=list(PICTURES), type="filepath", height=110, elem_id="picture")
        video = gr.File(label=say.video, file_types=list(VIDEOS), type="filepath", height=110, visible=False)
        prompt = gr.Textbox(label=say.prompt, lines=2, max_length=5000, elem_id="prompt")
        regions = gr.Radio(
            [(say.no_regions, NO_REGIONS), (say.boxes, BOXES), (say.masks, MASKS)],
            value=NO_REGIONS,
            label=say.regions,
            info=say.paint_hint,
        )
        layers = [say.person.format(number) for number in range(1, MOST_PEOPLE + 1)]
        painted = gr.ImageEditor(
            label=say.paint, type="numpy", sources=(), transforms=(), visible=False,
            layers=gr.LayerOptions(allow_additional_layers=False, layers=layers), format="png",
            brush=gr.Brush(default_size=40, colors=["#ff3b30", "#34c759", "#0a84ff"], color_mode="fixed"),
            elem_id="painted",
        )  # fmt: skip
        kind.change(
            lambda kind: (gr.update(visible=kind == PICTURE), gr.update(visible=kind == MOVING)), kind,
            [picture, video], **PRIVATE,
        )  # fmt: skip
        gr.on([regions.change, picture.change, video.change], self._canvas, [regions, kind, picture, video], painted,
              **IN_ORDER)  # fmt: skip
        return [kind, picture, video, prompt, regions, painted]

    def _canvas(self, regions: str, kind: str, picture: str | None, video: str | None) -> Any:
        """The picture, or a video's first frame, to paint on."""
        reference, kinds = (picture, PICTURES) if kind == PICTURE else (video, VIDEOS)
        if regions == NO_REGIONS or reference is None:
            return gr.update(visible=False)
        kept = self._answer(lambda: self.studio.uploads.keep(reference, kinds, self.texts.reference_kind))
        frame = self._answer(lambda: _first_frame(kept))
        return gr.update(visible=True, value={"background": frame, "layers": [], "composite": None})

    def _speech(self) -> list[Any]:
        say = self.texts
        people = gr.Radio(list(range(1, MOST_PEOPLE + 1)), value=1, label=say.people, elem_id="people")
        speech = gr.Radio([(say.files, FILES), (say.spoken, TEXT)], value=FILES, label=say.speech)
        placement = gr.Radio(
            [(say.together, "para"), (say.in_turn, "add")], value="add", label=say.placement, visible=False
        )
        sounds = [
            gr.File(label=say.sound.format(number), file_types=list(SOUNDS), type="filepath", height=110,
                    visible=number == 1, elem_id=f"sound-{number}")
            for number in range(1, MOST_PEOPLE + 1)
        ]  # fmt: skip
        text = gr.Textbox(label=say.text, info=say.text_hint, lines=3, max_length=20_000, visible=False)
        voices = [
            gr.Dropdown(list(VOICES), value=FIRST_VOICES[number - 1], label=say.voice.format(number), visible=False)
            for number in range(1, MOST_PEOPLE + 1)
        ]

        def arrange(people: int, speech: str) -> list[Any]:
            spoken = speech == TEXT
            updates = [gr.update(visible=not spoken and people > 1)]
            updates += [gr.update(visible=not spoken and index < people) for index in range(MOST_PEOPLE)]
            updates += [gr.update(visible=spoken)]
            return updates + [gr.update(visible=spoken and index < people) for index in range(MOST_PEOPLE)]

        gr.on([people.change, speech.change], arrange, [people, speech], [placement, *sounds, text, *voices],
              **IN_ORDER)  # fmt: skip
        return [people, speech, placement, *sounds, text, *voices]

    def _numbers(self) -> list[Any]:
        say = self.texts
        preset = gr.Dropdown([(say.no_preset, ""), *preset_names()], value="", label=say.preset, elem_id="preset")
        with gr.Accordion(say.advanced, open=False):
            gr.Markdown(say.advanced_hint)
            with gr.Row():
                size = gr.Dropdown([(say.as_preset, ""), *SIZES], value="", label=say.size, allow_custom_value=True)
                scheduler = gr.Dropdown([(say.as_preset, ""), *SCHEDULERS], value="", label=say.scheduler)
            numbers = []
            for labels in ((say.seconds, say.steps, say.seed), (say.text_guide, say.audio_guide, say.shift),
                           (say.motion, say.color)):  # fmt: skip
                with gr.Row():
                    numbers += [gr.Number(value=None, label=label, min_width=120) for label in labels]
            teacache = gr.Checkbox(value=False, label=say.teacache)
            negative = gr.Textbox(value=NEGATIVE_PROMPT, label=say.negative_prompt, lines=2, max_length=5000)
        return [preset, size, scheduler, *numbers, teacache, negative]

    def _result(self) -> None:
        say = self.texts
        with gr.Row():
            self.plan_button = gr.Button(say.plan, elem_id="plan")
            self.run_button = gr.Button(say.run, variant="primary", elem_id="run")
            self.cancel_button = gr.Button(say.cancel, variant="stop", interactive=False, elem_id="cancel")
        self.planned = gr.Textbox(label=say.plan, lines=4, interactive=False, visible=False, elem_id="planned")
        self.status = gr.HTML(f"<p>{say.no_task}</p>", elem_id="status")
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
        self.plan_button.click(self._plan, self.fields, self.planned, **PRIVATE, **PREPARE)
        self.run_button.click(self._run, self.fields, self.task, **PRIVATE, **PREPARE)
        self.cancel_button.click(self.studio.queue.cancel, self.task, None, **PRIVATE)
        self.watch_button.click(lambda name: self._player(name, 0), self.chosen, self.video, **PRIVATE)
        self.resume_button.click(self._resume, self.chosen, self.task, **PRIVATE)
        self.refresh_button.click(self._list, None, listing, **PRIVATE)
        gr.on([gr.context.Context.root_block.load], self._list, None, listing, **PRIVATE)
        gr.Timer(POLL_S).tick(
            self._poll, [self.task, self.last],
            [self.last, self.status, self.video, self.cancel_button, *listing],
            show_progress="hidden", concurrency_limit=None, **PRIVATE,
        )  # fmt: skip

    def _plan(self, *values: Any) -> Any:
        return gr.update(value=self._answer(lambda: self.studio.plan(_form(values))), visible=True)

    def _run(self, *values: Any) -> str:
        return self._answer(lambda: self.studio.submit(_form(values))).id

    def _resume(self, name: str) -> str:
        return self._answer(lambda: self.studio.resume(name or "")).id

    def _list(self) -> tuple[str, Any]:
        say, runs = self.texts, self.studio.runs()
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

    def _poll(self, name: str, last: str) -> tuple[Any, ...]:
        """What changed since the last time; nothing where nothing did."""
        task = self.studio.queue.find(name or "")
        if task is None:
            return tuple(gr.skip() for _ in range(6))
        run = self.studio.run_of(task) if task.state != WAITING else None
        now = f"{task.id} {task.state} {task.window} {run}"
        bar = f"<progress style='width:100%' max='{task.num_steps or 1}' value='{task.step}'></progress>"
        status = f"<p>{self._status(task)}</p>{bar}"
        button = gr.update(interactive=task.state not in ENDED)
        if now == last:
            return last, status, gr.skip(), button, gr.skip(), gr.skip()
        version = 10**6 if task.output else task.window
        video = self._player(run, version) if run else gr.skip()
        return now, status, video, button, *self._list()

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
        parts += [escape(task.message)] if task.message else []
        parts += [escape(task.output.name)] if task.output else []
        return " · ".join(parts)

    def _player(self, name: str, version: int) -> str:
        self._answer(lambda: self.studio.video_of(name or ""))
        source = f"{VIDEO_ROUTE}/{quote(name)}?v={version}"
        return f'<video controls preload="auto" style="width:100%;max-height:600px" src="{source}"></video>'

    def _answer(self, ask: Callable[[], Any]) -> Any:
        """What it gives; what it refuses is shown until the user closes it."""
        try:
            return ask()
        except TalkError as error:
            raise gr.Error(escape(str(error)), duration=None, title=self.texts.wrong) from None


def _form(values: tuple[Any, ...]) -> Form:
    """The values of `Page.fields`, in their order."""
    kind, picture, video, prompt, regions, painted, people, speech, placement, *rest = values
    sounds, text, voices = rest[:MOST_PEOPLE], rest[MOST_PEOPLE], rest[MOST_PEOPLE + 1 : 2 * MOST_PEOPLE + 1]
    preset, size, scheduler, seconds, steps, seed, text_guide, audio_guide, shift, motion, color, teacache, negative = (
        rest[2 * MOST_PEOPLE + 1 :]
    )
    layers = (painted or {}).get("layers") or []
    return Form(
        reference=(picture if kind == PICTURE else video) or "", prompt=prompt or "", sounds=tuple(sounds[:people]),
        speech=speech, text=text or "", voices=tuple(voices[:people]), audio_type=placement, regions=regions,
        painted=tuple(np.asarray(layer)[..., -1] for layer in layers), preset=preset or None, negative_prompt=negative,
        knobs=Knobs(
            size or None, seconds, steps, seed, text_guide, audio_guide, shift, scheduler or None, motion,
            teacache or None, color,
        ),
    )  # fmt: skip


def _first_frame(path: str) -> np.ndarray:
    if not path.endswith(VIDEOS):
        return load_picture(path)
    with closing(open_frames(path)) as frames:
        return frames.frame_at(0.0)
