"""The tensors and the state of a run together: restored from its checkpoints, saved to them, finished with."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import torch

from sortyard.errors import InputError
from sortyard.objectives.total import Objective
from sortyard.parallel.compiling import release_layers
from sortyard.parallel.mesh import num_processes
from sortyard.parallel.watch import NoWatch
from sortyard.runs.environment import finds_gpu
from sortyard.runs.folder import RunFolder
from sortyard.training.checkpoint import Checkpoint, CheckpointStore, Snapshot
from sortyard.training.metrics import peak_memory_bytes
from sortyard.training.optimizer import load_optimizer_tensors, optimizer_tensors
from sortyard.training.options import LoopOptions
from sortyard.training.pieces import Piece
from sortyard.training.precision import Precision
from sortyard.training.state import TrainState
from sortyard.training.step import Stepper
from sortyard.training.weights import export_model, has_weights, load_model_tensors, model_tensors


def prepare_device(options: LoopOptions) -> torch.device:
    """The device to train on, after setting torch's number of threads.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch sees no GPU here: set device to cpu or auto")
    return torch.device("cuda" if finds_gpu(options.device) else "cpu")


def numerics(device: torch.device) -> dict[str, str | int]:
    """What bit-exact results depend on besides the recipe: torch's version, threads, the device, how many processes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": name,
        "processes": num_processes(),
    }


@dataclass
class Session:
    """A run in memory.

    Args:
        model: the model in training.
        optimizer: over its parameters.
        precision: holds the loss scale.
        store: the run's checkpoints.
        state: where the run stands.
        notes: what the person should know about a restored run.
        watch: of the processes of a run, told what this one is about to do.
        recipe: digest of the recipe that the run goes on with.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    precision: Precision
    store: CheckpointStore
    state: TrainState = field(default_factory=TrainState)
    notes: list[str] = field(default_factory=list)
    watch: NoWatch = field(default_factory=NoWatch)
    recipe: str = ""

    @property
    def share(self) -> tuple[int, int]:
        """Which share of every micro-batch's rows is this process's, and of how many."""
        return 0, 1

    def stepper(self, *, objective: Objective, max_grad_norm: float, lr: Callable[[int], float], seed: int) -> Stepper:
        """What takes the run's steps; see `Stepper`."""
        kind, model = self._in_training()
        return kind(
            model,
            objective=objective,
            optimizer=self.optimizer,
            precision=self.precision,
            max_grad_norm=max_grad_norm,
            lr=lr,
            seed=seed,
        )

    def _in_training(self) -> tuple[type[Stepper], Any]:
        """What takes steps, and with what."""
        return Stepper, self.model

    def agree(self, *, seconds: float, signal: int) -> tuple[float, int, int]:
        """A step's time, the signal that came meanwhile, 0 for none, and the peak of memory: the same on all processes.

        Of several, each is the highest of all.
        """
        return seconds, signal, peak_memory_bytes(self.precision.device)

    def measure(self, evaluate: Callable[[Any], dict[str, float]]) -> dict[str, float]:
        """What an evaluation says of the model, which it gets in evaluation mode and without gradients."""
        self.model.eval()
        with torch.no_grad():
            metrics = evaluate(self.model)
        self.model.train()
        return metrics

    def gather_whole(self) -> None:
        """Bring the weights as they are into `model`."""

    def restore(self, run: RunFolder) -> bool:
        """Continue from the newest good checkpoint; False when there is none.

        Raises:
            InputError: every checkpoint is damaged, the newest good one does not fit the model or the recipe, or a run
                that finished has none.
        """
        accepted = [sha256(text.encode()).hexdigest() for text in run.accepted_recipes()]
        self.recipe = accepted[-1] if accepted else ""
        self.store.prepare()
        checkpoint = self.store.load_newest()
        if checkpoint is None:
            if ends := run.finishes():
                raise InputError(
                    f"{run.path}: finished at step {ends[-1]}, and its checkpoints are gone, so nothing can be gone on "
                    "with; its model, if it is there, is done"
                )
            return False
        if accepted and checkpoint.state.get("recipe", self.recipe) not in accepted:
            raise InputError(
                f"{checkpoint.folder}: was written under a recipe that {run.path} never had, so it is of another run; "
                "move it away, or resume the run that it is of"
            )
        self._load(checkpoint)
        self.precision.load_state(checkpoint.state["loss_scale"])
        self.state = TrainState.from_json(checkpoint.state["train"])
        before, now = checkpoint.state["numerics"], numerics(self.precision.device)
        changed = [f"{name} {before[name]} is now {now[name]}" for name in now if before.get(name, 1) != now[name]]
        if changed:
            self.notes.append(f"{', '.join(changed)}: the run goes on, but not bit for bit as it would have before")
        return True

    def save(self, run: RunFolder) -> None:
        """Make the records durable, then write a checkpoint, so that no checkpoint is newer than its records."""
        if self.store.peers.rank == 0:
            run.sync()
        state = {
            "step": self.state.step,
            "best_step": self.state.best_step,
            "train": asdict(self.state),
            "loss_scale": self.precision.state(),
            "numerics": numerics(self.precision.device),
            "recipe": self.recipe,
        }
        weights, optimizer = self._pieces()
        note = partial(run.append_event, "checkpoint", step=self.state.step)
        self.store.save(Snapshot(weights, optimizer, state), on_durable=note)

    def finish(self, run: RunFolder, *, keep_best: bool) -> None:
        """End a run: the model takes the weights of the best evaluation if asked for, and the run's folder gets it.

        Does the same again, and writes nothing, for a run that ended before.
        """
        self.store.wait()
        release_layers(self.model)  # whoever looks into the trained model sees its parts
        best = self.state.best_step
        checkpoint = self.store.load(best) if keep_best and best not in (0, self.state.step) else None
        if checkpoint is None:
            self.gather_whole()
            if keep_best and best not in (0, self.state.step):
                self.store.warn(f"the best weights, of step {best}, are lost: the model has those of {self.state.step}")
        if self.store.peers.rank:
            return
        if checkpoint is not None:
            load_model_tensors(self.model, checkpoint.tensors("model"))
        is_told = self.state.step in run.finishes()
        if not (is_told and has_weights(run.model)):
            export_model(self.model, run.model)
        if not is_told:
            run.append_event("finish", step=self.state.step, reason=self.state.finished)

    def _pieces(self) -> tuple[list[Piece], list[Piece]]:
        """Pieces of the weights and of the optimizer's state that this process answers for."""
        return model_tensors(self.model), optimizer_tensors(self.optimizer, self.model)

    def _load(self, checkpoint: Checkpoint) -> None:
        load_model_tensors(self.model, checkpoint.tensors("model"))
        load_optimizer_tensors(self.optimizer, self.model, checkpoint.tensors("optimizer"))
