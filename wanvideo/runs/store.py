"""A run folder while it is written: a sink of frames, and a store of what the next window begins with.

In the folder, from the first window on:

    manifest.json           what decides the frames, the plan, the progress; the only file that says what counts
    growing.mp4             all finished windows, playable with sound at every moment
    drift.jsonl             what was measured of them, a line each
    state_000012.safetensors  with which window 12 begins, of the last finished window only
    .lock                   owned by the process that writes

A window passes through four steps, each on the disk before the next one begins: its frames are appended to
growing.mp4; its state gets a file of a new name; its measures are appended to drift.jsonl; the manifest, replaced in
one step, names that state, and how many windows and bytes of growing.mp4 count. So whenever a process ends, the
manifest describes files that are there, and a window costs as much to write as any before it. What lies behind is of a
window that was not finished; its frames can be played, and whoever goes on cuts them off and samples them again from
the state. Encoding begins anew with every window and the sound's encoder at the video's start, so that the
file's bytes do not depend on interruptions either.

After the last window the packets of growing.mp4 are copied, with the original sound, into video.mp4; drift.png shows
the windows' measures; the manifest names the video; growing.mp4 and the state go away. The name that a user asked for,
or that of the run (see runs.names), is another link to video.mp4, and where a file system has no links the file moves
there: its bytes exist once.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..durable import discard, sync_folder, write_atomically
from ..errors import OutputError
from ..quality.drift import WindowMeasures, draw
from ..video.part import VideoPart, cause_of
from ..video.soundtrack import Soundtrack
from ..video.writer import publish, with_sound
from . import measured
from .lock import FolderLock
from .manifest import NAME, STATE, Manifest, Progress
from .names import is_same, video_name

GROWING, VIDEO, DRIFT = "growing.mp4", "video.mp4", "drift.png"
_WRITTEN_ASIDE = "|".join((STATE.pattern, *map(re.escape, (NAME, DRIFT, measured.NAME))))
PASSING = re.compile(  # names of files that are there before a manifest or come and go, and those of durable and writer
    rf"{re.escape(GROWING)}|{re.escape(measured.NAME)}|{STATE.pattern}|\.({_WRITTEN_ASIDE})\.tmp-[0-9a-f]{{6}}"
    r"|\.video\.[a-z]+-[0-9a-f]{6}\.mp4"
)
logger = logging.getLogger("wanvideo")


class Run:
    """One run that this process writes. `write`, then `commit`, for each window; `close` or `abandon` at the end.

    Args:
        folder: of the run; made if it is not there.
        manifest: what is made. soundtrack: the sound of the video, or None.
        goes_on: from where the folder's own manifest says that it is.
        beginning: the folder of a finished run, with a tail, whose windows up to there may be this one's too; the
            folder has no manifest until a window of its own is there.
    Raises: OutputError when it cannot be written, another process writes it, or its files are not what it says.
    """

    def __init__(
        self, folder: str | Path, manifest: Manifest, soundtrack: Soundtrack | None, *, goes_on: bool = False,
        beginning: Path | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.manifest, self.soundtrack = Path(folder), manifest, soundtrack
        self.is_extended = False  # of other sound than its windows; nothing is written until that is found to be alike
        self._part: VideoPart | None = None
        with _answered(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder.parent)
            self._lock = FolderLock(self.folder)
        try:
            if goes_on:  # read only now that nobody else writes it
                found = Manifest.read(self.folder)
                if found.video is not None and found.finished_file(self.folder) is None:
                    raise OutputError(f"The video of {self.folder} is not there any more. Start it again.")
                self.manifest = replace(
                    manifest, progress=found.progress, video=found.video, seed=found.seed, tail=found.tail,
                    output=manifest.output or found.own_output(self.folder),
                )  # fmt: skip
                self.is_extended = dict(found.sound) != dict(manifest.sound)
            if self.video is None:
                self._part = self._open_part()
            if beginning is not None:
                self._begin_with(beginning)
            with _answered(self.folder):
                if beginning is None:
                    measured.take(self.folder, self.folder, self.manifest.progress.num_windows)
                    if not goes_on:
                        self._replace(self.manifest)
                self._forget_rest()
        except BaseException:
            if self._part is not None:
                self._part.close()
            self._leave(is_kept=(self.folder / NAME).exists())
            raise

    @property
    def growing(self) -> Path:
        """The file that can be played while the run is not finished."""
        return self.folder / GROWING

    @property
    def video(self) -> Path | None:
        """The finished file; None before."""
        return None if self.manifest.video is None else self.folder / self.manifest.video

    @property
    def state(self) -> bytes | None:
        """What the next window begins with; None for the first one. Raises: OutputError when it cannot be read."""
        name = self.manifest.progress.state
        if not name:
            return None
        with _answered(self.folder):
            return (self.folder / name).read_bytes()

    @property
    def measures(self) -> tuple[WindowMeasures, ...]:
        """What was measured of the windows that are there. Raises: OutputError when it is damaged."""
        return measured.read(self.folder, self.manifest.progress.num_windows)

    def write(self, frames: Tensor) -> None:
        """Append a window's frames, [F, H, W, 3] uint8; they can be played, and count once they are committed."""
        assert self._part is not None, "the run is finished"
        self._part.write(frames)

    def commit(self, state: bytes, speech: str, measures: WindowMeasures) -> None:
        """The window that was written counts.

        Args: state: what the next one begins with. speech: as of `Progress`. measures: of this window.
        """
        assert self._part is not None, "the run is finished"
        before, position = self.manifest.progress, self._part.position
        name = f"state_{before.num_windows + 1:06}.safetensors"
        with _answered(self.folder, self._part.num_frames):
            write_atomically(self.folder / name, state)
            measured.append(self.folder, measures)
            progress = Progress(before.num_windows + 1, position.num_frames, position.num_bytes, name, speech)
            now = self.manifest.at(progress)
            if now.can_grow and now.is_complete and before.state:
                self._replace(replace(now, tail=before))
                return
            self._replace(now)
            if before.state:
                discard(self.folder / before.state)

    def close(self) -> Path:
        """Finish the video; the folder then holds it once, and the manifest. Returns: its path."""
        try:
            if self._part is not None:
                self._finish(self._part)
        finally:
            self._part = None
            self._lock.release()
        assert self.video is not None
        return self.video

    def abandon(self) -> None:
        """Stop; what was written stays, can be played and be gone on with. What has no frames goes away.

        Files in the folder that no run writes stay in any case.
        """
        is_kept = True
        if self._part is not None:
            self._part.close()
            is_kept = self._part.num_frames > 0 and (self.folder / NAME).exists()
            if is_kept:
                logger.warning(
                    "The video was not finished. Its first %d frames are in %s; the same request goes on from there.",
                    self._part.num_frames, self.growing,
                )  # fmt: skip
            self._part = None
        self._leave(is_kept)

    def _leave(self, is_kept: bool) -> None:
        with contextlib.suppress(OSError):
            try:
                if not is_kept:
                    remove_own(self.folder)
            finally:
                self._lock.release()
            if not is_kept:
                self.folder.rmdir()

    def save_as(self, path: Path | None = None, overwrite: bool = False) -> Path:
        """Give the finished video another name, without another copy of its bytes.

        Args: path: that is asked for; None: what was asked for when the run was begun, else, or where the folder of
            that is not there any more, the name of the run.
        Returns: the name: a free one beside it if that is taken.
        """
        assert self.video is not None, "the run is not finished"
        own = video_name(self.folder)
        named = None if self.manifest.output is None else Path(self.manifest.output)
        earlier = [own] if named is None or not named.parent.is_dir() else [named, own]
        if path is None:
            found = next((name for name in earlier if is_same(name, self.video)), None)
            if found is not None:
                return found
            path = earlier[0]
        try:
            self._call(path)  # before that name is there, so that it is known whose it is whenever this process ends
            saved = publish(self.video, path, overwrite)
            self._call(saved)
            if not self.video.exists():
                self._replace(replace(self.manifest, video=str(saved.absolute())))
        except OSError as error:
            raise OutputError(
                f"{cause_of(error)} for {path}. Choose another name; the finished video is {self.video}"
            ) from None
        if saved.name != own.name:
            logger.info("%s is the video of the run in %s.", saved, self.folder)
        return saved

    def _call(self, path: Path) -> None:
        """Note which name the video has."""
        if Manifest.read(self.folder).output != (output := str(path.absolute())):
            self._replace(replace(self.manifest, output=output))

    def _finish(self, part: VideoPart) -> None:
        part.close()
        with_sound(self.growing, self.folder / VIDEO, part.rate, audio=self.soundtrack, overwrite=True)
        with _answered(self.folder):
            if len(measures := self.measures) > 1:
                write_atomically(self.folder / DRIFT, draw(measures))
            self._replace(replace(self.manifest.at(replace(self.manifest.progress, state="")), video=VIDEO))
            self._forget_rest()

    def _begin_with(self, folder: Path) -> None:
        assert self._part is not None
        found = Manifest.read(folder)
        video = found.finished_file(folder)
        if found.tail is None or video is None:
            raise OutputError(f"The video of {folder} is not there any more. Start it again.")
        with _answered(folder):
            state = (folder / found.tail.state).read_bytes()
        self._part.copy_from(video, found.tail.num_frames)
        with _answered(self.folder):
            write_atomically(self.folder / found.tail.state, state)
            measured.take(folder, self.folder, found.tail.num_windows)
        progress = replace(found.tail, num_bytes=self._part.position.num_bytes)
        self.manifest, self.is_extended = replace(self.manifest.at(progress), seed=found.seed), True

    def _open_part(self) -> VideoPart:
        plan, progress = self.manifest.plan, self.manifest.progress
        return VideoPart(
            self.growing, plan.width, plan.height, plan.fps, plan.crf, audio=self.soundtrack,
            num_frames=plan.num_frames, position=progress.position if progress.num_windows else None,
        )  # fmt: skip

    def _replace(self, manifest: Manifest) -> None:
        manifest.write(self.folder)
        self.manifest = manifest

    def _forget_rest(self) -> None:
        """Files of a process that ended between two steps."""
        tail = self.manifest.tail
        keep = {
            VIDEO if self.video else GROWING,
            self.manifest.progress.state,
            tail.state if tail else "",
            measured.NAME,
        }
        for file in self.folder.iterdir():
            if (PASSING.fullmatch(file.name) or file.name == VIDEO) and file.name not in keep:
                discard(file)


def own_files(folder: Path) -> list[Path]:
    """What runs write in a folder, but for the lock."""
    return [file for file in folder.iterdir() if PASSING.fullmatch(file.name) or file.name in {VIDEO, DRIFT, NAME}]


def remove_own(folder: Path) -> None:
    """Delete what runs write in a folder, whose lock the caller holds and then releases. Raises: OSError."""
    for file in own_files(folder):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _answered(folder: Path, num_frames: int | None = None) -> Iterator[None]:
    """Raises: OutputError for an OSError. Args: num_frames: of the growing file, where they are worth a word."""
    try:
        yield
    except FileNotFoundError:
        raise OutputError(
            f"{folder} is not complete: it, or a file in it, was removed or moved while it was needed.\n"
            "Ask for the same video where the folder is now, which goes on; where it was removed, begin the video anew."
        ) from None
    except OSError as error:
        frames = "" if num_frames is None else f" The {num_frames} frames so far can be played: {folder / GROWING}"
        raise OutputError(f"{cause_of(error)} in {folder}.{frames}") from None
