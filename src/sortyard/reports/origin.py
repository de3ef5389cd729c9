"""What a model was made from, as its folder and its run remember it."""

from pathlib import Path

from sortyard.interop.hub_names import fault_of
from sortyard.reports.run_data import Record, read_json
from sortyard.runs.folder import UPCYCLING

SCRATCH = "scratch"


def base_model(folder: Path) -> str | None:
    """Find the model of the hub that a model comes from, through fine-tuning, adapting and upcycling.

    Args:
        folder: The model's folder.

    Returns:
        The name on the hub; None for a model that was trained from nothing, or where a folder is all that is known.

    Raises:
        InputError: An account on the way is damaged.
    """
    place, seen = folder.resolve(), set[Path]()
    while place not in seen:
        seen.add(place)
        start = _start_of(place)
        if start is None:
            return None
        if not Path(start).is_absolute():  # runs remember folders by their absolute paths
            return start if fault_of(start) is None else None
        place = Path(start)
    return None


def upcycling_account(folder: Path) -> Record:
    """Read what upcycling wrote beside a model; empty where it did not."""
    return read_json(folder / UPCYCLING)


def _start_of(folder: Path) -> str | None:
    account = upcycling_account(folder)
    if account:
        return account.get("base_model")
    start = read_json(folder.parent / "job.json").get("start") if folder.name == "model" else None
    return start if isinstance(start, str) and start != SCRATCH else None
