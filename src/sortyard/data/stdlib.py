"""Prose that every Python brings along: the docstrings and comments of its own standard library.

It needs no network and no download. Other Python versions have somewhat other modules, so figures on it hold for one
version.
"""

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

STDLIB = "stdlib"  # the source by this name in recipes, where there is no file or folder of this name

_MIN_CHARACTERS = 40
_LEFT_OUT = ("site-packages", "dist-packages", "__pycache__")
_TOPICS = "pydoc_data.topics"
_STRING_OR_COMMENT = re.compile(
    r"""(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|(?P<comment>\#[^\n]*))""",
    re.DOTALL,
)


class Part(NamedTuple):
    """One piece of prose: what it is, and its text with its line breaks."""

    kind: Literal["docstring", "comment", "reference"]
    text: str


@dataclass(frozen=True)
class StdlibDocument:
    """The prose of one module.

    Attributes:
        module: its dotted name.
        parts: docstrings, comment blocks and pages of the language reference, in the order of the file.
    """

    module: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The parts as paragraphs of one text."""
        return "\n\n".join(part.text for part in self.parts)


def stdlib_corpus() -> Iterator[StdlibDocument]:
    """Iterate over the modules of the running Python's standard library that hold prose, sorted by path.

    About 4.5 MB on Python 3.11 in 9 s; 1.4 MB of them are the test suites, which some distributions leave out. The
    language reference that `help()` prints comes as one document. Files that this Python cannot parse give their
    comments only.
    """
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if any(part in _LEFT_OUT for part in relative.parts):
            continue
        names = relative.with_suffix("").parts
        module = ".".join(names[:-1] if names[-1] == "__init__" else names)
        parts = tuple(_prose(path, module))
        if parts:
            yield StdlibDocument(module, parts)


def _prose(path: Path, module: str) -> Iterator[Part]:
    try:
        source = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return
    comments = ((line, Part("comment", text)) for line, text in _comments(source))
    for _, part in sorted([*comments, *_parsed(source, topics=module == _TOPICS)]):
        cleaned = part.text.strip()
        if len(cleaned) >= _MIN_CHARACTERS and _is_prose(cleaned):
            yield Part(part.kind, cleaned)


def _parsed(source: str, *, topics: bool) -> Iterator[tuple[int, Part]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for line, text in _docstrings(tree):
        yield line, Part("docstring", text)
    if topics:
        for line, text in _topics(tree):
            yield line, Part("reference", text)


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[int, str]]:
    text = ast.get_docstring(node)
    if text:
        yield node.body[0].lineno, text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child)


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Join comment lines that follow each other; a # inside a string is no comment."""
    block: list[str] = []
    first, last, scanned, line = 0, 0, 0, 1
    for match in _STRING_OR_COMMENT.finditer(source):
        comment = match["comment"]
        if comment is None:
            continue
        line += source.count("\n", scanned, match.start())
        scanned = match.start()
        if block and line != last + 1:
            yield first, "\n".join(block)
            block = []
        if source[source.rfind("\n", 0, scanned) + 1 : scanned].strip():
            continue  # a remark behind code
        first = first if block else line
        block.append(comment.lstrip("#!").strip())
        last = line
    if block:
        yield first, "\n".join(block)


def _topics(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.lineno, value.value


def _is_prose(text: str) -> bool:
    """Tell sentences from commented-out code, rulers and tables by the share of letters and spaces."""
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters >= 0.75 * len(text) and text.count(" ") >= 5
