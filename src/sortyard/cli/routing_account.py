"""What `sortyard eval --routing` found, as tables that a person reads in a terminal."""

from collections.abc import Iterable
from typing import Any

from sortyard.reports.figures import Table
from sortyard.reports.routing_figures import expert_strength
from sortyard.studies.bench.tables import text_table

Record = dict[str, Any]
SHOWN_EXPERTS = 3
SHOWN_TOKENS = 5


def routing_account(found: Record) -> str:
    """Writes the headline, a row a layer, the checkpoints, and the experts that are easiest to name.

    Args:
        found: What `evaluate_routing` returned.
    """
    tables = [_layers(found), *_saturation(found), _marked(found)]
    notes = [f"note: {note}" for note in found["notes"]]
    more = [f"The other experts are in {found['file']}."] if found["file"] is not None else []
    lines = [_headline(found), *(f"\n{text_table(table)}" for table in tables), *more, *notes]
    return "\n".join(lines)


def _headline(found: Record) -> str:
    dead = found["dead_experts"]
    masks = ", masked as in training" if found["masked"] else ""
    return (
        f"{found['run']}: utilisation minimum over layers {found['headline']:.3f} (layer {found['headline_layer'] + 1} "
        f"of {len(found['layers'])})\n"
        f"N = {found['num_experts']} experts, k = {found['num_experts_per_tok']} a token, {found['num_tokens']:,} "
        f"tokens{masks}, {dead if dead else 'no'} dead expert{'' if dead == 1 else 's'}"
    )


def _layers(found: Record) -> Table:
    names = [domain["name"] for domain in found["domains"]]
    several = len(names) > 1
    header = ["layer", "U_H", "U_2", "A_0.25", "dead", "CV", "MaxVio", "redundancy"]
    header += ["bits", *(f"U_H {name}" for name in names)] if several else []
    rows = [
        (
            str(row["layer"] + 1),
            *(f"{row[key]:.3f}" for key in ("utilisation", "inverse_simpson", "share_used")),
            str(row["dead_experts"]),
            *(f"{row[key]:.3f}" for key in ("variation", "max_violation", "redundancy")),
            *((f"{row['specialisation']:.3f}",) if several else ()),
            *((f"{value:.3f}" for value in row["domain_utilisation"].values()) if several else ()),
        )
        for row in found["layers"]
    ]
    bits = f"; bits: what an expert tells of the domain, of {found['domain_entropy']:.2f}" if several else ""
    return Table(f"Use of the experts{bits}", tuple(header), tuple(rows))


def _saturation(found: Record) -> Iterable[Table]:
    settled = found["saturation"]
    if settled is None:
        return
    header = ("step", *(f"layer {row['layer'] + 1}" for row in found["layers"]))
    rows = tuple(
        (f"{row['step']:,}", *(f"{100 * share:.1f} %" for share in row["layers"])) for row in settled["checkpoints"]
    )
    yield Table(f"Chosen experts that are the final model's, on {settled['tokens']:,} tokens", header, rows)


def _marked(found: Record) -> Table:
    """The experts of each layer whose strongest piece stands out most."""
    rows = []
    for layer in found["layers"]:
        strongest = sorted(range(len(layer["loads"])), key=lambda i: expert_strength(layer, i), reverse=True)
        for expert in strongest[:SHOWN_EXPERTS]:
            share = layer["loads"][expert] / sum(layer["loads"])
            pieces = "  ".join(
                f"{piece['token']} {piece['lift']:.1f} ({piece['copies']:,})"
                for piece in layer["top_tokens"][expert][:SHOWN_TOKENS]
            )
            rows.append((f"layer {layer['layer'] + 1}, expert {expert}", f"{share:.1%}", pieces))
    widest = max((len(row[2]) for row in rows), default=0)
    padded = tuple((name, share, pieces.ljust(widest)) for name, share, pieces in rows)
    return Table(
        "Pieces that mark an expert: how much more often than elsewhere (copies)",
        ("expert", "load", "pieces".ljust(widest)),
        padded,
    )
