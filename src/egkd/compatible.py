"""What objectives and training arguments cannot do together, and how a student is not spread over devices."""

import os
from collections.abc import Callable, Sequence

from transformers import TrainingArguments

from egkd.objectives.base import Objective
from egkd.processes import several


def check_compatible(objectives: Sequence[Objective], args: TrainingArguments, has_teacher: bool) -> None:
    """Refuse what cannot work together, before anything is loaded. Raises ValueError."""
    if not objectives:
        raise ValueError("no objective has a weight above 0; nothing would be learnt")
    if args.label_smoothing_factor:
        raise ValueError("label_smoothing_factor smooths a loss that is not there; give the objective 'labels' less weight")
    names = [objective.name for objective in objectives]
    if len(set(names)) < len(names):
        raise ValueError(f"objectives {names} name one twice; give each once")
    _check_shares(objectives)
    taught = [objective.name for objective in objectives if objective.has_lesson]
    if taught and not has_teacher:
        raise ValueError(f"the objectives {', '.join(taught)} need a teacher; pass teacher=…")
    checkpointing = getattr(args, "activation_checkpointing", False) or getattr(args, "gradient_checkpointing", False)
    attending = [objective.name for objective in objectives if "attentions" in objective.needs]
    if attending and checkpointing:
        raise ValueError(f"checkpointing computes layers anew without what {attending[0]} looks at; switch one of them off")
    still = [objective.name for objective in objectives if objective.looks_still]
    if still and checkpointing:
        raise ValueError(
            f"checkpointing computes layers anew with the dropout that {still[0]} does without; switch one of them off"
        )
    within = [objective.name for objective in objectives if objective.takes_gradients]
    kept = [getattr(args, f"{name}_checkpointing_kwargs", None) or {} for name in ("activation", "gradient")]
    reentrant = any(kwargs.get("use_reentrant", False) for kwargs in kept)
    if within and checkpointing and reentrant:
        raise ValueError(
            f"reentrant checkpointing has no gradient within a step, which {within[0]} needs; set use_reentrant to false"
        )
    explaining = [objective.name for objective in objectives if "embeddings" in objective.needs]
    if explaining and args.ddp_static_graph:
        # it takes the first gradient for the end of the step, which may be that of an explanation
        raise ValueError(f"ddp_static_graph gives wrong gradients, without an error, with {explaining[0]}; set it to false")
    if several() and args.world_size == 1:
        raise ValueError("several processes were started, and without a GPU each would train alone; set use_cpu to true")
    sharding = _sharding(args)
    if sharding:
        raise ValueError(
            f"{sharding} waits for all processes at every pass, and a student makes now more of them, now fewer, in each; "
            "use plain DDP (torchrun, or accelerate launch with distributed_type MULTI_GPU)"
        )


def _check_shares(objectives: Sequence[Objective]) -> None:
    """Where copies stand in the place of a share of the texts, nobody else may choose among the same examples."""
    standing = [objective.name for objective in objectives if objective.schedule.instead]
    sharing = [objective.name for objective in objectives if objective.schedule.share < 1 and not objective.schedule.instead]
    if standing and sharing:
        raise ValueError(
            f"schedule.share of {sharing[0]} and schedule.instead of {standing[0]} choose among the same examples; "
            f"use schedule.every for {sharing[0]}"
        )


def _sharding(args: TrainingArguments) -> str | None:
    """What would spread one student over several processes, also where only the launcher was asked for it."""
    asked = {"FSDP": args.fsdp, "DeepSpeed": args.deepspeed, "tensor parallelism": getattr(args, "parallelism_config", None)}
    variables = ("FSDP", "DEEPSPEED", "PARALLELISM_CONFIG")
    for (name, found), variable in zip(asked.items(), variables, strict=True):
        if found or os.environ.get(f"ACCELERATE_USE_{variable}", "").lower() == "true":
            return name
    return None


def use_one_gpu(args: TrainingArguments, tell: Callable[[str], None]) -> None:
    """Where several GPUs are in sight of one process, let it use the first, and `tell` how all can be used.

    Trainer would copy the student to all of them at every pass (nn.DataParallel), and none of its copies can be looked into.
    """
    if args.n_gpu > 1:
        tell(f"{args.n_gpu} GPUs are there and one is used; torchrun --nproc-per-node {args.n_gpu} -m egkd … uses all")
        args._n_gpu = 1
