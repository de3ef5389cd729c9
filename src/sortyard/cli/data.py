"""`sortyard data`: text to token shards, and a look at what training reads."""

from pathlib import Path
from typing import Annotated

import typer

from sortyard.cli.output import Output, verb

app = typer.Typer(help="Prepare text for training, or look at what training reads.", no_args_is_help=True)


@app.command("prep")
@verb
def prep(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file, folder, glob or hub name.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for tokenizer and shards.", show_default=False)],
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=300, help="Entries of a new tokenizer.")] = 32_000,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder of an existing tokenizer.", show_default=False)
    ] = None,
    text_column: Annotated[str, typer.Option("--text-column", help="Column of the text in tables.")] = "text",
    *,
    output: Output,
) -> None:
    """Read text, train a tokenizer (or take one) and write token shards; goes on where it was interrupted."""
    from sortyard.jobs.corpora import prepare_folder

    found = prepare_folder(
        source, out=out, vocab_size=vocab_size, tokenizer=tokenizer, text_column=text_column, display=output.display()
    )
    text = f"{out}: {found['documents']:,} documents, {found['tokens']:,} tokens; use it as pretrain.data.path={out}"
    output.result(found, text=text)


@app.command("peek")
@verb
def peek(
    source: Annotated[
        Path, typer.Argument(metavar="DIR_OR_FILE", help="A prepared folder, a run, or text.", show_default=False)
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, help="Samples to show.")] = 3,
    sequence_length: Annotated[int, typer.Option("--length", min=8, max=65_536, help="Tokens of a row.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the masks.")] = 0,
    *,
    output: Output,
) -> None:
    """Show decoded training samples: tokens, where documents begin, and what is masked."""
    from sortyard.jobs.peeking import peek_at

    samples = peek_at(source, count=count, sequence_length=sequence_length, seed=seed)
    text = "\n\n".join(f"row {sample['row']}\n{sample['shown']}" for sample in samples)
    output.result({"samples": samples}, text=text)
