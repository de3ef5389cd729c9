"""The model that a suite starts every run from."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sortyard.digests import files_digest
from sortyard.errors import InputError
from sortyard.jobs.folders import RUNS, is_demo, model_folder
from sortyard.jobs.loading import find_start
from sortyard.reports.run_data import read_json

Json = dict[str, Any]


@dataclass(frozen=True)
class SuiteModel:
    """A model as the user gave it.

    Attributes:
        name: Of its run or folder.
        start: What `finetune --from` takes.
        run: Its run's folder; None for a model's folder or a hub name.
        digest: Of its files; the name for a model on the hub.
    """

    name: str
    start: str
    run: Path | None
    digest: str

    @classmethod
    def find(cls, source: Path) -> "SuiteModel":
        """Find a run, a model's folder, or take the name for one on the hub.

        Raises:
            InputError: It is none of them.
        """
        if source.exists():
            path = source / "pretrain" if is_demo(source) else source
            folder = model_folder(path)
            run = path if (path / "job.json").is_file() else None
            named = path.resolve()
            name = named.parent.name if named.name == "model" else named.name  # "model" would name nothing
            files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
            return cls(name, str(folder.resolve()), run, files_digest(files))
        if str(source).startswith((str(RUNS), "~")):
            raise InputError(f"{source}: there is no such folder; give a run's folder or a Hugging Face model's")
        start = find_start(str(source))
        return cls(start, start, None, start)

    def positions(self) -> int | None:
        """The longest input that the model can take; None where it has no limit.

        Raises:
            InputError: It is no model that can get a head for classification, or has no tokenizer.
        """
        from sortyard.evaluation.batching import position_limit
        from sortyard.jobs.loading import load_start_tokenizer, start_shapes

        model = start_shapes(self.start)
        own = getattr(model.config, "max_position_embeddings", None)
        limits = [own, position_limit(model, tokenizer=load_start_tokenizer(self.start))]
        return min((limit for limit in limits if limit is not None), default=None)


def suite_folder(suite: str, *, model: SuiteModel, out: Path | None) -> Path:
    """The folder for a suite's runs: the one named, else `runs/SUITE-MODEL`."""
    return (out if out is not None else RUNS / f"{suite}-{model.name.replace('/', '-')}").expanduser().resolve()


def origin(run: Path) -> Json:
    """Today's date, and the machine and versions that a run was made with."""
    found = read_json(run / "env.json")
    kept = {name: found.get(name) for name in ("versions", "python", "platform", "machine", "commit")}
    return {"date": datetime.now(UTC).date().isoformat(), **kept}
