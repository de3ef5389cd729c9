"""The commands of the ledger at the scale of a laptop, and what a GPU changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sortyard.studies.claims.steps import Step

PREPARED = "prepared"
VOCABULARY = 8000
BALANCES: Mapping[str, tuple[str, ...]] = {
    "balanced": (),
    "literal": ("model.balance=literal", "model.bias_update_rate=0"),
    "none": ("model.balance=none", "model.bias_update_rate=0"),
    "random": ("model.router=frozen_random",),
}
TWINS: Mapping[str, tuple[str, ...]] = {
    "dense": ("--num-experts", "1"),
    "sparse": ("--num-experts", "8", "--num-groups", "4"),
}
TWIN_SEEDS = 5
PROCESSES = {"one": (), "many": ("parallel.tp=8", "parallel.pp=4")}


@dataclass(frozen=True)
class Asked:
    """What the commands depend on.

    Attributes:
        domains: Names of the texts below {work}/texts.
        has_encoder: Whether there is a dense encoder, and SST-2, for C4.
        has_novels: Whether there is a table with text and author, for C7's classifier.
        compiled: Whether the compiled attention kernels can be used.
        gpu: Whether a GPU does the work.
        factor: Share of the usual training steps; below 1 only for tests.
    """

    domains: tuple[str, ...]
    has_encoder: bool
    has_novels: bool
    compiled: bool
    gpu: bool = False
    factor: float = 1.0

    def steps(self, count: int) -> int:
        """Scale a number of training steps."""
        return max(2, round(count * self.factor * (4 if self.gpu else 1)))

    @property
    def device(self) -> tuple[str, ...]:
        """What a benchmark takes."""
        return ("--device", "cuda") if self.gpu else ()


def ledger_steps(asked: Asked) -> list[Step]:
    """Every command of the ledger, in the order of claims."""
    return [
        *_attention(asked),
        *_utilisation(asked),
        *_twin_tasks(asked),
        *_encoder(asked),
        Step("C6/gates", ("study", "gates", "--threads", "1", *_gates(asked)), 10),
        *_sparsity(asked),
        *_training(asked),
        *_efficiency(asked),
        *_processes(asked),
    ]


def _prepare() -> Step:
    words = ("data", "prep", "{work}/texts/corpus", "--vocab-size", str(VOCABULARY))
    return Step(PREPARED, words, 2)


def _attention(asked: Asked) -> Sequence[Step]:
    lengths = "4k,8k,16k,32k,64k,128k" if asked.gpu else "4k,8k,16k,32k,64k"
    tree = "tree-default-triton" if asked.gpu else f"tree-default-{'compiled' if asked.compiled else 'cpu'}"
    sides = f"{tree},rounds-cpu"  # of plain torch, on any device
    words = ("bench", "attention", "--lengths", lengths, "--dtypes", "bf16" if asked.gpu else "fp32", *asked.device)
    attention = (*words, "--sides", sides, "--call-seconds", "40", "--minutes", "5")
    return (
        Step("C1/attention", attention, 5, alone=True),
        Step("C2/dynamic-buckets", ("bench", "dynamic-buckets", "--minutes", "3", *asked.device), 3, alone=True),
    )


def _utilisation(asked: Asked) -> Sequence[Step]:
    found: list[Step] = [_prepare()]
    for name, changes in BALANCES.items():
        run = f"C3/{name}"
        loop = (f"pretrain.loop.steps={asked.steps(500)}", f"pretrain.loop.eval_every={asked.steps(500)}")
        words = ("pretrain", "experts-laptop", *changes, *loop, f"pretrain.data.path={{work}}/{PREPARED}")
        held_out = [f"--data={domain}={{work}}/texts/held-out/{domain}.jsonl" for domain in asked.domains]
        counting = ("eval", f"{{work}}/{run}", "--routing", *held_out)
        found += [
            Step(run, words, 8, resumes=True, needs=(PREPARED,)),
            Step(f"{run}-counted", counting, 1, makes_folder=False, needs=(run,)),
        ]
    return found


def _twin_tasks(asked: Asked) -> Sequence[Step]:
    if not asked.has_encoder:
        return ()
    loop = (
        f"finetune.loop.steps={asked.steps(150)}", "finetune.loop.epochs=null", "finetune.loop.micro_batch_size=32",
        "finetune.optimizer.lr=5e-5", "finetune.schedule.name=linear", "finetune.loop.num_threads=1",
        "finetune.loop.precision=bf16",
    )  # fmt: skip
    found: list[Step] = []
    for name, made in TWINS.items():
        start = f"C4/{name}-start"
        upcycling = ("upcycle", "{encoder}", *made, "--attention", "dense", "--head", "sequence_classification")
        found.append(Step(start, upcycling, 1))
        for seed in range(TWIN_SEEDS):
            given = ("--task", "sst2", "--data", "{glue}", "--from", f"{{work}}/{start}", "--seed", str(seed))
            found.append(Step(f"C4/{name}-seed{seed}", ("finetune", *loop, *given), 3, resumes=True, needs=(start,)))
    return sorted(found, key=lambda step: (not step.name.endswith("start"), step.name[-5:]))  # whole pairs first


def _encoder(asked: Asked) -> Sequence[Step]:
    given = ("--lengths", "sst2,512,2k", "--dtypes", "bf16", "--sentences", "64", "--memory", "none")
    return (Step("C5/encoder", ("bench", "encoder", *given, "--minutes", "6", *asked.device), 6, alone=True),)


def _gates(asked: Asked) -> Sequence[str]:
    return ("--steps", f"{asked.steps(350)},{asked.steps(1000)}") if asked.factor < 1 else ()


def _sparsity(asked: Asked) -> Sequence[Step]:
    loop = (f"pretrain.loop.steps={asked.steps(1200)}", f"pretrain.data.path={{work}}/{PREPARED}")
    settled = ("--sequence-length", "2048", "--steps", str(asked.steps(80)), "adapt.objective=masked_lm")
    longer = ("adapt", "{work}/C7/short", "--data", f"{{work}}/{PREPARED}", *settled, "adapt.optimizer.lr=5e-4")
    texts = [word for domain in asked.domains for word in ("--data", f"{{work}}/texts/corpus/{domain}.jsonl")]
    task = ("--task-data", "{novels}", "--label-column", "author") if asked.has_novels else ()
    shares = ("--sparsities", "0.5,0.7,0.8,0.9,0.95,0.98", "--selections", "tree,random,local,rounds")
    given = (*shares, "--adapt-steps", str(asked.steps(40)), "--task-steps", str(asked.steps(40)), *asked.device)
    study = ("study", "sparsity", "{work}/C7/base", *texts, *task, *given, "--jobs", "1", "--minutes", "45")
    return (
        Step("C7/short", ("pretrain", "sparsity-laptop", *loop), 11, resumes=True, needs=(PREPARED,)),
        Step("C7/base", (*longer, "adapt.loop.num_threads=1"), 4, resumes=True, needs=("C7/short",)),
        Step("C7/sparsity", study, 45, needs=("C7/base",)),
    )


def _training(asked: Asked) -> Sequence[Step]:
    given = ("--topics", "checkpointing,precision,accumulation", "--lengths", "512,2k")
    return (Step("C8/training", ("bench", "training", *given, "--minutes", "5", *asked.device), 5, alone=True),)


def _efficiency(asked: Asked) -> Sequence[Step]:
    steps = f"pretrain.loop.steps={asked.steps(400)}"
    given = ("--data", f"{{work}}/{PREPARED}", "--seeds", "3", "--jobs", "1", "--work", "{work}/C11/runs")
    return (Step("C11/twin", ("study", "twin", "twin-laptop", steps, *given), 45, needs=(PREPARED,)),)


def _processes(asked: Asked) -> Sequence[Step]:
    model = (
        "model.hidden_size=64", "model.num_hidden_layers=8", "model.num_attention_heads=8",
        "model.max_position_embeddings=128", "model.moe_intermediate_size=64", "model.intermediate_size=128",
        "model.dense_up_to=32", "model.bucket_size=8", "model.query_chunk=16",
    )  # fmt: skip
    loop = (
        "pretrain.data.sequence_length=128", f"pretrain.data.path={{work}}/{PREPARED}", "pretrain.loop.steps=4",
        "pretrain.loop.micro_batch_size=4", "pretrain.loop.accumulation_steps=8", "pretrain.loop.log_every=1",
        "pretrain.loop.eval_every=0", "pretrain.loop.precision=fp32", "pretrain.loop.num_threads=1",
        *(("pretrain.loop.device=cpu",) if asked.gpu else ()),  # 32 GPUs are more than most have
    )  # fmt: skip
    return tuple(
        Step(
            f"C12/{name}", ("pretrain", "small", *model, *loop, *layout), 1 if name == "one" else 5,
            resumes=True, alone=True, needs=(PREPARED,),
        )
        for name, layout in PROCESSES.items()
    )  # fmt: skip
