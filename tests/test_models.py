"""Observing models: padding is invisible, hooks and modes come back, second derivatives exist."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    IBertConfig,
    IBertForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
)

from egkd.models import (
    double_backward,
    embedding_layer,
    frozen,
    log_odds,
    longest,
    model_inputs,
    observe,
    tapped_embeddings,
    unwrapped,
)
from egkd.text import collate, encode, pool_units, width

TEXTS = ["dull", "The film is great, isn't it", "I really love this lovely movie and the cast", ""]


@pytest.fixture
def rows(tokenizer: Any) -> list[dict[str, Any]]:
    encoded = encode(tokenizer, TEXTS)
    return [{name: values[index] for name, values in encoded.items()} for index in range(len(TEXTS))]


class Wrapper(nn.Module):
    """Like DistributedDataParallel: the model is called `module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def state(model: nn.Module) -> list[Any]:
    return [module.training for module in model.modules()] + [weight.requires_grad for weight in model.parameters()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_neither_answers_nor_attributions(
    tiny_bert: Any, tokenizer: Any, rows: list[dict[str, Any]], attention: str
) -> None:
    model = tiny_bert()
    model.set_attn_implementation(attention)

    def look(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        seen = observe(model, batch, keep=("embeddings",))
        assert seen.embeddings_BTD is not None
        (gradient_BTD,) = torch.autograd.grad(seen.logits_BC[:, 1].sum(), seen.embeddings_BTD)
        scores_BT = (gradient_BTD * seen.embeddings_BTD).sum(-1)
        return seen.logits_BC.detach(), pool_units(scores_BT, batch["unit_ids"], width(batch)).detach()

    together, scores = look(collate(rows, tokenizer.pad_token_id))
    assert (together - together[0]).abs().max() > 0.1
    for index, row in enumerate(rows):
        logits, own = look(collate([row], tokenizer.pad_token_id))
        torch.testing.assert_close(logits[0], together[index], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own[0], scores[index, : own.shape[1]], atol=1e-5, rtol=1e-4)
        assert not scores[index, own.shape[1] :].any()


def test_observing_is_calling_the_model(tiny_bert: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    model = tiny_bert()
    batch = collate(rows, tokenizer.pad_token_id)
    plain, tapped = observe(model, batch), observe(model, batch, keep=("embeddings",), differentiable=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    torch.testing.assert_close(plain.logits_BC, model(**inputs).logits)
    assert plain.embeddings_BTD is None
    torch.testing.assert_close(tapped.logits_BC, plain.logits_BC)
    expected = model.bert.embeddings(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"])
    assert tapped.embeddings_BTD is not None
    torch.testing.assert_close(tapped.embeddings_BTD, expected)
    assert hooks(model) == 0


@pytest.mark.parametrize("others", [[], ["hidden_states"], ["attentions"], ["projections"]])
def test_the_same_pass_again_drops_the_same(tiny_bert: Any, tokenizer: Any, rows: list[dict[str, Any]], others: Any) -> None:
    """Whoever else looked into it."""
    model = tiny_bert(dropout=0.3).train()
    seen = observe(model, collate(rows, tokenizer.pad_token_id), keep=["embeddings", *others])
    assert seen.at is not None
    assert seen.embeddings_BTD is not None
    torch.testing.assert_close(seen.at(seen.embeddings_BTD), seen.logits_BC)


def test_other_embeddings_can_be_put_in(tiny_bert: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    model = tiny_bert()
    batch = collate(rows[:2], tokenizer.pad_token_id)
    swapped = collate([rows[1], rows[1]], tokenizer.pad_token_id)
    seen = observe(model, swapped, keep=("embeddings",))
    assert seen.embeddings_BTD is not None
    replaced = observe(model, batch | {"attention_mask": swapped["attention_mask"]}, replace_BTD=seen.embeddings_BTD.detach())
    torch.testing.assert_close(replaced.logits_BC, seen.logits_BC)
    assert replaced.embeddings_BTD is not None
    assert replaced.embeddings_BTD.requires_grad


def test_embeddings_of_a_frozen_model_still_have_gradients(tiny_bert: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    model, batch = tiny_bert(), collate(rows, tokenizer.pad_token_id)
    with frozen(model):
        seen = observe(model, batch, keep=("embeddings",))
        assert seen.embeddings_BTD is not None
        (gradient,) = torch.autograd.grad(seen.logits_BC.sum(), seen.embeddings_BTD)
    assert gradient.abs().sum() > 0
    with torch.no_grad(), tapped_embeddings(model) as kept:
        model(input_ids=batch["input_ids"])
    assert not kept[0].requires_grad


def test_every_pass_is_kept_and_the_hook_goes_also_after_an_error(tiny_bert: Any, rows: list[dict[str, Any]]) -> None:
    model = tiny_bert(layers=1)
    ids = torch.tensor([rows[1]["input_ids"]])
    with tapped_embeddings(model) as kept:
        model(input_ids=ids)
        model(input_ids=ids[:, :3])
        assert hooks(model) == 1
    assert [value.shape[1] for value in kept] == [ids.shape[1], 3]
    with pytest.raises(RuntimeError, match="on purpose"), tapped_embeddings(model):
        raise RuntimeError("on purpose")
    with pytest.raises(IndexError):
        observe(model, {"input_ids": torch.tensor([[10**6]])}, keep=("embeddings",))
    assert hooks(model) == 0


def test_freezing_gives_back_every_mode_and_flag_also_after_an_error(tiny_bert: Any) -> None:
    model = tiny_bert(layers=2).train()
    model.bert.encoder.layer[0].eval()
    model.classifier.weight.requires_grad_(False)
    before = state(model)
    with frozen(model) as same:
        assert same is model
        assert not any(state(model))
    assert state(model) == before
    with pytest.raises(RuntimeError, match="on purpose"), frozen(model):
        raise RuntimeError("on purpose")
    assert state(model) == before
    assert len(set(before)) == 2


@pytest.mark.parametrize("training", [False, True])
def test_a_second_derivative_exists_with_fused_attention(
    tiny_bert: Any, tokenizer: Any, rows: list[dict[str, Any]], training: bool
) -> None:
    """PyTorch's fused kernels have none; the derivative is checked by finite differences."""
    model = tiny_bert(layers=1, width=16).train(training).double()
    model.set_attn_implementation("sdpa")
    batch = collate(rows[:2], tokenizer.pad_token_id)
    weight = model.bert.encoder.layer[0].attention.self.query.weight

    def size() -> torch.Tensor:
        seen = observe(model, batch, keep=("embeddings",), differentiable=True)
        assert seen.embeddings_BTD is not None
        (gradient_BTD,) = torch.autograd.grad(seen.logits_BC[:, 0].sum(), seen.embeddings_BTD, create_graph=True)
        return gradient_BTD.square().sum()

    (found,) = torch.autograd.grad(size(), weight)
    step = 1e-5
    with torch.no_grad():
        weight[2, 3] += step
    above = size().item()
    with torch.no_grad():
        weight[2, 3] -= 2 * step
    below = size().item()
    assert found[2, 3].item() == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-9)
    assert abs(found[2, 3].item()) > 1e-8


def test_kernels_are_given_back() -> None:
    def enabled() -> list[bool]:
        return [
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cudnn.enabled,
        ]

    before = enabled()
    with double_backward():
        assert not any(enabled())
    with pytest.raises(RuntimeError, match="on purpose"), double_backward():
        raise RuntimeError("on purpose")
    assert enabled() == before


def test_wrapped_models_are_observed_like_bare_ones(tiny_bert: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    model, batch = tiny_bert(), collate(rows, tokenizer.pad_token_id)
    wrapped = Wrapper(Wrapper(model))
    compiled = nn.Module()
    compiled._orig_mod = model  # as torch.compile keeps it
    assert unwrapped(compiled) is model
    assert unwrapped(wrapped) is unwrapped(model) is model
    assert set(model_inputs(wrapped, batch)) == {"input_ids", "attention_mask", "token_type_ids"}
    bare, seen = observe(model, batch, keep=("embeddings",)), observe(wrapped, batch, keep=("embeddings",))
    assert torch.equal(seen.logits_BC, bare.logits_BC)
    assert seen.embeddings_BTD is not None
    assert bare.embeddings_BTD is not None
    assert torch.equal(seen.embeddings_BTD, bare.embeddings_BTD)


def test_a_model_gets_what_its_forward_takes(tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    model = DistilBertForSequenceClassification(config).eval()
    batch = collate(rows, tokenizer.pad_token_id)
    assert "token_type_ids" in batch
    assert set(model_inputs(model, batch)) == {"input_ids", "attention_mask"}
    assert observe(model, batch).logits_BC.shape == (4, 2)


def test_embeddings_are_taken_behind_their_whole_block(tiny_bert: Any) -> None:
    model = tiny_bert(layers=1)
    assert embedding_layer(model) is model.bert.embeddings

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 2)

        def get_input_embeddings(self) -> nn.Module:
            return self.words

    bare = Bare()
    assert embedding_layer(bare) is bare.words
    assert isinstance(model, BertForSequenceClassification)
    assert isinstance(model.config, BertConfig)


def test_embedding_blocks_that_say_more_are_tapped_too(tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    """I-BERT's comes with a scaling factor."""
    config = IBertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = IBertForSequenceClassification(config).eval()
    batch = collate(rows, tokenizer.pad_token_id)
    with frozen(model):
        seen = observe(model, batch, keep=("embeddings",))
        assert seen.embeddings_BTD is not None
        (gradient,) = torch.autograd.grad(seen.logits_BC.sum(), seen.embeddings_BTD)
        assert gradient.abs().max() > 0
        torch.testing.assert_close(observe(model, batch, replace_BTD=seen.embeddings_BTD).logits_BC, seen.logits_BC)


def test_positions_that_begin_later_are_no_places(tokenizer: Any) -> None:
    """OPT's table has two rows more than texts may have tokens, and no padding."""
    config = OPTConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16)
    config.max_position_embeddings, config.word_embed_proj_dim = 20, 16
    model = OPTForSequenceClassification(config)
    tokenizer.model_max_length, before = 10**6, tokenizer.model_max_length
    assert longest(model, tokenizer) == 20
    tokenizer.model_max_length = before


def test_log_odds_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0], [2.0, -1.0]])
    assert log_odds(logits, torch.tensor([1, 1])).tolist() == [2.0, -3.0]
    three = torch.tensor([[0.0, 1.0, 2.0]])
    chance = three.softmax(1)[0, 2]
    assert log_odds(three, torch.tensor([2])).item() == pytest.approx(torch.log(chance / (1 - chance)).item(), rel=1e-5)
    assert log_odds(torch.tensor([[1.5], [-2.0]])).tolist() == [1.5, -2.0]
