"""A training step of a model of BERT-large's size on a GPU: number formats, compilation, recomputation, the sparse one.

The dense model has BERT-large's shape (24 layers of 1,024, 16 heads, inner width 4,096, 30,522 words, 512 learned
positions, norms after the residuals). Its FLOPs are those of matrix products, without what is computed again, and of
the vocabulary's only for the 15 % of tokens that are predicted. Utilisation is of the data sheet's rate. Beside it:
larger steps, the sparse model of equal active parameters (8 experts of 2,048, two a token; bucket attention), longer
rows, and transformers' own BertForMaskedLM.

Run on a machine with a GPU: python benchmarks/device_training.py [--out FILE] [--minutes 6] [--sides NAME ...]
(no network; what the file says of other sides stays, if it is of this kind of machine; each side names its commit)
With --profile it says instead what the device does in a step of each side.
Run anywhere, small and slow: python benchmarks/device_training.py --small --out FILE
Writes benchmarks/results/device_training.json unless told otherwise.
"""

# ruff: noqa: E402
# The library is found beside this file where it is not installed.

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import torch
from device_runs import begin_result, save

from sortyard.evaluation.cost import forward_flops_per_token, head_flops_per_target, meta_model, parameter_counts
from sortyard.model.configuration import SortyardConfig
from sortyard.model.factory import build_model
from sortyard.model.options import ModelOptions
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.parallel.activation_checkpointing import checkpoint_activations
from sortyard.parallel.compiling import compile_layers
from sortyard.training.efficiency import peak_flops
from sortyard.training.optimizer import build_optimizer
from sortyard.training.options import OptimizerOptions
from sortyard.training.precision import Precision
from sortyard.training.step import Stepper

