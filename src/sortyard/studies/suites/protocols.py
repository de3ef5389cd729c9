"""How a suite's tasks are fine-tuned, as words of `sortyard finetune`."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from sortyard.errors import InputError
from sortyard.recipe import Recipe, load_recipe

Protocol = Literal["one", "each"]
PROTOCOLS: tuple[Protocol, ...] = ("one", "each")
# One setting for all tasks, as the crammed BERT was measured ("GLUE-sane", JonasGeiping/cramming).
ONE = (
    "finetune.loop.epochs=5", "finetune.loop.steps=null", "finetune.loop.micro_batch_size=16",
    "finetune.loop.accumulation_steps=1", "finetune.loop.eval_every=0", "finetune.loop.keep_best=false",
    "finetune.loop.early_stopping_patience=0", "finetune.optimizer.lr=4e-5", "finetune.schedule.name=cosine",
    "finetune.schedule.warmup_ratio=0.1", "finetune.task.max_length=128",
)  # fmt: skip
# As the models that the field compares with were fine-tuned: three passes in batches of 32 where examples abound
# (BERT, arXiv:1810.04805, appendix A.3), up to ten in smaller ones where they are few, with 6 % of warm-up and a linear
# fall (RoBERTa, arXiv:1907.11692, table 10). One learning rate, where they chose the best of several by the score.
_EACH = ("finetune.optimizer.lr=3e-5", "finetune.schedule.name=linear", "finetune.schedule.warmup_ratio=0.06")
_OF_MANY = ("finetune.loop.epochs=3", "finetune.loop.micro_batch_size=32")
_OF_FEW = ("finetune.loop.epochs=10", "finetune.loop.micro_batch_size=16")
_MANY = ("mnli", "qnli", "qqp", "sst2")  # 67,000 training examples and more
# A core for each run, little beside the scores, and at most 2,000 steps lost when a machine ends suddenly.
OF_EVERY_RUN = (
    "finetune.loop.num_threads=1", "finetune.loop.tensorboard=false", "finetune.loop.keep_checkpoints=1",
    "finetune.loop.checkpoint_every=2000",
)  # fmt: skip
_OF_THE_SUITE = ("seed", "finetune.task.name", "finetune.task.data", "finetune.task.dev")


def glue_words(task: str, *, protocol: Protocol, changes: Sequence[str], train: str, dev: str | None) -> list[str]:
    """Recipe and settings of one task.

    Args:
        task: A GLUE task.
        protocol: `one` setting for all tasks, or what suits `each`.
        changes: Settings that win over the protocol's.
        train: File of the training split, or "hub".
        dev: File of the development split; None where it is held out, or on the hub.
    """
    files = [f"finetune.task.name={task}", f"finetune.task.data={json.dumps(train, ensure_ascii=False)}"]
    files += [] if dev is None else [f"finetune.task.dev={json.dumps(dev, ensure_ascii=False)}"]
    of_task = (*_EACH, *(_OF_MANY if task in _MANY else _OF_FEW))
    settings = ONE if protocol == "one" else (*ONE, *of_task)
    return [f"glue-{task}", *OF_EVERY_RUN, *settings, *changes, *files]


def check_changes(changes: Sequence[str]) -> None:
    """Refuse settings that the suite sets itself.

    Raises:
        InputError: One of them is such, or no setting at all.
    """
    for word in changes:
        key, equals, _ = word.partition("=")
        if not equals:
            raise InputError(f"{word}: expected a setting such as finetune.loop.epochs=1")
        if key in _OF_THE_SUITE or not key.startswith("finetune."):
            raise InputError(f"{word}: with --suite only settings of finetune can change, and not seed, task or files")


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """What a reader wants to know of a run's settings; checks the words on the way.

    Raises:
        InputError: A setting is unknown or out of its range.
    """
    recipe: Recipe = load_recipe(words[0], overrides=list(words[1:])).recipe
    section = recipe.finetune
    assert section is not None  # every recipe that is named here has one
    return {
        "lr": section.optimizer.lr,
        "batch": section.loop.micro_batch_size * section.loop.accumulation_steps,
        "epochs": section.loop.epochs,
        "steps": section.loop.steps,
        "schedule": section.schedule.name,
        "warmup_ratio": section.schedule.warmup_ratio,
        "max_length": section.task.max_length,
        "weight_decay": section.optimizer.weight_decay,
        "precision": section.loop.precision,
        "keep_best": section.loop.keep_best,
    }
