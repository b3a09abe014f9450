"""`egkd distill`: a student from a teacher and data."""

from typing import Annotated

import typer

from egkd.cli import options as o
from egkd.config import Guide


def distill(
    out: o.Out,
    settings: o.Settings = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="Fine-tuned classifier: local folder or hub id. Repeatable: several teach.")
    ] = None,
    teacher_weights: Annotated[str | None, typer.Option(help="How much each of several teachers says: 2,1 (equally).")] = None,
    teacher_init: Annotated[str | None, typer.Option(help="Instead: encoder that is fine-tuned first.")] = None,
    student: Annotated[
        str | None,
        typer.Option(help="layers:0,2,4 or layers:3 of the teacher, bilstm, textcnn, or a folder or hub id (layers:3)."),
    ] = None,
    guide: Annotated[
        list[Guide] | None,
        typer.Option(help="Explanations to learn beside answers. Repeatable. [default: none]", show_default=False),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Named settings: plain, replacement, replacement-first, all-first, augmented-replacement, ad-kd or gkd; "
            "other settings go over them."
        ),
    ] = None,
    reasons: Annotated[bool, typer.Option("--reasons", help="The student also tells word scores with each answer.")] = False,
    task: o.Task = None,
    glue_dir: o.GlueDir = None,
    train: o.Train = None,
    eval: o.Eval = None,  # noqa: A002
    unlabeled: o.Unlabeled = None,
    text: o.Text = None,
    text_pair: o.TextPair = None,
    label: o.Label = None,
    train_limit: o.TrainLimit = None,
    eval_limit: o.EvalLimit = None,
    epochs: Annotated[float | None, typer.Option(help="Training epochs of the student (3).")] = None,
    max_length: o.MaxLength = None,
    seed: o.Seed = None,
    lessons: Annotated[
        str | None, typer.Option(help="Folder for lessons, shared between runs [default: beside --out].")
    ] = None,
    set_: o.Set = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Distil a student that learns the teacher's answers and, with --guide, its reasons.

    Example: `egkd distill --teacher my-classifier --student layers:0,2,4 --task sst2 --guide gradient --out runs/a`

    Example: `egkd distill --teacher-init my-encoder --student my-small-encoder --train my.csv --eval my_dev.csv
    --text review --label stars --guide perturbation --guide selection --out runs/b`

    Example: `egkd distill config.yaml --set train.num_train_epochs=6 --out runs/c`
    """
    from egkd.config import resolve

    flags = {
        "teacher": teacher or None,
        "teacher_weights": teacher_weights,
        "teacher_init": teacher_init,
        "student": student,
        "preset": preset,
        "data": o.data_settings(task, glue_dir, train, eval, text, text_pair, label, train_limit, eval_limit, unlabeled),
        "train": {"num_train_epochs": epochs},
        "max_length": max_length,
        "seed": seed,
        "lessons": lessons,
        "trust_remote_code": trust_remote_code,
    }
    config = resolve(o.settings_of(settings, flags, set_), guide or [], reasons=reasons)
    from egkd import pipeline
    from egkd.cli.progress import bars, calm, first_console
    from egkd.report.run import read_run
    from egkd.report.terminal import summary_table

    console = first_console()
    calm()
    with bars(console) as progress:
        report = pipeline.distill(config, out, tell=console.print, progress=progress)
    console.print(summary_table([read_run(out)]))
    console.print(f"report: {report}")
