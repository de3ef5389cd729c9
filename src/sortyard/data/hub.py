"""Streaming data sets from the Hugging Face hub; every failure is one sentence."""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from sortyard.errors import InputError, first_line


def stream_hub(name: str, *, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Stream the rows of a hub data set; nothing is read before the first one is asked for.

    Raises:
        InputError: the hub cannot be reached, has no such data set, configuration or split, or breaks off.
    """
    from datasets import load_dataset

    if not _host_is_known():
        raise _unreadable(name, "the hub's address cannot be looked up")
    num_rows = 0
    try:
        for row in load_dataset(name, config, split=split, streaming=True):
            num_rows += 1
            yield row
    except Exception as error:  # what the hub's client raises without a network is no common class
        if num_rows:
            raise InputError(
                f"{name} ({split}): the hub broke off after {num_rows:,} rows; when the network is back, run the same "
                f"again, or download the data set and give its files: {first_line(error)}"
            ) from error
        raise _unreadable(name, first_line(error)) from error


def _host_is_known() -> bool:
    """Look the hub up before its client does, which would try again for half a minute."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if constants.HF_HUB_OFFLINE or getproxies() or host is None:
        return True
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _unreadable(name: str, reason: str) -> InputError:
    return InputError(
        f"{name}: there is no such file or folder here, and as a hub data set it cannot be read "
        f"(no network, or no such data set, configuration or split): {reason}"
    )
