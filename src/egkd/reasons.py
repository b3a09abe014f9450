"""A finished student that tells its reasons: answers and word scores from one forward pass, in production too.

Shapes: B batch, T tokens, U units, C classes (1 for regression).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from egkd.explain import Explanation, Target, explain
from egkd.explain.amortised import OwnReasons, for_class, head_of, with_head
from egkd.models import longest, observe
from egkd.students import load_classifier, load_tokenizer
from egkd.text import MAX_LENGTH, pool_units


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What one pass gives."""

    logits: Tensor
    """[B, C]."""
    token_scores: Tensor
    """How much each token speaks for the log odds of the predicted class (raises the output, in regression), [B, T]."""
    word_scores: Tensor | None
    """The same of words, [B, U], where `unit_ids` said which token belongs to which word."""


class SelfExplaining(nn.Module):
    """A student with the head that learnt its teacher's word scores."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """`model` has a head, see `load_student`. Raises ValueError where it has none."""
        super().__init__()
        if head_of(model) is None:
            raise ValueError("the model has no head that tells reasons; distil a student with the objective 'reasons'")
        self.model, self.tokenizer, self.config = model, tokenizer, model.config

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        unit_ids: Tensor | None = None,
    ) -> Answered:
        """One pass. `unit_ids` [B, T] as `egkd.text.encode` gives them; what the model does not read is left out."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        batch = {name: value for name, value in given.items() if value is not None}
        seen, head = observe(self.model, batch, keep=("hidden_states",)), head_of(self.model)
        assert seen.hidden_states is not None
        assert head is not None
        scores_BT = for_class(head(seen.hidden_states[-1]), seen.logits_BC.argmax(1), head.n_classes)
        words_BU = None if unit_ids is None else pool_units(scores_BT, unit_ids, max(1, int(unit_ids.max()) + 1))
        return Answered(logits=seen.logits_BC, token_scores=scores_BT, word_scores=words_BU)

    def explain(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str] | None = None,
        *,
        target: Target = "predicted",
        max_length: int | None = None,
    ) -> list[Explanation]:
        """Answers (`logits`, `prediction`, `label`) and reasons (`words`, `scores`) of texts, in passes of about equal lengths.

        Texts longer than `max_length` tokens are cut (128, or what the model reads, unless said otherwise). Raises ValueError
        as `egkd.explain` does.
        """
        max_length = max_length or min(MAX_LENGTH, longest(self.model, self.tokenizer))
        return explain(self.model, self.tokenizer, texts, pairs, method=OwnReasons(), target=target, max_length=max_length)


def load_student(folder: str | Path, *, trust_remote_code: bool = False) -> SelfExplaining:
    """A student that was distilled with the objective `reasons`, from its folder; on the CPU, in evaluation mode.

    Raises ValueError for a folder without a student or without a head.
    """
    model = load_classifier(str(folder), trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    return SelfExplaining(with_head(model, folder), tokenizer).eval()
