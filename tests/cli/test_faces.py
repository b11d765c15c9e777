"""Faces, mouths and persons as real networks see them, where their packages are installed: `score` and `plan`.

Run them with: pip install "mediapipe<0.10.22" dlib-bin face_recognition_models (the first wants a Python below 3.13).
"""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from support import faces, jobs
from support.faces import OTHER, SPEECH

from wanvideo.cli import plan, score
from wanvideo.quality.faces import CHEEKS, EYES, Face, FaceMesh, doubts
from wanvideo.quality.identity import DlibVector
from wanvideo.quality.lips import MeshLips
from wanvideo.quality.score import score_video

SIZE = (480, 832)
PICTURES = {"drawing": faces.drawing, "photograph": faces.photograph}


@pytest.fixture(scope="module")
def lips():
    pytest.importorskip("mediapipe.python.solutions.face_mesh", reason="the optional package mediapipe finds faces")
    return MeshLips()


@pytest.fixture(scope="module")
def recognizer():
    pytest.importorskip("dlib", reason="the optional package dlib-bin recognizes faces")
    return DlibVector()


@pytest.mark.parametrize("shift", [0.0, 0.04, -0.04, 0.12])
@pytest.mark.parametrize("kind", PICTURES)
def test_shifts_of_40_ms_are_found_within_a_frame(lips, tmp_path, kind, shift):
    video = faces.video(tmp_path / "a.mp4", PICTURES[kind], faces.openings(SPEECH, shift))
    (sync,) = score_video(video, lips, audios=[SPEECH]).syncs
    assert abs(sync.lag_s - shift) <= 0.04 and sync.faces > 0.95, sync
    assert sync.correlation > 0.5 and sync.is_in_sync == (abs(shift) <= 0.08), sync


def test_another_sound_is_told(lips, tmp_path):
    video = faces.video(tmp_path / "a.mp4", faces.drawing, faces.openings(SPEECH))
    right, wrong = (score_video(video, lips, audios=[sound]).syncs[0] for sound in (SPEECH, OTHER))
    assert right.is_in_sync and wrong.correlation < right.correlation - 0.3


@pytest.mark.parametrize("is_swapped", [False, True])
def test_swapped_speakers_are_told(lips, tmp_path, capsys, monkeypatch, is_swapped):
    def both(left, right):
        return faces.beside(faces.drawing(left), faces.drawing(right))

    video = faces.video(tmp_path / "a.mp4", both, faces.openings(SPEECH), faces.openings(OTHER))
    sounds = [OTHER, SPEECH] if is_swapped else [SPEECH, OTHER]
    monkeypatch.setattr("wanvideo.quality.lips.MeshLips", lambda: lips)
    assert score.main([str(video), "--audio", *map(str, sounds)]) == 0
    saved = json.loads((tmp_path / "a.score.json").read_text())
    assert saved["is_swapped"] is is_swapped and saved["followed_by"] == ([1, 0] if is_swapped else [0, 1])
    assert f"each their own sound: {'NO' if is_swapped else 'yes'}" in capsys.readouterr().out


def test_changed_colors_are_told_and_the_mouth_still_followed(lips, tmp_path):
    video = faces.video(tmp_path / "a.mp4", faces.drawing, faces.openings(SPEECH), tint=(1, 0.85, 0.7))
    found = score_video(video, lips, audios=[SPEECH])
    assert found.syncs[0].is_in_sync and not found.colors.is_steady


def test_another_person_is_told(recognizer, tmp_path):
    same = faces.video(tmp_path / "a.mp4", faces.photograph, np.linspace(0, 1, 75), tint=(1, 0.95, 0.9))
    found = score_video(same, "", recognizer=recognizer).identity
    assert found.is_one_person and min(found.cosines) > 0.95, found
    against = score_video(same, "", faces.ASSETS / "portrait.jpg", recognizer=recognizer).identity
    assert against.is_against_reference and not against.is_one_person, against
    Image.new("RGB", (96, 96)).save(tmp_path / "nobody.png")
    blank = score_video(same, "", tmp_path / "nobody.png", recognizer=recognizer)
    assert blank.identity is None and blank.identity_note == "no face is found in the reference"
    nobody = faces.video(tmp_path / "b.mp4", lambda wide: np.full((96, 96, 3), 90, np.uint8), [0, 0])
    blank = score_video(nobody, "", recognizer=recognizer)
    assert blank.identity is None and blank.identity_note == "no frame has a face"


def test_what_will_not_work_is_told(lips):
    mesh, drawn = FaceMesh(), faces.drawing()
    (face,) = mesh.search(drawn)
    assert doubts([face], drawn.shape[:2], None, 1) == [] and face.yaw < 20 and 150 < face.width < 330
    small = np.full_like(drawn, 120)
    small[200:280, 300:440] = np.asarray(Image.fromarray(drawn).resize((140, 80), Image.Resampling.BICUBIC))
    assert "too small for a mouth" in doubts(mesh.search(small), small.shape[:2], None, 1)[0]
    assert "No face is found" in doubts(mesh.search(np.full_like(drawn, 120)), drawn.shape[:2], None, 1)[0]
    two = mesh.search(np.asarray(Image.open(faces.ASSETS / "two_people.jpg").convert("RGB")))
    assert len(two) == 2 and "2 faces and one speaker" in doubts(two, SIZE, None, 1)[0]
    halves = np.zeros((2, *SIZE), bool)
    halves[0, :, :416] = halves[1, :, 416:] = True
    assert doubts(two, SIZE, halves, 2) == []
    assert "No face is found in the region of speaker 2" in doubts(two[:1], SIZE, halves, 2)[0]
    assert "2 faces are in the region of speaker 1" in doubts(two, SIZE, np.ones((1, *SIZE), bool), 2)[0]


