"""How evenly many experts are used: 32 and 64 experts a layer, balanced and not, on text of three kinds.

`recipes/experts-laptop.yaml` is pretrained on film reviews, novels and newsgroups, about as many characters of each.
Utilisation is counted on texts of the same three kinds that no run was trained on, with every chosen slot, padding
excluded (`sortyard eval --routing`); the headline is the least evenly used layer. Arms, equal but for the balance:

- balanced: the default loss and the loss-free selection bias, as the recipe says;
- literal:  the published formula on mean gate values, no bias;
- none:     no loss, no bias.

Run: python benchmarks/utilisation.py --reviews imdb_unsup.parquet --novels eltec_novels.parquet
         --newsgroups newsgroups20.parquet [--without imdb_train.parquet --without imdb_test.parquet]
         [--only 32-balanced ...] [--jobs 2] [--work runs/utilisation]
Writes benchmarks/results/utilisation.json. What is finished is not run again; what was interrupted is resumed.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runs import ROOT, lines_of, origin, run, sortyard, write_result
from sortyard.studies.claims.texts import pieces, take

RECIPE = "experts-laptop"
SIZES = {
    "32": (),
    "64": ("model.num_experts=64", "model.num_experts_per_tok=8", "model.moe_intermediate_size=64"),
}
BALANCES = {
    "balanced": (),
    "literal": ("model.balance=literal", "model.bias_update_rate=0"),
    "none": ("model.balance=none", "model.bias_update_rate=0"),
}
ARMS = {f"{size}-{balance}": (*SIZES[size], *BALANCES[balance]) for balance in BALANCES for size in SIZES}
CHARACTERS = 14_000_000  # of each kind, for training
HELD_OUT_CHARACTERS = 400_000  # of each kind, for counting
HELD_OUT_EACH = 50_000  # at most so many of one document, so that several novels are held out, as wholes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in ("reviews", "novels", "newsgroups"):
        parser.add_argument(f"--{kind}", type=Path, required=True, help="parquet file with a column text")
    parser.add_argument("--without", type=Path, action="append", default=[], help="texts to leave out")
    parser.add_argument("--only", choices=ARMS, nargs="+", default=list(ARMS), help="arms to run")
    parser.add_argument("--jobs", type=int, default=2, help="arms run at the same time, one core each")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "utilisation")
    args = parser.parse_args()
    work: Path = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    sources = {kind: getattr(args, kind) for kind in ("reviews", "novels", "newsgroups")}
    write_texts(sources, without=args.without, folder=work)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda arm: run_arm(arm, work=work), args.only))
    collect_result(work)


def write_texts(sources: dict[str, Path], *, without: Sequence[Path], folder: Path) -> None:
    """Write the training and the held-out texts, a JSON-lines file of each kind."""
    if (folder / "corpus").exists():
        return
    forbidden = {text for path in without for text in read_column(path)}
    aside = folder / "corpus.partial"
    for part in (aside, folder / "held-out"):
        part.mkdir(exist_ok=True)
    for kind, path in sources.items():
        documents = iter([text for text in read_column(path) if text not in forbidden])
        openings = (document[:HELD_OUT_EACH] for document in documents)
        take(pieces(openings), characters=HELD_OUT_CHARACTERS, path=folder / "held-out" / f"{kind}.jsonl")
        take(pieces(documents), characters=CHARACTERS, path=aside / f"{kind}.jsonl")  # of other documents
    aside.rename(folder / "corpus")


def read_column(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    texts: list[str] = pq.read_table(path, columns=["text"])["text"].to_pylist()
    return texts


def run_arm(arm: str, *, work: Path) -> None:
    """Pretrain one arm, or go on with it, and count its routing."""
    run("pretrain", RECIPE, *ARMS[arm], f"pretrain.data.path={work / 'corpus'}", out=work / arm)
    domains = [f"--data={path.stem}={path}" for path in sorted((work / "held-out").glob("*.jsonl"))]
    sortyard("eval", str(work / arm), "--routing", *domains)


def collect_result(work: Path) -> None:
    """Collect the arms that are finished."""
    found = {arm: collect(work / arm) for arm in ARMS if (work / arm / "eval" / "routing.json").exists()}
    result = {
        "what": "utilisation of 32 and 64 experts a layer after a short pretraining on three kinds of text",
        "script": "benchmarks/utilisation.py",
        "recipe": f"recipes/{RECIPE}.yaml",
        "seed": 0,
        **origin(work / next(iter(found))),
        "arms": found,
    }
    write_result("utilisation", result)
    for arm, values in found.items():
        print(f"{arm:12s} utilisation {values['utilisation']:.3f}  held-out loss {values['held_out']['loss']:.4f}")


def collect(run: Path) -> dict[str, Any]:
    routing = json.loads((run / "eval" / "routing.json").read_text())
    for layer in routing["layers"]:  # `sortyard report` shows these; here they would be most of the file
        del layer["top_tokens"], layer["co_activation"]
    for domain in routing["domains"]:
        del domain["source"]  # a path of this machine
    trained, held_out = (lines_of(run, kind)[-1] for kind in ("train", "eval"))
    return {"utilisation": routing["headline"], "held_out": held_out, "trained": trained, "routing": routing}


if __name__ == "__main__":
    main()
