"""Students cut out of the teacher: some of its layers, perhaps with thinner feed-forward layers and fewer heads."""

from collections.abc import Callable, Sequence

from pydantic import Field
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from egkd.config import check, near
from egkd.students.base import Origin, Outline, Student, options
from egkd.students.loading import load_encoder, load_tokenizer, loaded
from egkd.students.pruning import check_thin, labelled, layer_list, prune, rebuilds

LAYERS = "layers:"


class Layers(Student):
    """`layers:0,2,4`, `layers:3` or `layers:last:3` of the teacher; embeddings and head are copied."""

    spec: str
    """As it was written, with `layers:`."""
    ffn: int | None = Field(default=None, gt=0)
    """Feed-forward neurons to keep in every layer; all by default."""
    heads: int | None = Field(default=None, gt=0)
    """Attention heads to keep in every layer; all by default."""

    @classmethod
    def described(cls, spec: str, rest: str) -> "Layers":
        """From what stands after `layers:`."""
        settings = ",".join(part for part in rest.split(",") if "=" in part)
        return check(cls, {"spec": spec} | (options(spec, settings) if settings else {}), "layers")

    def check(self, teacher: str, *, trust_remote_code: bool) -> None:
        """As `Student.check`."""
        config = loaded(AutoConfig, teacher, trust_remote_code=trust_remote_code)
        depth = getattr(config, "num_hidden_layers", None)
        if depth is None:
            raise ValueError(f"{teacher} has no layers to choose from; name a student by its path")
        parse_layers(self.spec, depth)
        check_thin(config, ffn=self.ffn, heads=self.heads)

    def outline(self, teacher: str, *, trust_remote_code: bool) -> Outline:
        """As `Student.outline`."""
        config = loaded(AutoConfig, teacher, trust_remote_code=trust_remote_code)
        config.num_hidden_layers = len(parse_layers(self.spec, config.num_hidden_layers))
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[: config.num_hidden_layers]
        if self.heads is not None:
            config.num_attention_heads = self.heads
        return Outline(config=config, tokenizer=teacher)

    def build(self, origin: Origin) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """As `Student.build`."""
        trust = origin.trust_remote_code
        model = load_encoder(origin.teacher, origin.task, seed=origin.seed, trust_remote_code=trust)
        tokenizer = load_tokenizer(origin.teacher, trust_remote_code=trust)
        layers = parse_layers(self.spec, model.config.num_hidden_layers)
        if self.ffn is not None or self.heads is not None:
            if origin.examples is None:
                raise ValueError(f"student {self.spec!r} is made thinner by what examples need, and there are none; pass some")
            rows = labelled(origin.examples, origin.max_examples, origin.seed)
            prune(model, tokenizer, rows, layers, ffn=self.ffn, heads=self.heads, max_length=origin.max_length)
        keep_layers(model, layers)
        if not rebuilds(model):
            raise ValueError(
                f"student {self.spec!r} could not be loaded again: the config of {type(model).__name__} cannot say what it is "
                "made of; choose other layers (layers:first:2), leave out ffn and heads, or name a student by its path"
            )
        return model, tokenizer


def parse_layers(spec: str, depth: int) -> list[int]:
    """The layers that `layers:...` names in a teacher of `depth` layers; its options are left out. Raises ValueError."""
    wanted = ",".join(part for part in spec.removeprefix(LAYERS).split(",") if "=" not in part)
    choice, colon, count = wanted.rpartition(":")
    if colon and choice not in CHOICES:
        raise ValueError(f"student {spec!r} chooses layers by {choice!r}; {near(choice, list(CHOICES))}")
    try:
        numbers = [int(part) for part in count.split(",")]
    except ValueError:
        raise ValueError(
            f"student {spec!r} names no layers; write layers:0,2,4 (these), layers:3 (as many) or layers:last:3"
        ) from None
    if colon and len(numbers) > 1:
        raise ValueError(f"student {spec!r} gives {choice!r} {len(numbers)} numbers, expected one: how many layers")
    if "," not in wanted:
        if not 1 <= numbers[0] <= depth:
            raise ValueError(f"student {spec!r} asks for {numbers[0]} layers, the teacher has {depth}")
        return CHOICES[choice or "spread"](numbers[0], depth)
    wrong = [number for number in numbers if not 0 <= number < depth]
    if wrong or len(set(numbers)) < len(numbers):
        problem = f"layer {wrong[0]}, the teacher has layers 0 to {depth - 1}" if wrong else "a layer twice"
        raise ValueError(f"student {spec!r} asks for {problem}")
    return numbers


def spread(count: int, depth: int) -> list[int]:
    """`count` layers of `depth`, evenly spread from the first to the last (only the first for one)."""
    return [round(index * (depth - 1) / max(count - 1, 1)) for index in range(count)]


def every(count: int, depth: int) -> list[int]:
    """The last layer of each of `count` blocks of equal size: 3, 7, 11 of twelve, TinyBERT's g(m) = m * depth / count."""
    return [round((index + 1) * depth / count) - 1 for index in range(count)]


CHOICES: dict[str, Callable[[int, int], list[int]]] = {
    "spread": spread,
    "first": lambda count, depth: list(range(count)),
    "last": lambda count, depth: list(range(depth - count, depth)),
    "every": every,
}
"""How so many layers are chosen from a teacher of some depth."""


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Keep only these encoder layers of `model`, in this order, and make its config say so.

    Raises ValueError for architectures whose layers are not separate modules (ALBERT shares one).
    """
    parent, name, child = layer_list(model)
    kept = nn.ModuleList([child[index] for index in layers])
    for index, module in enumerate(kept):
        for part in module.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = index  # type: ignore[assignment]
    setattr(parent, name, kept)
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None:
        model.config.layer_types = [kinds[index] for index in layers]
    model.config.num_hidden_layers = len(layers)
