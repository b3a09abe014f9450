"""`egkd augment`: labelled texts rewritten by a masked language model."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from egkd.cli import options as o


def augment(
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON lines file to write; the same command goes on with it.")],
    language_model: Annotated[
        str, typer.Option(help="Masked language model, like bert-base-uncased: local folder or hub id.", show_default=False)
    ],
    task: o.Task = None,
    glue_dir: o.GlueDir = None,
    train: o.Train = None,
    eval: Annotated[  # noqa: A002
        list[Path] | None, typer.Option(help="Own evaluation data of those runs; without it they hold a tenth of --train out.")
    ] = None,
    text: o.Text = None,
    text_pair: o.TextPair = None,
    label: o.Label = None,
    kind: Annotated[str | None, typer.Option(help="The data.kind of those runs: classification or regression.")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Rewrite a random sample of this many rows.")] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="Leave out the rows, or the share of them, that runs with this data.held_out are judged by."),
    ] = None,
    data_seed: Annotated[int | None, typer.Option(help="The data.seed of those runs; draws the sample, too (0).")] = None,
    copies: Annotated[int | None, typer.Option(help="Copies of each row (20).")] = None,
    replace: Annotated[float | None, typer.Option(help="Probability that a word is replaced (0.4).")] = None,
    candidates: Annotated[int | None, typer.Option(help="The likeliest words among which one is drawn (15).")] = None,
    max_length: o.MaxLength = None,
    seed: o.Seed = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Rewrite labelled texts with a masked language model, as TinyBERT's augmentation does.

    The copies have no labels: students learn from them by --unlabeled, and the teacher says what they mean.

    Example: `egkd augment --task sst2 --language-model bert-base-uncased --copies 4 --out copies.jsonl`
    """
    from egkd.config import check
    from egkd.config_data import DataConfig

    flags = o.data_settings(task, glue_dir, train, eval, text, text_pair, label, train_limit, None)
    data = check(DataConfig, o.given(flags | {"kind": kind, "held_out": held_out, "seed": data_seed}))
    from egkd.cli.progress import bars, calm, first_console
    from egkd.rewriting import RewriteConfig, rewrite

    settings = check(RewriteConfig, o.given({"copies": copies, "replace": replace, "candidates": candidates, "seed": seed}))
    console = first_console()
    calm()
    with bars(console) as progress:
        count = rewrite(
            data,
            language_model,
            out,
            settings,
            max_length=max_length,
            trust_remote_code=trust_remote_code,
            tell=console.print,
            progress=partial(progress, "rewriting"),
        )
    console.print(f"{count:,} copies: {out}")
