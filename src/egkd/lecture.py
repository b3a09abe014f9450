"""The job of `egkd lessons build`: the lessons of a run, without the run."""

from collections.abc import Callable
from pathlib import Path

from egkd.checks import check_between, check_mask_word, check_reading, objectives_of, training_arguments
from egkd.config import RunConfig
from egkd.data.augment import augmented
from egkd.data.loading import load_data
from egkd.lessons import Lessons
from egkd.objectives.base import Progress
from egkd.predict import encode_dataset
from egkd.processes import ranks
from egkd.runs import check_writable
from egkd.students import load_tokenizer, parse_student
from egkd.teaching import asked_of, in_datas_order, in_teachers_order, teach_all, voices_of


def lecture(
    config: RunConfig, root: Path, *, tell: Callable[[str], None] | None = None, progress: Progress | None = None
) -> dict[str, Lessons]:
    """Build in `root` what `pipeline.distill` of `config` would build first, or open what is there; by the objectives' keys.

    Raises ValueError for settings that cannot work, before any long work.
    """
    if not config.teachers:
        raise ValueError("found teacher_init, expected teacher: a fine-tuned one (--teacher); egkd teach makes it")
    trust = config.trust_remote_code
    objectives = [objective for objective in objectives_of(config) if objective.weight > 0]
    if not any(objective.has_lesson for objective in objectives):
        raise ValueError("no objective with a weight above 0 has lessons; there is nothing to build")
    device = training_arguments(config.train_arguments, root, "train").device  # here processes meet
    with ranks() as team, team.stage():
        check_writable(root, "--lessons")
        data = load_data(config.data)
        if tell is not None:
            for note in data.notes:
                tell(note)
        check_between(config, objectives, data.task)
        tokenizers = [load_tokenizer(source, trust_remote_code=trust) for source in config.teachers]
        check_mask_word(config, dict(zip(config.teachers, tokenizers, strict=True)))
        for source, tokenizer in zip(config.teachers, tokenizers, strict=True):
            check_reading(config, source, tokenizer)
        data = in_teachers_order(config.teachers[0], data, trust)
        data = augmented(data, config.data.augment, config.data.seed, tokenizers[0].mask_token)
        teachers = [in_datas_order(source, data.task, trust) for source in config.teachers]
        student = parse_student(config.student).outline(config.teachers[0], trust_remote_code=trust)
        voices = voices_of(teachers, tokenizers, None)
        encoded = encode_dataset(data.stream, tokenizers[0], config.max_length)
        asked = asked_of(voices, objectives, student.config)
    return teach_all(
        voices,
        asked,
        data.stream,
        encoded,
        tokenizers[0],
        root,
        device=device,
        max_length=config.max_length,
        precision=config.precision_of_lessons,
        progress=progress,
        tell=tell,
    )
