"""Errors a user can act on.

Every message says what is wrong with the value, where it is, what is allowed and what to do, in at most three lines.
Anything else that escapes the library is a defect of the library.
"""


class TalkError(ValueError):
    """Base of every error that the user can mend."""


class InputError(TalkError):
    """A picture, sound, mask, size, number or job file is not usable as it is."""


class CheckpointError(TalkError):
    """A model file is missing, damaged, of another kind, or does not fit its neighbor."""


class OutputError(TalkError):
    """The result cannot be written where it was asked for."""


class ResumeError(OutputError):
    """What an earlier process wrote cannot become what is asked for now; a new folder can."""


class UnsupportedError(TalkError):
    """This build or this machine cannot do what was asked; the message names the nearest thing it can do."""
