"""What has to be run for the claims: commands of sortyard, each with a folder of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_NAMES = {"work": "WORK", "encoder": "ENCODER", "glue": "GLUE", "novels": "NOVELS"}


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Such as C3/balanced; also its folder below the work folder.
        words: The verb and its arguments; {work}, {encoder}, {glue} and {novels} stand for the user's places.
        minutes: About how long it takes: of one core, or of the machine where it runs `alone`.
        makes_folder: Whether the command takes its folder as --out.
        resumes: Whether a folder that was begun goes on by `sortyard resume`.
        alone: Whether nothing may run beside it: it measures time, or fills the machine.
        needs: Names of the steps whose results it reads.
    """

    name: str
    words: tuple[str, ...]
    minutes: float
    makes_folder: bool = True
    resumes: bool = False
    alone: bool = False
    needs: tuple[str, ...] = ()

    @property
    def claim(self) -> str:
        """The claim that it is for; "" for what several need."""
        head = self.name.partition("/")[0]
        return head if head.startswith("C") else ""

    def is_begun(self, work: Path) -> bool:
        """Whether there is a folder that goes on by `sortyard resume`."""
        return self.resumes and (work / self.name / "resolved.yaml").is_file()

    def command(self, places: Mapping[str, Path]) -> list[str]:
        """Return the words to run, without `sortyard`.

        Args:
            places: The work folder and the user's other places, by name.
        """
        folder = places["work"] / self.name
        if self.is_begun(places["work"]):
            return ["resume", str(folder), "-q"]
        placed = [_put(word, {name: str(path) for name, path in places.items()}) for word in self.words]
        return [*placed, *(["--out", str(folder)] if self.makes_folder else []), "-q"]

    def shown(self) -> str:
        """Return the command as results keep it, without a place of this machine."""
        words = [_put(word, _NAMES) for word in self.words]
        return " ".join(["sortyard", *words, *([f"--out WORK/{self.name}"] if self.makes_folder else [])])


def _put(word: str, places: Mapping[str, str]) -> str:
    for name, place in places.items():
        word = word.replace(f"{{{name}}}", place)
    return word


def wanted(steps: Sequence[Step], claims: Sequence[str]) -> list[Step]:
    """The steps of some claims with what they need, in the order of running: alone before beside, long before short."""
    by_name = {step.name: step for step in steps}
    chosen: dict[str, None] = {}

    def take(step: Step) -> None:
        for name in step.needs:
            take(by_name[name])
        chosen[step.name] = None

    for step in sorted(steps, key=lambda step: (not step.alone, -step.minutes)):
        if step.claim in claims:
            take(step)
    return [by_name[name] for name in chosen]
