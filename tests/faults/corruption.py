"""Damage as disks do it."""

import random

BLOCK = 4096


def corrupt(content: bytes, *, kind: str, draw: random.Random) -> bytes:
    """A file's content with one bit flipped ("bit"), a block zeroed ("block"), or its end cut off ("truncated")."""
    damaged = bytearray(content)
    if kind == "bit":
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "block":
        begin = BLOCK * draw.randrange(-(-len(content) // BLOCK))
        damaged[begin : begin + BLOCK] = bytes(len(damaged[begin : begin + BLOCK]))
    else:
        del damaged[draw.randrange(len(content)) :]
    return bytes(damaged)
