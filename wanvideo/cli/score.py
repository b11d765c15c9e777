"""`score`: does the mouth of a video go with its sound, does it rest in silence, is it one person of steady colors."""

from __future__ import annotations

from pathlib import Path

from .. import checks
from ..errors import UnsupportedError
from .parser import Parser


def build_parser() -> Parser:
    parser = Parser("python -m wanvideo score", description=__doc__)
    parser.add_argument("video", help="what was made")
    parser.add_argument(
        "--reference", help="picture that colors and face are compared with; the first second if not given"
    )
    parser.add_argument(
        "--audio", nargs="+", default=[], help="sound of each speaker, from the left; the video's own if not given"
    )
    parser.add_argument(
        "--syncnet", help="file of SyncNet (syncnet_v2.model of its authors), which then measures the lag as well"
    )
    parser.add_argument("--out", help="folder of NAME.score.json and its plot; that of the video if not given")
    return parser


def main(argv: list[str]) -> int:
    """Measure, write JSON and a plot, and say it; 0 whatever the answers are."""
    flags = build_parser().parse_args(argv)

    from ..checkpoints.load import load_syncnet  # here: flags are judged before PyTorch is loaded
    from ..quality.identity import DlibVector, FaceVector
    from ..quality.lips import LipOpening, MeshLips
    from ..quality.score import save_score, score_video
    from .score_lines import describe

    video = Path(checks.path("VIDEO", flags.video)).expanduser()
    lips: LipOpening | str
    recognizer: FaceVector | str
    try:
        lips = MeshLips()
    except UnsupportedError as error:
        lips = str(error)
    try:
        recognizer = DlibVector()
    except UnsupportedError as error:
        recognizer = str(error)
    syncnet = None if flags.syncnet is None else load_syncnet(checks.path("--syncnet", flags.syncnet))
    score = score_video(video, lips, flags.reference, flags.audio, recognizer, syncnet)
    folder = video.parent if flags.out is None else Path(checks.path("--out", flags.out)).expanduser()
    written = save_score(score, folder / f"{video.stem}.score.json")
    print(describe(score))
    print("\n".join(map(str, written)))
    return 0