SMALL = "--small" in sys.argv
DEVICE = "cpu" if SMALL else "cuda"
SEED = 0
LAYERS, WIDTH, HEADS, INNER, VOCABULARY = (2, 64, 4, 256, 512) if SMALL else (24, 1024, 16, 4096, 30_522)
TOKENS = 512 if SMALL else 16_384  # of a step
LENGTHS = (64, 128, 256, 512) if SMALL else (512, 4096, 16_384, 65_536)
PREDICTED = 0.15
WARMUP, REPETITIONS = (1, 2) if SMALL else (2, 6)
FORWARD_AND_BACKWARD = 3
KERNELS = 40  # that a profile names
LEARNING_RATE = 1e-5
Json = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One way to take a step.

    Attributes:
        model: dense, sparse, or transformers' own BERT.
        precision: number format of the matrix products; tf32 is fp32 with the matrix units' shorter factors.
        mode: what layers compute again.
        every: which layers do.
        compiled: whether layers are compiled.
        length: tokens of a row.
        tokens: tokens of a step.
    """

    model: Literal["dense", "sparse", "transformers"] = "dense"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "bf16"
    mode: Literal["none", "full", "selective"] = "none"
    every: int = 1
    compiled: bool = False
    length: int = LENGTHS[0]
    tokens: int = TOKENS

    @property
    def name(self) -> str:
        """Its name in results."""
        words = [self.model, str(self.length), self.precision]
        words += [f"{self.mode}-{self.every}"] if self.mode != "none" else []
        words += ["compiled"] if self.compiled else []
        return "/".join(words + ([f"{self.tokens} tokens"] if self.tokens != TOKENS else []))


def sides() -> list[Side]:
    """In the order of running: what one model is measured for together, what matters most first."""
    base = Side()
    long = [
        Side(model=model, length=length, mode="none" if length == LENGTHS[1] else "full", tokens=max(TOKENS, length))
        for length in LENGTHS[1:]
        for model in ("dense", "sparse")
    ]
    return [
        base,
        replace(base, precision="fp32"),
        replace(base, precision="tf32"),
        replace(base, mode="full"),
        replace(base, mode="selective"),
        replace(base, mode="full", every=2),
        replace(base, precision="fp16"),
        replace(base, tokens=2 * TOKENS),
        replace(base, compiled=True),
        replace(base, compiled=True, mode="full"),
        replace(base, compiled=True, tokens=2 * TOKENS),
        replace(base, compiled=True, tokens=3 * TOKENS),
        replace(base, model="transformers"),
        replace(base, model="transformers", tokens=2 * TOKENS),
        replace(base, model="sparse"),
        replace(base, model="sparse", tokens=2 * TOKENS),
        *long,
        replace(base, model="sparse", compiled=True),
        replace(base, model="sparse", compiled=True, tokens=2 * TOKENS),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="run small, on a CPU")
    parser.add_argument("--minutes", type=float, default=6.0, help="begin nothing more after this time")
    names = [side.name for side in sides()]
    parser.add_argument("--sides", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--profile", action="store_true", help="what the device's time goes into, after a warm-up")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "device_training.json")
    args = parser.parse_args()
    started = time.monotonic()
    found: Json = describe()
    kind, measure_it = ("profiles", profile) if args.profile else ("sides", measure)
    found |= kept_sides(args.out, found)
    code = {"commit": found["environment"]["commit"]}
    loaded = None
    for side in sides():
        if side.name not in args.sides:
            continue
        if loaded != (loaded := (side.model, side.length, side.compiled)):
            load.cache_clear()
            release()
        if time.monotonic() - started > 60 * args.minutes:
            print(f"left out, the time is over: {side.name}", flush=True)
            continue
        try:
            record = measure_it(side)
        except Exception as error:  # a side may fail in any way, of memory too; the others go on
            record = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        found[kind][side.name] = asdict(side) | record | code
        print(side.name, json.dumps(record), flush=True)
        save(args.out, found | {"ratios": ratios(found["sides"])})
    print_table(found["sides"])


def kept_sides(path: Path, found: Json) -> Json:
    """What a file says of sides already; nothing if it is of another machine, other versions or another shape."""
    before = json.loads(path.read_text()) if path.exists() else {}
    environment = before.get("environment", {})
    same = all(environment.get(name) == found["environment"][name] for name in ("machine", "versions", "python"))
    if not same or before.get("shape") != found["shape"]:
        return {"sides": {}, "profiles": {}}
    code = {"commit": environment["commit"]}
    sides = {name: code | side for name, side in before["sides"].items()}
    return {"sides": sides, "profiles": before.get("profiles", {})}


def describe() -> Json:
    return begin_result(
        "device_training", device="cpu" if SMALL else f"cuda: {torch.cuda.get_device_name()}", seed=SEED,
        what="seconds, utilisation and peak memory of a training step (forward, backward, clipping, AdamW) by "
        "number format, compilation and recomputation; float32 weights, random tokens",
        facts={
            "is_small": SMALL,
            "shape": {
                "layers": LAYERS, "hidden_size": WIDTH, "heads": HEADS, "intermediate_size": INNER,
                "vocabulary": VOCABULARY, "tokens_of_a_step": TOKENS, "predicted": PREDICTED,
            },
        },
    )  # fmt: skip


def options_of(side: Side) -> ModelOptions:
    """The size of a side's model; positions reach as far as its rows."""
    sparse: Json = {
        "num_experts": 8, "num_experts_per_tok": 2, "num_expert_groups": 4, "num_groups_per_tok": 2,
        "moe_intermediate_size": INNER // 2, "attention": "bucket",
    }  # fmt: skip
    if side.length > LENGTHS[0]:
        sparse["dense_up_to"] = LENGTHS[0]  # buckets also where they may not pay off yet: that is what is asked
    dense = {"num_experts": 1, "attention": "dense"}
    return ModelOptions(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER,
        max_position_embeddings=max(side.length, LENGTHS[0]), gated_ffn=False, use_bias=True, norm_position="post",
        position_embedding_type="learned", **(sparse if side.model == "sparse" else dense),
    )  # fmt: skip


def make(side: Side) -> Any:
    if side.model == "transformers":
        from transformers import BertConfig, BertForMaskedLM

        torch.manual_seed(SEED)
        config = BertConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=INNER, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return BertForMaskedLM(config)
    ids: dict[str, int | None] = {"pad_token_id": 0}
    return build_model(options_of(side), head="masked_lm", vocab_size=VOCABULARY, tokenizer_ids=ids, seed=SEED)


