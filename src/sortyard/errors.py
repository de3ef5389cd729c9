"""Errors that are the user's to mend: printed as one message, without a traceback."""


class InputError(ValueError):
    """What the user gave cannot be used; the message names the field or file, what was expected and what to do."""
