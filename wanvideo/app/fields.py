"""What a user fills in on a page, and the form that it gives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ..audio.voices import KOKORO, VOICES, is_installed
from ..keep import DEFAULT_FEATHER, MAX_FEATHER, SOURCE_ENDS
from ..presets import preset_names
from ..request import NEGATIVE_PROMPT
from ..video.picture import load_picture
from ..video.reader import open_frames
from .form import (
    ALL,
    BOXES,
    FILES,
    MASKS,
    MOST_PEOPLE,
    MOUTHS,
    NO_REGIONS,
    PAINTED,
    SCHEDULERS,
    TEXT,
    Form,
    Knobs,
    Source,
)  # fmt: skip
from .studio import Studio
from .texts import Texts
from .uploads import PICTURES, SOUNDS, VIDEOS

UPLOAD_ROUTE = "talk/upload"
NATURAL, PLAIN = ("af_heart", "am_adam", "bf_emma"), ("espeak_en-us_f", "espeak_en-us_m", "espeak_en-gb_f")
PICTURE, MOVING = "picture", "video"
SIZES = ("infinitetalk-480", "infinitetalk-720")
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
IN_ORDER = PRIVATE | {"trigger_mode": "always_last"}  # an answer never comes after that to a later change


class Fields:
    """Builds the fields in the Blocks that are open.

    Args: answer: calls what it is given, and shows the user what that refuses.
    """

    def __init__(self, studio: Studio, texts: Texts, answer: Callable[[Callable[[], Any]], Any]) -> None:
        self._studio, self._texts, self._answer = studio, texts, answer
        self._named: dict[str, Any] = {}
        self._reference()
        self._speech()
        self._numbers()

    @property
    def inputs(self) -> list[Any]:
        """The components whose values `form` takes."""
        return list(self._named.values())

    def form(self, values: tuple[Any, ...]) -> Form:
        """What is filled in, by the values of `inputs`."""
        given = dict(zip(self._named, values, strict=True))
        people, is_video = given["people"], given["kind"] == MOVING
        layers = (given["painted"] or {}).get("layers") or []
        voices = [given[f"voice_{number}"] for number in range(1, people + 1)]
        sounds = [given[f"sound_{number}"] for number in range(1, people + 1)]
        source = Source(given["keep"], given["dub_feather"], given["source_end"], given["scene_seg"])
        knobs = {name: given[name] for name in Knobs.names()}
        return Form(
            reference=given["video" if is_video else "picture"] or "", prompt=given["prompt"] or "",
            sounds=tuple(sounds), speech=given["speech"], text=given["text"] or "", voices=tuple(voices),
            audio_type=given["placement"], regions=given["regions"],
            painted=tuple(np.asarray(layer)[..., -1] for layer in layers), preset=given["preset"] or None,
            negative_prompt=given["negative_prompt"], source=source if is_video else Source(),
            knobs=Knobs(**{name: None if value is False or value == "" else value for name, value in knobs.items()}),
        )  # fmt: skip

    def _reference(self) -> None:
        say, add = self._texts, self._named
        kind = gr.Radio([(say.picture, PICTURE), (say.video, MOVING)], value=PICTURE, label=say.reference_kind,
                        elem_id="kind")  # fmt: skip
        picture = gr.File(label=say.picture, file_types=list(PICTURES), type="filepath", height=110, elem_id="picture")
        video = gr.File(label=say.video, file_types=list(VIDEOS), type="filepath", height=110, visible=False,
                        elem_id="source")  # fmt: skip
        seen = gr.HTML("", elem_id="seen", visible=False)
        add |= {"kind": kind, "picture": picture, "video": video}
        add["prompt"] = gr.Textbox(label=say.prompt, lines=2, max_length=5000, elem_id="prompt")
        with gr.Group(visible=False) as source:
            add["keep"] = gr.Radio(
                [(say.all_new, ALL), (say.mouths, MOUTHS), (say.painted_only, PAINTED)], value=ALL, label=say.keep,
                info=say.keep_hint, elem_id="keep",
            )  # fmt: skip
            with gr.Row():
                ends = list(zip(say.source_ends, SOURCE_ENDS, strict=True))
                add["source_end"] = gr.Dropdown(ends, value=SOURCE_ENDS[0], label=say.source_end)
                add["dub_feather"] = gr.Slider(0, MAX_FEATHER, DEFAULT_FEATHER, step=1, label=say.feather)
                add["scene_seg"] = gr.Checkbox(value=False, label=say.scenes, elem_id="scenes")
        regions = gr.Radio(
            [(say.no_regions, NO_REGIONS), (say.boxes, BOXES), (say.masks, MASKS)], value=NO_REGIONS,
            label=say.regions, elem_id="regions",
        )  # fmt: skip
        hint = gr.Markdown(say.paint_hint, visible=False)
        layers = [say.person.format(number) for number in range(1, MOST_PEOPLE + 1)]
        painted = gr.ImageEditor(
            label=say.paint, type="numpy", sources=(), transforms=(), visible=False,
            layers=gr.LayerOptions(allow_additional_layers=False, layers=layers), format="png",
            brush=gr.Brush(default_size=40, colors=["#ff3b30", "#34c759", "#0a84ff"], color_mode="fixed"),
            elem_id="painted",
        )  # fmt: skip
        add |= {"regions": regions, "painted": painted}
        asked = [kind, picture, video]
        kind.change(lambda kind: [gr.update(visible=(kind == MOVING) is moving) for moving in (False, True, True)],
                    kind, [picture, video, source], **PRIVATE)  # fmt: skip
        asked += [regions, add["keep"]]
        gr.on([part.change for part in asked], self._reference_changed, asked, [seen, painted, hint], **IN_ORDER)

    def _kept(self, kind: str, picture: str | None, video: str | None) -> str | None:
        """The store's path of the reference that is chosen."""
        reference, kinds = (picture, PICTURES) if kind == PICTURE else (video, VIDEOS)
        if reference is None:
            return None
        return self._answer(lambda: self._studio.uploads.keep(reference, kinds, self._texts.reference_kind))

    def _reference_changed(self, kind: str, picture: str | None, video: str | None, regions: str, keep: str) -> Any:
        """What is seen of the reference: itself, or something to paint on, which is a video's first frame."""
        is_painted = regions != NO_REGIONS or (kind == MOVING and keep == PAINTED)
        hidden, kept = gr.update(visible=False), self._kept(kind, picture, video)
        if kept is None:
            return gr.update(visible=False, value=""), hidden, gr.update(visible=is_painted)
        if is_painted:
            frame = self._answer(lambda: _first_frame(kept))
            canvas = gr.update(visible=True, value={"background": frame, "layers": [], "composite": None})
            return hidden, canvas, gr.update(visible=True)
        source = f'src="{UPLOAD_ROUTE}/{Path(kept).name}" style="max-width:100%;max-height:260px;margin:auto"'
        preview = f"<img {source} alt=''>" if kind == PICTURE else f"<video controls muted {source}></video>"
        return gr.update(visible=True, value=preview), hidden, hidden

    def _speech(self) -> None:
        say, numbers = self._texts, range(1, MOST_PEOPLE + 1)
        people = gr.Radio(list(numbers), value=1, label=say.people, elem_id="people")
        speech = gr.Radio([(say.files, FILES), (say.spoken, TEXT)], value=FILES, label=say.speech, elem_id="speech")
        placement = gr.Radio(
            [(say.together, "para"), (say.in_turn, "add")], value="add", label=say.placement, visible=False
        )
        sounds, played = {}, []
        for number in numbers:
            name, is_first = f"sound_{number}", number == 1
            sounds[name] = gr.File(label=say.sound.format(number), file_types=list(SOUNDS), type="filepath",
                                   height=110, visible=is_first, elem_id=f"sound-{number}")  # fmt: skip
            played.append(gr.HTML("", visible=False, elem_id=f"played-{number}"))
            sounds[name].change(self._play, sounds[name], played[-1], **IN_ORDER)
        text = gr.Textbox(label=say.text, info=say.text_hint, lines=3, max_length=20_000, visible=False, elem_id="text")
        first = NATURAL if is_installed(KOKORO) else PLAIN
        voices = {
            f"voice_{number}": gr.Dropdown(list(VOICES), value=first[number - 1], label=say.voice.format(number),
                                           visible=False, elem_id=f"voice-{number}")
            for number in numbers
        }  # fmt: skip

        def arrange(people: int, speech: str) -> list[Any]:
            spoken = speech == TEXT
            updates = [gr.update(visible=not spoken and people > 1)]
            updates += [gr.update(visible=not spoken and index < people) for index in range(MOST_PEOPLE)] * 2
            updates += [gr.update(visible=spoken)]
            return updates + [gr.update(visible=spoken and index < people) for index in range(MOST_PEOPLE)]

        changed = [placement, *sounds.values(), *played, text, *voices.values()]
        gr.on([people.change, speech.change], arrange, [people, speech], changed, **IN_ORDER)
        self._named |= {"people": people, "speech": speech, "placement": placement, **sounds, "text": text, **voices}

    def _play(self, sound: str | None) -> Any:
        if sound is None:
            return gr.update(value="", visible=False)
        kept = self._answer(lambda: self._studio.uploads.keep(sound, SOUNDS, self._texts.files))
        player = f'<audio controls preload="none" style="width:100%" src="{UPLOAD_ROUTE}/{Path(kept).name}"></audio>'
        return gr.update(value=player, visible=True)

    def _numbers(self) -> None:
        say, add = self._texts, self._named
        add["preset"] = gr.Dropdown(
            [(say.no_preset, ""), *preset_names()], value="", label=say.preset, elem_id="preset"
        )
        with gr.Accordion(say.advanced, open=False, elem_id="advanced"):
            gr.Markdown(say.advanced_hint)
            with gr.Row():
                empty = (say.as_preset, "")
                add["size"] = gr.Dropdown([empty, *SIZES], value="", label=say.size, allow_custom_value=True)
                add["scheduler"] = gr.Dropdown([empty, *SCHEDULERS], value="", label=say.scheduler)
            rows = (
                ("seconds", "sample_steps", "base_seed"),
                ("sample_text_guide_scale", "sample_audio_guide_scale", "sample_shift"),
                ("frame_num", "motion_frame", "color_correction_strength"),
            )
            labels = iter((say.seconds, say.steps, say.seed, say.text_guide, say.audio_guide, say.shift, say.window,
                           say.motion, say.color))  # fmt: skip
            for names in rows:
                with gr.Row():
                    for name in names:
                        add[name] = gr.Number(value=None, label=next(labels), min_width=120, elem_id=name)
            with gr.Row():
                add["use_teacache"] = gr.Checkbox(value=False, label=say.teacache)
                add["use_apg"] = gr.Checkbox(value=False, label=say.apg)
                add["voice_activity"] = gr.Checkbox(value=False, label=say.rest)
            add["negative_prompt"] = gr.Textbox(
                value=NEGATIVE_PROMPT, label=say.negative_prompt, lines=2, max_length=5000
            )


def _first_frame(path: str) -> np.ndarray:
    if not path.endswith(VIDEOS):
        return load_picture(path)
    with closing(open_frames(path)) as frames:
        return frames.frame_at(0.0)
