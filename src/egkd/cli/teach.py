"""`egkd teach`: fine-tune a teacher."""

from typing import Annotated

import typer

from egkd.cli import options as o


def teach(
    out: o.Out,
    settings: o.Settings = None,
    init: Annotated[str | None, typer.Option(help="Encoder to fine-tune: local folder or hub id.", show_default=False)] = None,
    task: o.Task = None,
    glue_dir: o.GlueDir = None,
    train: o.Train = None,
    eval: o.Eval = None,  # noqa: A002
    text: o.Text = None,
    text_pair: o.TextPair = None,
    label: o.Label = None,
    train_limit: o.TrainLimit = None,
    eval_limit: o.EvalLimit = None,
    epochs: Annotated[float | None, typer.Option(help="Training epochs (3).")] = None,
    max_length: o.MaxLength = None,
    seed: o.Seed = None,
    set_: o.Set = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Fine-tune an encoder into a teacher, and leave it in OUT/teacher.

    Example: `egkd teach --init my-encoder --task sst2 --glue-dir glue --epochs 2 --out runs/sst2-teacher`
    """
    from egkd.config import resolve

    flags = {
        "teacher_init": init,
        "data": o.data_settings(task, glue_dir, train, eval, text, text_pair, label, train_limit, eval_limit),
        "teach": {"num_train_epochs": epochs},
        "max_length": max_length,
        "seed": seed,
        "trust_remote_code": trust_remote_code,
    }
    chosen = o.settings_of(settings, flags, set_)
    if not chosen.get("teacher_init"):
        raise ValueError("found no encoder, expected teacher_init: the one to fine-tune, a local folder or hub id (--init)")
    config = resolve(chosen)
    from egkd import pipeline
    from egkd.cli.progress import bars, calm, first_console

    console = first_console()
    calm()
    with bars(console) as progress:
        folder = pipeline.teach(config, out, tell=console.print, progress=progress)
    console.print(f"teacher: {folder}")