def make_batch(side: Side) -> dict[str, torch.Tensor]:
    """Rows of random words without padding, of which some are to be predicted; other words at every call."""
    ids = torch.randint(5, VOCABULARY, (side.tokens // side.length, side.length))
    labels = ids.masked_fill(torch.rand(ids.shape) >= PREDICTED, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def measure(side: Side) -> Json:
    """Median seconds of a step after some to warm up, its utilisation, and what it needs on top of the state."""
    torch.backends.cuda.matmul.allow_tf32 = side.precision == "tf32"
    torch.manual_seed(SEED)
    model, optimizer = load(side.model, side.length, side.compiled)
    checkpoint_activations(model, side.mode, side.every)
    step = plain_step(model, optimizer, side) if side.model == "transformers" else make_step(model, optimizer, side)
    began = time.perf_counter()
    losses = [step() for _ in range(WARMUP)]
    synchronize()
    warming = time.perf_counter() - began
    before = reset_memory()
    seconds = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        losses.append(step())
        synchronize()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    record: Json = {
        "seconds": median, "fastest": min(seconds), "slowest": max(seconds), "warmup_seconds": warming,
        "tokens_per_second": side.tokens / median, "losses": [losses[0], losses[-1]],
        "peak_extra_bytes": peak_bytes(before),
    }  # fmt: skip
    counts = parameter_counts(model)
    record |= {"parameters": counts.total, "active_parameters": counts.active}
    flops = {kind: step_flops(side, attention=kind) for kind in ("own", "dense")}
    dtype = torch.float32 if side.precision in ("fp32", "tf32") else torch.bfloat16
    peak = peak_flops(torch.device(DEVICE), dtype=dtype)
    if peak:
        record |= {"mfu": flops["own"] / median / peak, "mfu_dense": flops["dense"] / median / peak, "peak_flops": peak}
    return record | {"flops": flops}


def profile(side: Side) -> Json:
    """Milliseconds of a step, of the device in it, and of its kernels that take longest, with their calls."""
    model, optimizer = load(side.model, side.length, side.compiled)
    checkpoint_activations(model, side.mode, side.every)
    step = make_step(model, optimizer, side)
    for _ in range(WARMUP):
        step()
    synchronize()
    began = time.perf_counter()
    step()
    synchronize()
    seconds = time.perf_counter() - began
    with torch.profiler.profile() as profiler:
        step()
        synchronize()
    kernels: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent = kernels.setdefault(event.name[:100], [0.0, 0])
            spent[0] += event.device_time_total / 1000
            spent[1] += 1
    longest = dict(sorted(kernels.items(), key=lambda item: -item[1][0])[:KERNELS])
    return {
        "step_ms": 1000 * seconds, "device_ms": sum(spent for spent, _ in kernels.values()), "kernels_ms": longest,
    }  # fmt: skip


@lru_cache(maxsize=1)
def load(model: Any, length: int, compiled: bool) -> tuple[Any, torch.optim.Optimizer]:
    """A model in training mode with its optimizer, which sides that differ in a step only have in common."""
    made = make(Side(model=model, length=length)).to(DEVICE).train()
    if compiled:
        compile_layers(made)
    return made, build_optimizer(made, OptimizerOptions(lr=LEARNING_RATE))


def make_step(model: Any, optimizer: torch.optim.Optimizer, side: Side) -> Callable[[], float]:
    precision = Precision("fp32" if side.precision == "tf32" else side.precision, device=torch.device(DEVICE))
    stepper = Stepper(
        model, objective=MaskedLMObjective(), optimizer=optimizer, precision=precision, max_grad_norm=1.0,
        lr=lambda _: LEARNING_RATE, seed=SEED,
    )  # fmt: skip
    batches = [make_batch(side) for _ in range(WARMUP + REPETITIONS)]
    number = iter(range(len(batches)))

    def step() -> float:
        place = next(number)
        result = stepper.take([batches[place]], step=place)
        assert result.outcome in ("updated", "overflow"), result.outcome
        return result.task_loss

    return step


def plain_step(model: Any, optimizer: torch.optim.Optimizer, side: Side) -> Callable[[], float]:
    """A step as its users write it; the head of that model predicts every token, not the hidden ones alone."""

    def step() -> float:
        batch = {name: value.to(DEVICE) for name, value in make_batch(side).items()}
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def step_flops(side: Side, *, attention: Literal["own", "dense"]) -> float:
    """Of a step's matrix products, forward and backward; transformers' BERT has those of our dense model."""
    config = SortyardConfig.from_options(options_of(side), vocab_size=VOCABULARY)
    model = meta_model(config, head="masked_lm")
    own = forward_flops_per_token(model, length=side.length, attention=attention)
    return FORWARD_AND_BACKWARD * side.tokens * (own + PREDICTED * head_flops_per_target(model))


def ratios(found: Json) -> Json:
    """What the claims speak of: seconds or bytes of one side over another's."""
    asked = {
        "fp32 over bf16": ("dense/512/fp32", "dense/512/bf16", "seconds"),
        "tf32 over bf16": ("dense/512/tf32", "dense/512/bf16", "seconds"),
        "fp32 over compiled bf16": ("dense/512/fp32", "dense/512/bf16/compiled", "seconds"),
        "eager over compiled": ("dense/512/bf16", "dense/512/bf16/compiled", "seconds"),
        "transformers over ours": ("transformers/512/bf16", "dense/512/bf16", "seconds"),
        "eager over compiled, twice the tokens": (
            f"dense/512/bf16/{2 * TOKENS} tokens",
            f"dense/512/bf16/compiled/{2 * TOKENS} tokens",
            "seconds",
        ),
        "transformers over ours, twice the tokens": (
            f"transformers/512/bf16/{2 * TOKENS} tokens",
            f"dense/512/bf16/{2 * TOKENS} tokens",
            "seconds",
        ),
        "sparse over dense, twice the tokens": (
            f"sparse/512/bf16/{2 * TOKENS} tokens",
            f"dense/512/bf16/{2 * TOKENS} tokens",
            "seconds",
        ),
        "sparse over dense": ("sparse/512/bf16", "dense/512/bf16", "seconds"),
        "sparse over dense at 4,096": ("sparse/4096/bf16", "dense/4096/bf16", "seconds"),
        "sparse over dense at 16,384": ("sparse/16384/bf16/full-1", "dense/16384/bf16/full-1", "seconds"),
        "sparse over dense at 65,536": (
            "sparse/65536/bf16/full-1/65536 tokens",
            "dense/65536/bf16/full-1/65536 tokens",
            "seconds",
        ),
        "full recomputation, memory": ("dense/512/bf16/full-1", "dense/512/bf16", "peak_extra_bytes"),
        "full recomputation, time": ("dense/512/bf16/full-1", "dense/512/bf16", "seconds"),
        "every second layer, memory": ("dense/512/bf16/full-2", "dense/512/bf16", "peak_extra_bytes"),
        "every second layer, time": ("dense/512/bf16/full-2", "dense/512/bf16", "seconds"),
        "selective, memory": ("dense/512/bf16/selective-1", "dense/512/bf16", "peak_extra_bytes"),
        "selective, time": ("dense/512/bf16/selective-1", "dense/512/bf16", "seconds"),
    }
    return {
        name: found[one][what] / found[other][what]
        for name, (one, other, what) in asked.items()
        if found.get(one, {}).get(what) and found.get(other, {}).get(what)
    }


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def reset_memory() -> int:
    if DEVICE != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_bytes(before: int) -> int | None:
    """Bytes of gradients and activations: the peak on top of weights and moments."""
    return torch.cuda.max_memory_allocated() - before if DEVICE == "cuda" else None


def release() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def print_table(found: Json) -> None:
    for name, record in found.items():
        if "error" in record:
            print(f"{name:36s} {record['error']}")
            continue
        memory = (record["peak_extra_bytes"] or 0) / 2**30
        used = f"{record.get('mfu', 0):.1%} of the peak, as dense {record.get('mfu_dense', 0):.1%}"
        print(f"{name:36s} {1000 * record['seconds']:8.1f} ms {memory:6.1f} GiB  {used}")
    for name, value in ratios(found).items():
        print(f"{name:36s} {value:.2f}")


if __name__ == "__main__":
    main()
