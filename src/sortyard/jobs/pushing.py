"""A finished model to a hub: what goes, the card that goes with it, and the upload."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sortyard.errors import InputError, first_line
from sortyard.jobs.display import Display
from sortyard.jobs.folders import is_demo, model_folder
from sortyard.runs.folder import RunFolder

if TYPE_CHECKING:
    from sortyard.interop.hub_folder import HubFolder
    from sortyard.reports.card_metadata import Release

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
LOOK = "--dry-run shows what would be uploaded"


@dataclass(frozen=True)
class Parcel:
    """What is uploaded: a folder's files, and the card in place of the folder's own."""

    folder: "HubFolder"
    card: str

    def sizes(self) -> dict[str, int]:
        """Bytes by name, the card first."""
        from sortyard.interop.hub_folder import CARD

        return {CARD: len(self.card.encode()), **{name: self.folder.size_of(name) for name in self.folder.files}}

    def lay_out(self, place: Path) -> None:
        """Put links to the files, and the card, into an empty folder."""
        from sortyard.interop.hub_folder import CARD

        for name in self.folder.files:
            (place / name).symlink_to((self.folder.path / name).resolve())
        (place / CARD).write_text(self.card, encoding="utf-8")


def push_model(source: Path, *, release: "Release", private: bool, dry_run: bool, display: Display) -> dict[str, Any]:
    """Uploads a model with its card, or says what would be uploaded.

    Args:
        source: A run's folder, a demo's, or a model's.
        release: The repository as its place, and what the run does not know of the model.
        private: Whether only its owner may see the repository.
        dry_run: Whether to upload nothing; then no network is needed.
        display: Told what is being done.

    Returns:
        JSON values: the repository, every file with its size, the card, and the address of what was uploaded.

    Raises:
        InputError: The folder or a name cannot be used, nobody is logged in, or the hub cannot be reached or refuses.
    """
    _check(release)
    parcel = pack(source, release=release)
    sizes = parcel.sizes()
    address = None if dry_run else _upload(parcel, repo=release.place, private=private, display=display)
    return {
        "repo": release.place,
        "private": private,
        "dry_run": dry_run,
        "files": sizes,
        "bytes": sum(sizes.values()),
        "left_out": list(parcel.folder.left_out),
        "card": parcel.card,
        "address": address,
    }


def pack(source: Path, *, release: "Release") -> Parcel:
    """Collects what goes to the hub, and checks it.

    The card of a run is written anew, from what the run holds now; a model folder that belongs to no run keeps its own.

    Raises:
        InputError: There is no model, or something in its folder must not or cannot be uploaded.
    """
    from sortyard.interop.hub_folder import CARD, collect
    from sortyard.reports.folder_card import check_card, folder_card
    from sortyard.reports.model_card import render_model_card
    from sortyard.reports.run_data import read_run

    folder = model_folder(source)
    files = collect(folder)
    run = _run_of(source, folder=folder)
    card = render_model_card(read_run(run), release=release) if run else folder_card(folder, release=release)
    check_card(card, where=folder / CARD)
    return Parcel(files, card)


def _run_of(source: Path, *, folder: Path) -> Path | None:
    """Returns the run, or the demo with its two runs, that a model folder is the end of."""
    if folder.name != "model":
        return None
    if is_demo(source):
        return source
    run = folder.resolve().parent
    return run if RunFolder(run).resolved.is_file() else None


def _check(release: "Release") -> None:
    """Refuses names that the hub would refuse, without asking it."""
    from sortyard.interop.hub_names import fault_of

    for option, name in (("--repo", release.place), ("--base-model", release.base_model)):
        if name is not None and (fault := fault_of(name)):
            raise InputError(f"{option} {name}: is no name on the hub; write OWNER/NAME ({fault})")
    if "/" not in release.place:
        raise InputError(f"--repo {release.place}: write OWNER/NAME, with your user name or an organisation's")
    if release.license is not None and not LICENSE.fullmatch(release.license):
        raise InputError(f"--license {release.license}: write the hub's identifier, such as apache-2.0, mit or other")


def _upload(parcel: Parcel, *, repo: str, private: bool, display: Display) -> str:
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise InputError(f"HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it; {LOOK}")
    if huggingface_hub.get_token() is None:
        raise InputError(f"nobody is logged in to the hub: {LOGIN}; {LOOK}")
    api = huggingface_hub.HfApi(library_name="sortyard")
    with _explained(repo), TemporaryDirectory(prefix="sortyard-") as place:
        parcel.lay_out(Path(place))
        address = str(api.create_repo(repo, private=private or None, exist_ok=True))
        if private and not api.model_info(repo).private:
            raise InputError(f"--private: {repo} is there already and is public; choose another name or leave it out")
        display.say(f"uploading {len(parcel.folder.files) + 1} files to {address}")
        api.upload_folder(repo_id=repo, folder_path=place, commit_message="Upload a model by sortyard")
    return address


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turns what the hub's client raises without a network, or on a refusal, into one message that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise InputError(f"{repo}: nobody is logged in to the hub: {LOGIN}") from error
    except HfHubHTTPError as error:
        remedy = f"; {LOGIN}, and check the owner" if error.response.status_code in (401, 403, 404) else ""
        raise InputError(f"{repo}: the hub refuses: {first_line(error)}{remedy}") from error
    except (OfflineModeIsEnabled, ConnectionError, TimeoutError) as error:
        raise InputError(f"{repo}: the hub cannot be reached ({first_line(error)}); try again; {LOOK}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2"):  # the client's, by its version
            raise
        raise InputError(f"{repo}: the hub cannot be reached ({first_line(error)}); try again; {LOOK}") from error
