"""Text becomes a track for each person: who speaks when, with which voice, and files that a run can go on with."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.pack import load_pack
from support.speech import RATE, ToneVoice, install_kokoro

from wanvideo.audio.kokoro_voice import KokoroVoice, sentences
from wanvideo.audio.tts import InstalledVoices, speak, turns
from wanvideo.audio.voices import LANGUAGES, VOICES, language_of
from wanvideo.engine.spoken import is_spoken, spoken_files, spoken_job
from wanvideo.errors import InputError, OutputError, TalkError, UnsupportedError
from wanvideo.job import MOST_VOICES, TextToSpeak, parse_speech
from wanvideo.request import MAX_SPEAKERS, TalkRequest

TWO = TextToSpeak("(s1) Good morning.(s2)Hello! (S1) How are you? （s2） Well.", ("af_heart", "zm_yunxi"))


def test_turns_are_told_apart_and_one_person_needs_none():
    assert list(turns(TWO)) == [(0, "Good morning."), (1, "Hello!"), (0, "How are you?"), (1, "Well.")]
    assert list(turns(TextToSpeak("Good (surely) morning.", ("af_heart",)))) == [(0, "Good (surely) morning.")]
    assert list(turns(TextToSpeak("(s1) One. (s1) Two.", ("af_heart",)))) == [(0, "One."), (0, "Two.")]


@pytest.mark.parametrize(
    ("text", "voices", "message"),
    [
        ("", 1, "is empty"), ("(s1) (s2)", 2, "is empty"), ("(s1) Hi. (s3) Ho.", 2, r"\(s3\).*without a voice"),
        ("(s0) Hi.", 1, r"\(s0\)"), ("Hi. (s1) Ho.", 2, "begins with 'Hi.', which nobody says"),
    ],
)  # fmt: skip
def test_turns_that_nobody_can_say_are_refused(text, voices, message):
    with pytest.raises(InputError, match=message):
        list(turns(TextToSpeak(text, VOICES[:voices])))


def test_everybody_is_exactly_silent_while_others_speak():
    voice = ToneVoice()
    dialogue = speak(TWO, voice)
    assert voice.asked == [
        ("Good morning.", "af_heart", "a"), ("Hello!", "zm_yunxi", "z"), ("How are you?", "af_heart", "a"),
        ("Well.", "zm_yunxi", "z"),
    ]  # fmt: skip
    first, second = dialogue.tracks
    turns_of = np.cumsum([0, *(RATE // 20 * len(text) for text, *_ in voice.asked)])
    assert len(first) == len(second) == turns_of[-1] and dialogue.rate == RATE
    for index, (start, stop) in enumerate(zip(turns_of, turns_of[1:], strict=False)):
        speaking, silent = (second, first) if index % 2 else (first, second)
        assert not silent[start:stop].any() and speaking[start:stop].any()
    assert np.array_equal(dialogue.whole, first + second)
    again = [voice.speak(text, name, language_of(name))[0] for text, name, _ in voice.asked[:4]]
    assert np.array_equal(dialogue.whole, np.concatenate(again))


def test_who_says_nothing_has_no_track_and_wrong_voices_are_refused_before_anybody_speaks():
    voice = ToneVoice()
    assert speak(TextToSpeak("(s1) Hi.", VOICES[:2]), voice).tracks[1] is None
    with pytest.raises(InputError, match="voice 'af_hart' is not known. Did you mean 'af_heart'"):
        speak(TextToSpeak("(s1) Hi. (s2) Ho.", ("af_heart", "af_hart")), voice)
    assert len(voice.asked) == 1


def test_files_hold_the_tracks_and_are_made_once(tmp_path):
    voice = ToneVoice()
    assert not is_spoken(TWO, tmp_path)
    files = spoken_files(TWO, tmp_path, voice)
    assert is_spoken(TWO, tmp_path) and spoken_files(TWO, tmp_path, voice) == files and len(voice.asked) == 4
    tracks = [soundfile.read(file, dtype="int16")[0].astype(int) for file in files]
    whole = soundfile.read(tmp_path / files[0].replace("s1.wav", "sum.wav"), dtype="int16")[0]
    assert np.array_equal(tracks[0] + tracks[1], whole) and not (tracks[0] * tracks[1]).any()
    assert spoken_files(TextToSpeak("(s2) Hi.", VOICES[:2]), tmp_path, voice)[0] is None
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        spoken_files(TWO, tmp_path / "file", voice)


def test_a_job_of_the_reference_becomes_one_with_sounds(tmp_path):
    speech = {
        "text": "(s1) Hi. (s2) Ho.",
        "human1_voice": "weights/Kokoro-82M/voices/am_adam.pt",
        "human2_voice": "af_heart",
    }
    job = {"prompt": "They talk.", "cond_video": "two.png", "cond_audio": {}, "tts_audio": speech, "bbox": None}
    spoken = spoken_job(job, tmp_path, ToneVoice())
    request = TalkRequest.from_job(spoken)
    assert [speaker.audio.rsplit("/", 1)[1] for speaker in request.speakers] == ["s1.wav", "s2.wav"]
    assert request.audio_type == "para" and "tts_audio" not in spoken and job["cond_audio"] == {}
    with pytest.raises(InputError, match="--audio_mode tts"):
        TalkRequest.from_job(job)
    assert len(TalkRequest.from_job({**job, "cond_audio": {"person1": "a.wav"}}).speakers) == 1


@pytest.mark.parametrize(
    ("speech", "message"),
    [
        (None, "needs \"tts_audio\""), ("Hi", "needs \"tts_audio\""), ({"human1_voice": "af_heart"}, "no text"),
        ({"text": "Hi"}, "no \"human1_voice\""), ({"text": "Hi", "human2_voice": "af_heart"}, "no \"human1_voice\""),
        ({"text": "Hi", "human1_voice": 3}, "human1_voice"), ({"text": "Hi", "voice": "af_heart"}, "key 'voice'"),
        ({"text": "x" * 20_001, "human1_voice": "af_heart"}, "20001 characters"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_text_names_its_key(speech, message):
    with pytest.raises(InputError, match=message):
        parse_speech({"tts_audio": speech})


def test_there_is_a_voice_for_every_person_that_a_request_may_have():
    assert MOST_VOICES == MAX_SPEAKERS
    assert len(VOICES) == len(set(VOICES)) == 54 + 2 * 21 and all(language.voices for language in LANGUAGES)
    assert all(voice in language_of(voice).voices for voice in VOICES)
    assert language_of("somewhere/zf_mine.pt").code == "z"
    for voice in ("mine.pt", "espeak_de_f.pt", "espeak_xx_f"):
        with pytest.raises(InputError, match=f"voice '{voice}'"):
            language_of(voice)


@pytest.mark.parametrize("most", [20, 80])
@pytest.mark.parametrize(
    "text", ["One. Two! Three? " * 9, "今天天气很好，我们去公园散步吧。" * 7, "字" * 300, "a, b c\n\nd."]
)
def test_long_text_is_cut_where_it_pauses_and_nothing_is_lost(text, most):
    pieces = list(sentences(text, most))
    assert all(0 < len(piece) <= most for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert list(sentences(text, 0)) == [text.strip()]


def test_kokoro_speaks_each_language_with_one_model(monkeypatch, tmp_path):
    asked = install_kokoro(monkeypatch)
    monkeypatch.chdir(tmp_path)
    voice = KokoroVoice("cpu")
    samples, rate = voice.speak("Hello.", "af_heart", language_of("af_heart"))
    assert samples.dtype == np.float32 and rate == RATE and samples.std() > 0.1
    again, _ = voice.speak("Hello.", "af_heart", language_of("af_heart"))
    assert np.array_equal(samples, again), "the vocoder's noise is the same every time"
    voice.speak("你好。" * 100, "zf_xiaoyi", language_of("zf_xiaoyi"))
    assert asked.pipelines == ["a", "z"] and asked.models == [("hexgrad/Kokoro-82M", None, None)]
    assert [len(piece) <= 80 for piece, _ in asked.spoken[2:]] == [True] * 4


def test_kokoro_s_files_are_found_where_the_reference_has_them(monkeypatch, tmp_path):
    asked = install_kokoro(monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "weights" / "Kokoro-82M"
    (folder / "voices").mkdir(parents=True)
    for name in ("config.json", "kokoro-v1_0.pth"):
        (folder / name).write_text("")
    styles = torch.randn(510, 1, 256)
    torch.save(styles, folder / "voices" / "am_adam.pt")
    for name in ("am_adam", "weights/Kokoro-82M/voices/am_adam.pt"):
        KokoroVoice("cpu").speak("Hi.", name, language_of(name))
    assert asked.models == [(
        "hexgrad/Kokoro-82M", "weights/Kokoro-82M/config.json", "weights/Kokoro-82M/kokoro-v1_0.pth"
    )] * 2  # fmt: skip
    assert len(asked.spoken) == 2 and all(torch.equal(voice, styles) for _, voice in asked.spoken)
    KokoroVoice("cpu").speak("Hi.", "gone/af_sky.pt", language_of("af_sky"))
    assert asked.spoken[-1][1] == "af_sky", "a file that is not here, of a voice that Kokoro has"
    with pytest.raises(InputError, match="no voice file mine/af_me.pt"):
        KokoroVoice("cpu").speak("Hi.", "mine/af_me.pt", language_of("mine/af_me.pt"))


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_voice_s_file_is_read_as_models_are(monkeypatch, tmp_path):
    asked = install_kokoro(monkeypatch)
    files = {
        "am_evil": (Evil(tmp_path / "ran"), "holds more than tensors"),
        "am_model": ({"a": torch.zeros(1)}, "holds named tensors"),
        "am_short": (torch.zeros(9, 1, 256), r"holds \[9, 1, 256\], and a voice of Kokoro \[510, 1, 256\]"),
    }
    for name, (content, message) in files.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(TalkError, match=message):
            KokoroVoice("cpu").speak("Hi.", str(tmp_path / f"{name}.pt"), language_of(f"{name}.pt"))
    assert not asked.models and not (tmp_path / "ran").exists()


def test_what_kokoro_cannot_do_is_one_answer(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = install_kokoro(monkeypatch)
    monkeypatch.setattr("kokoro.KModel.to", lambda *_: (_ for _ in ()).throw(SystemExit("no network")))
    with pytest.raises(UnsupportedError, match=r"could not speak American English \(SystemExit: no network\)"):
        KokoroVoice("cpu").speak("Hi.", "af_heart", language_of("af_heart"))
    assert not asked.spoken


def without(monkeypatch, *packages):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *at: None if name in packages else find(name, *at))


def test_without_the_packages_one_sentence_says_so(monkeypatch):
    without(monkeypatch, "kokoro", "espeakng_loader")
    voices = InstalledVoices()
    with pytest.raises(UnsupportedError, match="Kokoro, which is not installed. Run pip install kokoro, or choose"):
        voices.speak("Hi.", "af_heart", language_of("af_heart"))
    with pytest.raises(UnsupportedError, match="eSpeak, which is not installed. Run pip install espeakng-loader.$"):
        voices.speak("Hi.", "espeak_de_f", language_of("espeak_de_f"))


def test_the_node_gives_a_track_for_each_person_and_the_whole(monkeypatch):
    install_kokoro(monkeypatch)
    node = load_pack().NODE_CLASS_MAPPINGS["WanVideoTextToSpeech"]
    first, second, third, whole = (audio["waveform"] for audio in node().process("(s1) Hello. (s2) Good morning."))
    assert first.shape == second.shape == whole.shape == (1, 1, len("Hello.Good morning.") * RATE // 20)
    assert torch.equal(first + second, whole) and not third.any() and first.any() and second.any()
    alone = node().process("Hello (there).")
    assert torch.equal(alone[0]["waveform"], alone[3]["waveform"]) and alone[0]["sample_rate"] == RATE
    assert node.VALIDATE_INPUTS("(s1) Hi.", "af_heart", "am_adam", "bf_emma") is True
    without(monkeypatch, "kokoro")
    assert "pip install kokoro" in node.VALIDATE_INPUTS("(s1) Hi.", "af_heart", "espeak_es_m", "bf_emma")
    assert node.VALIDATE_INPUTS("(s2) Hi.", "af_heart", "espeak_es_m", "bf_emma") is True
    assert "without a voice" in node.VALIDATE_INPUTS("(s4) Hi.", "af_heart", "am_adam", "bf_emma")
    assert "not offered" in node.VALIDATE_INPUTS("Hi.", "nobody", "am_adam", "bf_emma")
