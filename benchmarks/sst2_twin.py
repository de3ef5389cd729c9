"""SST-2 from nothing: the sparse model of `recipes/sst2-laptop.yaml` beside its dense twin.

Both are pretrained on the same rows in the same order (reviews and the SST-2 training text; development sentences
are left out) and fine-tuned with three seeds. The twin has dense attention and a dense feed-forward layer as wide as
the two experts a token visits: equal active parameters up to the gates. The two run at the same time, one core each.

Run: python benchmarks/sst2_twin.py --glue FOLDER_WITH_SST2 --reviews imdb_unsup.parquet [--work runs/sst2-twin]
Writes benchmarks/results/sst2_twin.json. What is finished is not run again.
"""

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runs import ROOT, lines_of, origin, processor_seconds, run, write_result

SEEDS = (0, 1, 2)
TWIN = ("model.attention=dense", "model.num_experts=1")
MODELS = {"sparse": (), "dense twin": TWIN}
REVIEWS = 25_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, required=True, help="folder with sst2_train and sst2_dev")
    parser.add_argument("--reviews", type=Path, required=True, help="parquet file with a column text")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "sst2-twin")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    corpus = write_corpus(args.glue, args.reviews, args.work / "corpus.jsonl")
    with ThreadPoolExecutor(len(MODELS)) as pool:
        jobs = {name: pool.submit(run_model, name, corpus, args) for name in MODELS}
        results = {name: job.result() for name, job in jobs.items()}
    found = {
        "what": "SST-2 development accuracy of a small model made from nothing, beside its dense twin",
        "script": "benchmarks/sst2_twin.py",
        "recipe": "recipes/sst2-laptop.yaml",
        "seeds": {"pretraining": 0, "fine-tuning": SEEDS},
        **origin(args.work / folder_name("sparse", "pretrain")),
        "models": results,
    }
    write_result("sst2_twin", found)
    print(json.dumps({name: result["summary"] for name, result in results.items()}, indent=2))


def write_corpus(glue: Path, reviews: Path, out: Path) -> Path:
    """Reviews and SST-2 training phrases as JSON lines, without any development sentence."""
    import pyarrow.parquet as pq

    if out.exists():
        return out
    dev = set(pq.read_table(glue / "sst2_dev.parquet")["sentence"].to_pylist())
    phrases = pq.read_table(glue / "sst2_train.parquet")["sentence"].to_pylist()
    texts = pq.read_table(reviews)["text"].to_pylist()[:REVIEWS] + [text for text in phrases if text not in dev]
    aside = out.with_suffix(".partial")
    aside.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return aside.rename(out)


def run_model(name: str, corpus: Path, args: argparse.Namespace) -> dict[str, Any]:
    start = args.work / folder_name(name, "pretrain")
    run("pretrain", "sst2-laptop", *MODELS[name], f"pretrain.data.path={corpus}", out=start)
    runs = []
    for seed in SEEDS:
        folder = args.work / folder_name(name, f"seed{seed}")
        run(
            "finetune",
            "sst2-laptop",
            *MODELS[name],
            f"finetune.task.data={args.glue.resolve()}",
            "--from",
            str(start),
            "--seed",
            str(seed),
            out=folder,
        )
        runs.append(folder)
    return collect(start, runs)


def folder_name(name: str, phase: str) -> str:
    return f"{name.replace(' ', '-')}-{phase}"


def collect(start: Path, runs: list[Path]) -> dict[str, Any]:
    """Accuracy of every seed at the last step (never the best one), and what it cost."""
    accuracies = [json.loads((run / "eval" / "sst2.json").read_text())["metrics"]["accuracy"] for run in runs]
    pretraining, finetuning = lines_of(start, "train")[-1], [lines_of(run, "train")[-1] for run in runs]
    seconds = [round(line["seconds"]) for line in finetuning]
    used = [processor_seconds(run) or 0 for run in (start, *runs)]
    cost = json.loads((runs[0] / "eval" / "sst2.json").read_text())
    return {
        "summary": {
            "median_accuracy": statistics.median(accuracies),
            "accuracies": accuracies,
            "core_minutes_to_a_result": round((used[0] + statistics.median(used[1:])) / 60, 1),
        },
        "processor_seconds": {"pretraining": used[0], "fine-tuning": used[1:]},
        "pretraining": pretraining | {"held_out": lines_of(start, "eval")[-1]},
        "fine-tuning_seconds": seconds,
        "interval_of_seed_0": cost.get("interval"),
        "baselines": cost.get("baselines"),
    }


if __name__ == "__main__":
    main()
