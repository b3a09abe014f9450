"""Encoders of every family: observed, explained and differentiated twice alike, with padding that changes nothing."""

from typing import Any

import pytest
import torch
import transformers

from egkd.explain.masking import soft_mask
from egkd.explain.selectors import read_hidden
from egkd.models import model_inputs, observe, reads_last_token
from egkd.text import Batch, collate, encode, perturb, pool_units, width

TEXTS = ["dull", "The film is great, isn't it", "I really love this lovely movie and the cast", ""]
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {},
    "XLMRoberta": {},
    "Camembert": {},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "Albert": {"embedding_size": 16},
    "Electra": {"embedding_size": 16},
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "MPNet": {},
    "ModernBert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "MobileBert": {"embedding_size": 16, "intra_bottleneck_size": 32, "true_hidden_size": 32, "initializer_range": 0.05},
    "RoFormer": {"embedding_size": 16},
    "ConvBert": {"embedding_size": 16, "conv_kernel_size": 3},
}
WHOLE = [name for name in FAMILIES if name != "ConvBert"]
"""Families that keep padding out: ConvBERT convolves over what stands beside a word, be it padding."""


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """A tiny random classifier of a family."""

    def build(family: str) -> Any:
        sizes: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 80,
            "initializer_range": 0.3,
            "num_labels": 2,
        }
        own = FAMILIES[family]
        if "d_model" in own or "dim" in own:  # which call their sizes otherwise
            sizes = {name: sizes[name] for name in ("vocab_size", "pad_token_id", "initializer_range", "num_labels")}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = getattr(transformers, f"{family}Config")(**(sizes | own))
            return getattr(transformers, f"{family}ForSequenceClassification")(config).eval()

    return build


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[dict[str, Any]]:
    encoded = encode(tokenizer, TEXTS)
    return [{name: values[index] for name, values in encoded.items()} for index in range(len(TEXTS))]


def look(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    seen = observe(model, batch, keep=("embeddings",))
    assert seen.embeddings_BTD is not None
    (gradient_BTD,) = torch.autograd.grad(seen.logits_BC[:, 1].sum(), seen.embeddings_BTD)
    scores_BT = (gradient_BTD * seen.embeddings_BTD).sum(-1)
    return seen.logits_BC.detach(), pool_units(scores_BT, batch["unit_ids"], width(batch)).detach()


@pytest.mark.parametrize("family", WHOLE)
def test_padding_changes_neither_answers_nor_attributions(model: Any, tokenizer: Any, rows: Any, family: str) -> None:
    own = model(family)
    assert not reads_last_token(own)
    together, scores = look(own, collate(rows, tokenizer.pad_token_id))
    assert (together - together[0]).abs().max() > 1e-3
    for index, row in enumerate(rows):
        logits, alone = look(own, collate([row], tokenizer.pad_token_id))
        torch.testing.assert_close(logits[0], together[index], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(alone[0], scores[index, : alone.shape[1]], atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_can_be_read_replaced_and_mixed(model: Any, tokenizer: Any, rows: Any, family: str) -> None:
    own, batch = model(family), collate(rows[:3], tokenizer.pad_token_id)
    seen = observe(own, batch, keep=("embeddings",))
    assert seen.at is not None
    assert seen.embeddings_BTD is not None
    torch.testing.assert_close(seen.at(seen.embeddings_BTD), seen.logits_BC, atol=1e-5, rtol=1e-4)
    if family == "MobileBert":  # whose embeddings of a word hold its neighbours'
        return
    masked = soft_mask(own, tokenizer, batch, own_BTD=read_hidden(own, batch, 2).hidden[0])
    keep = torch.rand(3, width(batch), generator=torch.Generator().manual_seed(0)) > 0.5
    hard = observe(own, perturb(batch, keep, "mask", tokenizer)).logits_BC
    torch.testing.assert_close(masked.logits(keep), hard, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta", "Camembert", "Electra"])
def test_what_the_classifier_does_not_read_is_not_computed(
    model: Any, tokenizer: Any, rows: Any, family: str, attention: str
) -> None:
    own, batch = model(family), collate(rows, tokenizer.pad_token_id)
    own.set_attn_implementation(attention)
    block = getattr(own, own.base_model_prefix).encoder.layer[-1].attention
    asked: list[int] = []
    handle = block.self.query.register_forward_hook(lambda _module, _args, output: asked.append(output.shape[1]))
    told = []
    for logits in (own(**model_inputs(own, batch)).logits, observe(own, batch).logits_BC):
        own.zero_grad()
        logits.square().sum().backward()
        told.append((logits.detach(), {name: weight.grad for name, weight in own.named_parameters()}))
    torch.testing.assert_close(*told, atol=1e-4, rtol=1e-4)
    handle.remove()
    assert asked == [batch["input_ids"].shape[1], 1]
    block.output.register_forward_pre_hook(stopping)
    with pytest.raises(ValueError, match="stop"):
        observe(own, batch)
    assert "forward" not in vars(block.self)


def stopping(_module: Any, _args: Any) -> None:
    raise ValueError("stop")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_derivative_exists(model: Any, tokenizer: Any, rows: Any, family: str) -> None:
    own, batch = model(family).train(), collate(rows[:3], tokenizer.pad_token_id)
    seen = observe(own, batch, keep=("embeddings",), differentiable=True)
    assert seen.embeddings_BTD is not None
    (gradient,) = torch.autograd.grad(seen.logits_BC[:, 1].sum(), seen.embeddings_BTD, create_graph=True)
    gradient.square().sum().backward()
    moved = [name for name, weight in own.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0]
    assert any("layer" in name or "block" in name for name in moved)


def test_a_model_that_reads_padding_is_refused(tokenizer: Any, rows: Any) -> None:
    config = transformers.XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=1, n_head=2, d_inner=64)
    with pytest.raises(ValueError, match="XLNetForSequenceClassification reads the last place of a batch, be it padding"):
        observe(transformers.XLNetForSequenceClassification(config), collate(rows, tokenizer.pad_token_id))
