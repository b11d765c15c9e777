"""Speech that is really made: eSpeak NG, whose library and data are in its package, in every language offered."""

import numpy as np
import pytest
import soundfile
from support import jobs
from support.needed import need
from support.studio import base

from wanvideo.audio import espeak_voice
from wanvideo.audio.espeak_voice import EspeakVoice
from wanvideo.audio.tts import InstalledVoices, speak
from wanvideo.audio.voices import ESPEAK, LANGUAGES, RATE, language_of
from wanvideo.cli.main import main
from wanvideo.errors import InputError, UnsupportedError
from wanvideo.job import TextToSpeak
from wanvideo.video.reader import open_frames

need("espeakng_loader", "espeakng-loader")
PLAIN = [language for language in LANGUAGES if language.synthesizer == ESPEAK]
WORDS = {
    "cmn": "今天天气很好。", "yue": "今日天氣好好。", "ru": "Доброе утро.", "uk": "Добрий ранок.", "ar": "صباح الخير",
    "hi": "सुप्रभात।", "ko": "안녕하세요.",
}  # fmt: skip


def say(text, voice):
    return EspeakVoice().speak(text, voice, language_of(voice))


@pytest.mark.parametrize("language", PLAIN, ids=lambda language: language.code)
def test_each_language_has_a_woman_and_a_man(language):
    text = WORDS.get(language.code, "Good morning. Two, three!")
    spoken = []
    for voice in language.voices:
        samples, rate = say(text, voice)
        assert rate == RATE and samples.dtype == np.float32 and samples.ndim == 1
        assert 0.5 < len(samples) / rate < 5 and 0.02 < np.sqrt(np.mean(samples**2)) < 0.5 and abs(samples).max() <= 1.1
        spoken.append(samples)
    assert len(spoken[0]) != len(spoken[1]) or not np.allclose(*spoken)


def test_the_same_text_is_the_same_sound_and_longer_text_takes_longer():
    first, again = (say("Good morning.", "espeak_en-us_f")[0] for _ in range(2))
    assert np.array_equal(first, again)
    assert len(say("Good morning. Did you sleep well?", "espeak_en-us_f")[0]) > 1.5 * len(first)
    markup = say("[[h@l]] <b>10 %</b>", "espeak_en-us_f")[0]
    assert len(markup) > RATE, "read as it is written: neither phonemes nor markup"


def test_a_dialogue_of_two_languages_is_on_one_time_line():
    dialogue = speak(
        TextToSpeak("(s1) Buenos días. (s2) Guten Morgen.", ("espeak_es_f", "espeak_de_m")), InstalledVoices()
    )
    first, second = dialogue.tracks
    assert dialogue.rate == RATE and len(first) == len(second) and not (first * second).any()
    assert first.any() and second.any()


def test_what_cannot_be_spoken_is_one_answer(monkeypatch, tmp_path):
    for text in ("...", " \0 "):
        with pytest.raises(InputError, match="nothing that can be spoken"):
            say(text, "espeak_de_f")
    with pytest.raises(UnsupportedError, match="could not speak German .*no voice"):
        monkeypatch.setitem(espeak_voice.NAMES, "de", "none such")
        say("Guten Tag.", "espeak_de_f")
    monkeypatch.setattr("espeakng_loader.get_library_path", lambda: str(tmp_path / "gone.so"))
    with pytest.raises(UnsupportedError, match="could not speak Spanish .*gone.so.*--force-reinstall"):
        say("Hola.", "espeak_es_f")


def test_text_becomes_a_video_of_two_persons(tmp_path, monkeypatch):
    """`--audio_mode tts` from end to end, with tiny models and a voice that is really spoken."""
    monkeypatch.chdir(tmp_path)
    voices = '"human1_voice": "espeak_en-us_f", "human2_voice": "espeak_cmn_m"'
    (tmp_path / "job.json").write_text(
        f'{{"prompt": "They talk.", "cond_video": "{jobs.picture(tmp_path, 96, 48)}", "cond_audio": {{}}, '
        f'"tts_audio": {{"text": "(s1) Hi! (s2) 你好。", {voices}}}}}', encoding="utf8"
    )  # fmt: skip
    flags = [*base("multi"), "--size", "96x48", "--input_json=job.json", "--save_file=out", "--audio_mode=tts"]
    assert main(["generate", *flags]) == 0
    (sound,) = (tmp_path / "save_audio").glob("*/sum.wav")
    frames = open_frames(str(tmp_path / "out.mp4"))
    assert abs(frames.num_frames - soundfile.info(sound).duration * 25) <= 1