def test_photographs_that_will_not_work_are_told(lips):
    data = pytest.importorskip("skimage.data", reason="the optional package scikit-image brings photographs")
    mesh, head = FaceMesh(), faces.photograph()
    assert doubts(mesh.search(head), head.shape[:2], None, 1) == []
    man = np.repeat(data.camera()[..., None], 3, 2)  # looks through his camera, from the side
    for size in (512, 640, 832):
        picture = np.asarray(Image.fromarray(man).resize((size, size), Image.Resampling.BICUBIC))
        (profile,) = doubts(mesh.search(picture), (size, size), None, 1)
        assert "The face is turned by" in profile and "half of its mouth is hidden" in profile
    small = np.full((480, 832, 3), 120, np.uint8)
    small[150:300, 300:450] = np.asarray(Image.fromarray(head).resize((150, 150), Image.Resampling.BICUBIC))
    assert "too small for a mouth" in doubts(mesh.search(small), small.shape[:2], None, 1)[0]
    assert (
        "2 faces and one speaker" in doubts(mesh.search(pair := faces.beside(head, head)), pair.shape[:2], None, 1)[0]
    )
    for nobody in (data.chelsea(), data.coffee()):
        assert "No face is found" in doubts(mesh.search(nobody), nobody.shape[:2], None, 1)[0]


def planned(folder, sounds):
    job = {"prompt": "She talks.", "cond_image": str(faces.ASSETS / "two_people.jpg"), "cond_audio": sounds,
           "audio_type": "para"}  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    files = jobs.official_files("multi")
    flags = ["--input_json", str(folder / "job.json"), "--ckpt_dir", files.transformer, "--infinitetalk_dir",
             files.adapter, "--wav2vec_dir", files.wav2vec, "--size", "832x480", "--device", "cpu"]  # fmt: skip
    return plan.main(flags)


def test_plan_says_it(lips, tmp_path, capsys):
    assert planned(tmp_path, {"person1": str(SPEECH)}) == 0
    assert "Faces: 2 faces and one speaker: all of them may speak." in capsys.readouterr().out
    assert planned(tmp_path, {"person1": str(SPEECH), "person2": str(OTHER)}) == 0
    assert "Faces: 2, seen well." in capsys.readouterr().out


def face_of(width, yaw=0.0, roll=0.0, middle=(200, 300)):
    """A face of which only the ends of cheeks and eyes, forehead and chin are known, turned and then rolled."""
    turn, lean = np.deg2rad([yaw, roll])
    points = np.zeros((468, 3))
    for ends, size in ((CHEEKS, 1.0), (EYES, 0.6)):
        for index, side in zip(ends, (-0.5, 0.5), strict=True):
            points[index] = width * size * side * np.array([np.cos(turn), 0, np.sin(turn)])
    points[10], points[152] = (0, -0.6 * width, 0), (0, 0.6 * width, 0)
    rolled = np.array([[np.cos(lean), -np.sin(lean), 0], [np.sin(lean), np.cos(lean), 0], [0, 0, 1]])
    return Face(points @ rolled.T + (middle[1], middle[0], 0))


def test_a_profile_and_a_small_face_are_told_whoever_finds_them():
    assert doubts([face_of(200, 20)], SIZE, None, 1) == doubts([], SIZE, None, 0) == []
    (turned,) = doubts([face_of(200, -75)], SIZE, None, 1)
    assert "The face is turned by 75 degrees" in turned
    (small,) = doubts([face_of(40)], SIZE, None, 1)
    assert "The face is 40 pixels wide in the video" in small and "64 are enough" in small
    right = np.zeros((1, *SIZE), bool)
    right[0, :, 416:] = True
    assert "The face of speaker 1 is 30 pixels wide" in doubts([face_of(30, middle=(200, 600))], SIZE, right, 1)[0]


@pytest.mark.parametrize("yaw", [0, 30, -30])
@pytest.mark.parametrize(
    "roll, told",
    [(0, ""), (35, ""), (-35, ""), (50, "leans by 50"), (-90, "leans by 90"), (130, "leans by 130")],
)
def test_a_face_that_is_not_upright_is_told(roll, told, yaw):
    face = face_of(200, yaw, roll)
    assert round(face.yaw) == abs(yaw) and face.width == pytest.approx(200)
    said = doubts([face], SIZE, None, 1)
    assert len(said) == bool(told) and told in "".join(said)


def test_a_face_that_the_edge_cuts_off_is_told():
    whole, near, low = (face_of(200, middle=(row, 400)) for row in (240, 480 - 115, 480 - 100))
    assert doubts([whole], SIZE, None, 1) == doubts([near], SIZE, None, 1) == []  # 2 % of its chin
    assert [face.cut(*SIZE) for face in (whole, near, low)] == pytest.approx([0, 5 / 240, 20 / 240])
    for cut in (
        low,
        face_of(200, middle=(240, 80)),
        face_of(200, middle=(240, 832 - 80)),
        face_of(200, middle=(90, 400)),
    ):
        (said,) = doubts([cut], SIZE, None, 1)
        assert said.startswith("The face is cut off by the edge of the video.")


def test_plan_says_where_faces_cannot_be_looked_at(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions.face_mesh", None)
    assert planned(tmp_path, {"person1": str(SPEECH)}) == 0
    assert "Faces: not looked at: it needs a mediapipe" in (said := capsys.readouterr().out) and "1 window of" in said
    assert planned(tmp_path, {}) == 0 and "Faces: nobody speaks." in capsys.readouterr().out
