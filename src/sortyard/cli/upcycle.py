"""`sortyard upcycle`: a dense checkpoint to a sparse model that computes the same."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sortyard.cli.output import Output, verb


@verb
def upcycle(
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint's folder or hub name.", show_default=False)
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Other settings such as bucket_size=32 context=none.", show_default=False
        ),
    ] = None,
    num_experts: Annotated[
        int | None, typer.Option("--num-experts", help="Experts of a layer: 8 if left out; 1 keeps it dense.")
    ] = None,
    num_groups: Annotated[
        int | None, typer.Option("--num-groups", help="Groups, or shards a layer is cut into: 4 if left out.")
    ] = None,
    experts_from: Annotated[
        str | None, typer.Option("--experts-from", help="shards (default), copies, drop or shared.")
    ] = None,
    attention: Annotated[str | None, typer.Option("--attention", help="bucket (default) or dense.")] = None,
    head: Annotated[
        str | None, typer.Option("--head", help="Head of the result, such as masked_lm; the checkpoint's if left out.")
    ] = None,
    max_positions: Annotated[
        int | None, typer.Option("--max-positions", help="Longest sequence; the checkpoint's if left out.")
    ] = None,
    positions: Annotated[
        str | None, typer.Option("--positions", help="How positions are extended: stretch (default) or keep.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of new weights.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the model; must be new or empty.", show_default=False)
    ] = None,
    *,
    output: Output,
) -> None:
    """Turn a dense BERT, RoBERTa, ELECTRA, DistilBERT or ModernBERT into a sparse model that computes the same."""
    from sortyard.jobs.upcycling import upcycle_to_folder
    from sortyard.recipe.merging import merge, override_tree
    from sortyard.recipe.yaml_tree import Tree

    options = {
        "num_experts": ("--num-experts", num_experts),
        "num_groups": ("--num-groups", num_groups),
        "experts_from": ("--experts-from", experts_from),
        "attention": ("--attention", attention),
        "head": ("--head", head),
        "max_position_embeddings": ("--max-positions", max_positions),
        "positions": ("--positions", positions),
        "seed": ("--seed", seed),
    }
    given = {name: (flag, value) for name, (flag, value) in options.items() if value is not None}
    flags = Tree(
        {name: value for name, (_, value) in given.items()},
        {(name,): f"{flag} {value}" for name, (flag, value) in given.items()},
    )
    settings = merge(override_tree(words or ()), flags)
    found = upcycle_to_folder(source, settings=settings, out=out, display=output.display())
    output.result(found, text=_account(found))


def _account(found: dict[str, Any]) -> str:
    layers = len(found["expert_layers"])
    experts = f"{found['num_experts']} experts in each of {layers} layers" if layers else "dense layers"
    kept = "not the same: " + "; ".join(found["inexact_because"])
    if found["is_exact"]:
        kept = f"the same up to {found['exact_up_to']:,} tokens"
    lines = [
        f"{found['folder']}: {found['architecture']}, {experts}",
        f"  parameters  {found['parameters']:,}, {found['active_parameters']:,} active "
        f"(original: {found['source_parameters']:,})",
        f"  weights     {len(found['mapped'])} mapped, {_some(found['unused'], word='unused')}, "
        f"{_some(found['new'], word='new')}",
        f"  function    {kept}; measured difference {found['largest_difference']:.1e}",
        f"next: sortyard finetune --task TASK --data FOLDER --from {found['folder']}",
    ]
    if any(name.startswith("pooler.") for name in found["unused"]):
        lines.insert(3, "              (--head sequence_classification keeps the pooler)")
    return "\n".join(lines)


def _some(names: tuple[str, ...], *, word: str) -> str:
    shown = f" ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})" if names else ""
    return f"{len(names)} {word}{shown}"
