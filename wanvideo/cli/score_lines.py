"""A score in words."""

from __future__ import annotations

from ..quality.identity import SAME_PERSON
from ..quality.score import NO_SYNCNET, STEADY_DELTA_E, Score
from ..quality.sync import IN_SYNC_CORRELATION, IN_SYNC_FRAMES, Sync
from ..quality.syncnet import SyncNetScore


def describe(score: Score) -> str:
    """The score in words, a line for each question."""
    missed = [f"SyncNet: not measured: {score.syncnet_note}"] if score.syncnet_note not in ("", NO_SYNCNET) else []
    return "\n".join((*_sync_lines(score), *missed, _identity_line(score), *_color_lines(score)))


def _sync_lines(score: Score) -> list[str]:
    if not score.syncs:
        return [f"in sync: not measured: {score.sync_note}"]
    if len(score.syncs) == 1:
        return [*_lines_of(score.syncs[0]), *map(_syncnet_line, score.syncnets)]
    names = [f"person {number}: " for number in range(1, len(score.syncs) + 1)]
    lines = [name + line for name, sync in zip(names, score.syncs, strict=True) for line in _lines_of(sync)]
    lines += [name + _syncnet_line(near) for name, near in zip(names, score.syncnets, strict=False)]
    follows = ", ".join(f"sound {sound} by person {face + 1}" for sound, face in enumerate(score.followed_by, 1))
    return [*lines, f"each their own sound: {'NO' if score.is_swapped else 'yes'}; followed best: {follows}"]


def _lines_of(sync: Sync) -> list[str]:
    answer = "yes" if sync.is_in_sync else "NO"
    rest = "yes" if sync.is_shut_in_silence else "NO"
    lines = [
        f"in sync: {answer}; {_lag(sync)}, correlation {sync.correlation:.2f} "
        f"(good: up to {IN_SYNC_FRAMES:g} frames, from {IN_SYNC_CORRELATION:g}); faces in {sync.faces:.0%} of frames",
    ]
    if not sync.silent_s:
        return [*lines, "shut in silence: nobody is silent"]
    degrees = f"{sync.open_in_silence:.0%} open there, {sync.open_in_speech:.0%} in speech"
    return [*lines, f"shut in silence: {rest}; {degrees} ({sync.silent_s:.1f} s of silence by {sync.activity})"]


def _syncnet_line(near: SyncNetScore) -> str:
    return f"SyncNet: {_lag(near)}, confidence {near.confidence:.3f}, distance {near.distance:.3f}"


def _lag(sync: Sync | SyncNetScore) -> str:
    side = "late" if sync.lag_s > 0 else "early"
    lag = f"mouth {abs(sync.lag_frames):.1f} frames {side}" if sync.lag_s else "mouth on time"
    return f"{lag} ({sync.lag_s * 1000:+.0f} ms)"


def _identity_line(score: Score) -> str:
    if (identity := score.identity) is None:
        return f"same person: not measured: {score.identity_note}"
    against = "the reference" if identity.is_against_reference else "the first face"
    seen = [(cosine, second) for second, cosine in enumerate(identity.cosines) if cosine is not None]
    least, second = min(seen)
    return (
        f"same person: {'yes' if identity.is_one_person else 'NO'}; cosine to {against} down to {least:.3f} at second "
        f"{second}, distance up to {identity.most:.2f} (good: up to {SAME_PERSON:g}); faces in {len(seen)} of "
        f"{len(identity.cosines)} seconds"
    )


def _color_lines(score: Score) -> list[str]:
    colors = score.colors
    against = "the reference" if colors.is_against_reference else "the first second"
    worst = colors.starts_s[colors.delta_e.index(colors.most)]
    answer = "yes" if colors.is_steady else "NO"
    ratio = min(colors.sharpness) / max(colors.sharpness[0], 1e-9)
    return [
        f"colors steady: {answer}; up to {colors.most:.1f} from {against} (good: up to {STEADY_DELTA_E:g}), "
        f"most at second {worst:.0f}; sharpness down to x{ratio:.2f}"
    ]
