"""Errors that are the user's to mend: printed as one message, without a traceback."""


class InputError(ValueError):
    """What the user gave cannot be used; the message names the field or file, what was expected and what to do."""


class LostProcessError(RuntimeError):
    """Another process of the run is gone or does not answer: exit status 1, without a traceback."""


def first_line(error: BaseException) -> str:
    """Write an error of a library in one line: the first of its message, or its kind where it has none."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__
