"""What a study of several sides asks of its cases and its sides, so that one code budgets and times them all."""

from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from sortyard.studies.bench.runner import Call

Json = dict[str, Any]


@runtime_checkable
class SizedCase(Protocol):
    """One measured situation; those of a line differ in length alone."""

    @property
    def line(self) -> str:
        """What it has in common with the others of its line."""

    @property
    def key(self) -> str:
        """The cell's name in a result: the line, a slash and the length."""

    @property
    def length(self) -> int:
        """Tokens."""

    @property
    def device(self) -> str:
        """Where it runs."""

    def at(self, length: int, /) -> Self:
        """Return the same at another length."""

    def fields(self) -> Json:
        """Return what the case is made from, as JSON values."""


CaseT_contra = TypeVar("CaseT_contra", bound=SizedCase, contravariant=True)


@runtime_checkable
class Competitor(Protocol[CaseT_contra]):
    """One side of a comparison."""

    @property
    def name(self) -> str:
        """Its name in results."""

    @property
    def note(self) -> str:
        """What it is, in words."""

    @property
    def time_power(self) -> float:
        """Seconds grow at most as this power of the length."""

    @property
    def memory_power(self) -> float:
        """Memory grows at most as this power of the length."""

    @property
    def needs_warmup(self) -> bool:
        """Whether a first call does more than the others, so that it never counts."""

    def unfit(self, case: CaseT_contra, /) -> str:
        """Say why a case cannot be measured with it; empty where it can."""

    def least_bytes(self, case: CaseT_contra, /) -> int:
        """Return what a call needs for certain."""

    def call(self, case: CaseT_contra, /) -> Call:
        """Return its work in a case, on inputs made here."""

    def facts(self, case: CaseT_contra, /) -> Json:
        """Return what its record says besides time and memory."""
