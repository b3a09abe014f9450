"""Selectors and sufficient subsets, on models where the word that decides is known."""

import json
import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from egkd.explain import explain, explainer_from_name, fit_selector, score_dataset
from egkd.explain.fitting import RELAXATIONS, _expected_share, draw_top_k
from egkd.explain.masking import divergence, embed, soft_mask
from egkd.explain.selection import L2X, AmortisedExplainer, DiffMask, HardConcrete
from egkd.explain.selectors import Kind, Selector, SelectorSettings, kept_count, read_hidden, top_share
from egkd.explain.sufficient import SufficientSubset
from egkd.models import observe
from egkd.predict import encode_dataset
from egkd.text import SPECIAL, Batch, collate, perturb, visible_units, width

KINDS: tuple[Kind, ...] = ("l2x", "hard-concrete", "diffmask")
EXPLAINERS: tuple[type[AmortisedExplainer], ...] = (L2X, HardConcrete, DiffMask)
QUICK = {"examples": 64, "epochs": 2, "width": 16}


class OneWordDecides(nn.Module):
    """A bag of embeddings in which the word "great" says class 1 and nothing else says anything."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, outputs: int = 2) -> None:
        super().__init__()
        great = tokenizer.convert_tokens_to_ids("great")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embeddings = nn.Embedding(len(tokenizer), 16)
        with torch.no_grad():
            self.embeddings.weight[:, 0] = 0
            self.embeddings.weight[great, 0] = 6
        self.config = SimpleNamespace(num_labels=outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        said_B = (self.embeddings(input_ids)[..., 0] * attention_mask).sum(1) - 3
        return SimpleNamespace(logits=torch.stack([-said_B, said_B][-self.config.num_labels :], dim=1))


@pytest.fixture(scope="session")
def planted(tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Texts of ten words with one "great" somewhere."""
    generator = torch.Generator().manual_seed(0)
    fillers = "the film was so very dull and the plot is an awful story of love but not like this".split()
    texts = []
    for _ in range(160):
        words = [fillers[i] for i in torch.randint(len(fillers), (9,), generator=generator)]
        words.insert(int(torch.randint(10, (1,), generator=generator)), "great")
        texts.append(" ".join(words))
    return encode_dataset(Dataset.from_dict({"text": texts}), tokenizer)


@pytest.fixture
def mixed(tokenizer: PreTrainedTokenizerBase, texts: list[str], rows_of: Callable[..., list[dict[str, Any]]]) -> Batch:
    return collate(rows_of(tokenizer, texts), tokenizer.pad_token_id)


# --- soft masks ---------------------------------------------------------------------------------------------------------


def test_a_hard_soft_mask_is_perturb(any_model: Any, rows_of: Any, texts: list[str], pairs: list[str]) -> None:
    build, tokenizer = any_model
    model, batch = build(3), collate(rows_of(tokenizer, texts, pairs), tokenizer.pad_token_id)
    keep_BU = torch.rand(len(texts), width(batch), generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        expected_BC = observe(model, perturb(batch, keep_BU, "mask", tokenizer)).logits_BC
        masked = soft_mask(model, tokenizer, batch)
        assert torch.equal(masked.logits(keep_BU), expected_BC)
        assert torch.equal(masked.logits(keep_BU.float()), expected_BC)
        assert torch.equal(masked.logits(torch.ones_like(keep_BU)), observe(model, batch).logits_BC)


def test_every_architecture_shows_its_layers(any_model: Any, rows_of: Any, texts: list[str]) -> None:
    build, tokenizer = any_model
    model, batch = build(2), collate(rows_of(tokenizer, texts), tokenizer.pad_token_id)
    before = _state(model)
    read = read_hidden(model, batch, layers=3)
    embeddings_BTD = embed(model, batch)
    assert _state(model) == before
    with torch.no_grad():
        expected = model(**{n: batch[n] for n in ("input_ids", "attention_mask")}, output_hidden_states=True)
    assert torch.equal(read.hidden[0], embeddings_BTD)
    assert len(read.hidden) == 3
    torch.testing.assert_close(read.hidden[1], expected.hidden_states[1])
    norm = getattr(model.base_model, "ln_f", nn.Identity())  # decoders normalise what they tell of their last layer
    torch.testing.assert_close(norm(read.hidden[2]), expected.hidden_states[2])
    torch.testing.assert_close(read.logits_BC, expected.logits)


def test_without_a_mask_token_words_become_zero(tokenizer: PreTrainedTokenizerBase, mixed: Batch) -> None:
    model = OneWordDecides(tokenizer)
    bare = SimpleNamespace(mask_token_id=None)
    masked = soft_mask(model, bare, mixed)  # type: ignore[arg-type]
    assert (masked.empty_BTD[mixed["unit_ids"] != SPECIAL] == 0).all()
    assert torch.equal(masked.empty_BTD[mixed["unit_ids"] == SPECIAL], masked.own_BTD[mixed["unit_ids"] == SPECIAL])


def test_the_gradient_reaches_the_mask(tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, mixed: Batch) -> None:
    model = tiny_bert().requires_grad_(False)
    keep_BU = torch.full((5, width(mixed)), 0.5, requires_grad=True)
    soft_mask(model, tokenizer, mixed).logits(keep_BU).logsumexp(1).sum().backward()
    assert keep_BU.grad is not None
    assert torch.equal(keep_BU.grad != 0, visible_units(mixed["unit_ids"], width(mixed)))


def test_divergence_by_hand() -> None:
    full_BC = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    part_BC = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log() + 7.0  # a constant says nothing
    torch.testing.assert_close(divergence(full_BC, part_BC), torch.tensor([0.130812, 0.0]), atol=1e-6, rtol=0)
    assert divergence(torch.tensor([[1.5]]), torch.tensor([[-0.5]])).tolist() == [4.0]


# --- choosing -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(1, 10), st.integers(0, 999))
def test_top_share_keeps_exactly_its_share_of_the_best(sizes: list[int], tenths: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    visible_BU = torch.stack([torch.randperm(12, generator=generator) < size for size in sizes])
    scores_BU = torch.randint(5, visible_BU.shape, generator=generator).float()  # many are equal
    keep_BU = top_share(scores_BU, visible_BU, tenths / 10)
    assert keep_BU.sum(1).tolist() == [-(-size * tenths // 10) for size in sizes]
    assert not (keep_BU & ~visible_BU).any()
    for scores_U, keep_U, visible_U in zip(scores_BU, keep_BU, visible_BU, strict=True):
        if keep_U.any() and (visible_U & ~keep_U).any():
            assert scores_U[keep_U].min() >= scores_U[visible_U & ~keep_U].max()


def test_a_relaxed_choice_hardens_to_the_best_of_each_draw() -> None:
    visible_BU = torch.tensor([[True, True, True, False], [True, False, False, False]])
    logits_BU = torch.tensor([[4.0, 0.0, 2.0, 99.0], [0.0, 50.0, 50.0, 50.0]])
    uniform_BKU = torch.full((2, 2, 4), 0.5)
    uniform_BKU[0, 1, 2] = 0.99  # Gumbel noise 4.6 against 0.37: the second draw goes to unit 2
    keep_BU = draw_top_k(logits_BU, visible_BU, 0.5, 0.01, uniform_BKU)
    torch.testing.assert_close(keep_BU, torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
    assert kept_count(visible_BU, 0.5).tolist() == [2, 1]


def test_what_holds_a_selection_small_by_hand() -> None:
    """L2X has its number of draws, hard concrete a price for missing its share, DiffMask one for what is lost."""
    divergence_B, visible_BU = torch.tensor([0.2, 0.4]), torch.ones(2, 4, dtype=torch.bool)
    logits_BU = torch.tensor([[3.0, -3.0, 0.5, 0.0], [2.0, 1.0, -1.0, -2.0]])
    settings = {kind: SelectorSettings(kind=kind, rate=0.25, tolerance=0.1, temperature=0.5) for kind in KINDS}
    games = {kind: RELAXATIONS[kind](settings[kind]) for kind in KINDS}
    share = torch.sigmoid(logits_BU - 0.5 * math.log(0.1 / 1.1)).mean()  # stretched to -0.1 and 1.1 (Louizos et al. 2018)
    lost, excess = divergence_B.mean(), share - 0.25
    assert games["l2x"].loss(divergence_B, logits_BU, visible_BU) == pytest.approx(lost.item())
    prices = [games[kind].price for kind in ("hard-concrete", "diffmask")]  # type: ignore[attr-defined]
    first = games["hard-concrete"].loss(divergence_B, logits_BU, visible_BU)
    assert first == pytest.approx((lost + (prices[0] + excess) * excess + 10 * excess**2).item(), rel=1e-4)
    missed = lost - 0.1
    other = games["diffmask"].loss(divergence_B, logits_BU, visible_BU)
    assert other == pytest.approx((share + max(0.1, prices[1] + 0.3 * missed) * missed).item(), rel=1e-4)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_a_hard_concrete_selector_keeps_its_share_on_average(tokenizer: Any, planted: Dataset, rate: float) -> None:
    model, train = OneWordDecides(tokenizer), planted.select(range(96))
    settings = SelectorSettings(kind="hard-concrete", rate=rate, epochs=12, learning_rate=5e-3)
    selector = fit_selector(settings, model, tokenizer, train, seed=0)
    batch = collate(list(train), tokenizer.pad_token_id)
    logits_BU = selector.unit_logits(model, batch)
    share = _expected_share(logits_BU, visible_units(batch["unit_ids"], width(batch)), settings.heat())
    assert float(share) == pytest.approx(rate, abs=0.12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_selector_finds_the_word_that_decides(kind: Kind, tokenizer: PreTrainedTokenizerBase, planted: Dataset) -> None:
    model = OneWordDecides(tokenizer)
    settings = SelectorSettings(kind=kind, rate=0.1, epochs=12, learning_rate=5e-3)
    seen: list[tuple[int, int]] = []
    train, test = planted.select(range(128)), planted.select(range(128, 160))
    selector = fit_selector(settings, model, tokenizer, train, seed=0, progress=lambda done, total: seen.append((done, total)))
    batch = collate(list(test), tokenizer.pad_token_id)
    keep_BU = selector.select(model, tokenizer, batch)
    great_BT = batch["input_ids"] == tokenizer.convert_tokens_to_ids("great")
    assert keep_BU.sum(1).tolist() == [1] * 32
    assert torch.equal(keep_BU.nonzero()[:, 1], batch["unit_ids"][great_BT])
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (12 * 128, 12 * 128)


def test_a_selector_for_regression_and_pairs(tokenizer: PreTrainedTokenizerBase, planted: Dataset) -> None:
    texts = planted["text"]
    pairs = Dataset.from_dict({"text": ["the story"] * len(texts), "text_pair": texts})
    rows = encode_dataset(pairs, tokenizer)
    model = OneWordDecides(tokenizer, outputs=1)
    settings = SelectorSettings(rate=0.05, epochs=12, learning_rate=5e-3)
    selector = fit_selector(settings, model, tokenizer, rows.select(range(128)), seed=0)
    batch = collate(list(rows.select(range(128, 160))), tokenizer.pad_token_id)
    found_B = selector.select(model, tokenizer, batch).nonzero()[:, 1]
    assert torch.equal(found_B, batch["unit_ids"][batch["input_ids"] == tokenizer.convert_tokens_to_ids("great")])


# --- a selector as a model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def reviews(tiny_data: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    return encode_dataset(tiny_data, tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(
    kind: Kind, tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, reviews: Dataset, mixed: Batch, tmp_path: Path
) -> None:
    model = tiny_bert()
    selector = fit_selector(SelectorSettings(kind=kind, **QUICK), model, tokenizer, reviews, seed=3)
    selector.save(tmp_path / "new" / "folder")
    again = Selector.load(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["selector.json", "selector.safetensors"]
    assert again.settings == selector.settings
    assert again.fingerprint() == selector.fingerprint()
    assert torch.equal(again.unit_logits(model, mixed), selector.unit_logits(model, mixed))


def test_loading_tells_what_is_wrong(
    tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, reviews: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no selector in .*selector.json is missing; fit one") as caught:
        Selector.load(tmp_path)
    assert "\n" not in str(caught.value)
    fit_selector(SelectorSettings(**QUICK), tiny_bert(), tokenizer, reviews, seed=0).save(tmp_path)
    whole = json.loads((tmp_path / "selector.json").read_text())
    for told, message in (
        (whole | {"fingerprint": "0"}, "is not what was saved there"),
        (whole | {"format": 99}, "format 99, expected 1"),
        (whole | {"widths": [1, 2]}, "cannot be read"),
        (whole | {"settings": whole["settings"] | {"rate": 7}}, "cannot be read"),
        ({}, "cannot be read"),
        ({name: whole[name] for name in whole if name != "fingerprint"}, "cannot be read"),
    ):
        (tmp_path / "selector.json").write_text(json.dumps(told))
        with pytest.raises(ValueError, match=message) as caught:
            Selector.load(tmp_path)
        assert "\n" not in str(caught.value)


def test_loading_tells_that_weights_are_missing_or_broken(
    tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, reviews: Dataset, tmp_path: Path
) -> None:
    fit_selector(SelectorSettings(**QUICK), tiny_bert(), tokenizer, reviews, seed=0).save(tmp_path)
    weights = tmp_path / "selector.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"the selector in .* cannot be read"):
        Selector.load(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"no selector in .*: selector\.safetensors is missing"):
        Selector.load(tmp_path)


def test_scores_are_as_fine_in_bfloat16(tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, rows_of: Any) -> None:
    """Coarse ones would tie, and ties go to the left."""
    widths = [each.shape[-1] for each in read_hidden(tiny_bert(), collate(rows_of(tokenizer, ["a film"]), 0), 4).hidden]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        selector = Selector(SelectorSettings(), widths)
    rows = rows_of(tokenizer, ["the film has a plot that is dull and a cast that is great but an ending that we hate"])
    (scored,) = score_dataset(L2X(selector=selector), tiny_bert(), tokenizer, rows, precision="bfloat16")
    assert scored.scores_U.dtype == torch.float32
    assert len(scored.scores_U.unique()) == len(scored.scores_U)


def test_the_seed_decides(tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, reviews: Dataset) -> None:
    def fingerprint(seed: int) -> str:
        return fit_selector(SelectorSettings(**QUICK), tiny_bert(), tokenizer, reviews, seed=seed).fingerprint()

    first = fingerprint(0)
    torch.manual_seed(99)
    assert fingerprint(0) == first
    assert fingerprint(1) != first


def test_selecting_does_not_depend_on_the_batch(
    tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, reviews: Dataset, rows_of: Any, texts: list[str]
) -> None:
    model, rows = tiny_bert(), rows_of(tokenizer, texts)
    selector = fit_selector(SelectorSettings(**QUICK), model, tokenizer, reviews, seed=0)
    together_BU = selector.unit_logits(model, collate(rows, tokenizer.pad_token_id))
    for row, together_U in zip(rows, together_BU, strict=True):
        alone_BU = selector.unit_logits(model, collate([row], tokenizer.pad_token_id))
        torch.testing.assert_close(alone_BU[0, : row["n_units"]], together_U[: row["n_units"]], atol=1e-4, rtol=1e-4)
        assert (together_U[row["n_units"] :] == 0).all()


def test_the_model_comes_back_as_it_was(tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, reviews: Dataset) -> None:
    model = tiny_bert(dropout=0.1).train()
    model.classifier.weight.requires_grad_(False)
    before, random = _state(model), torch.random.get_rng_state()
    fit_selector(SelectorSettings(**QUICK), model, tokenizer, reviews, seed=0)
    assert _state(model) == before

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_selector(SelectorSettings(**QUICK), model, tokenizer, reviews, seed=0, progress=interrupt)
    assert _state(model) == before
    assert torch.equal(torch.random.get_rng_state(), random)


def _state(model: nn.Module) -> list[Any]:
    modules = [(module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    return [modules, [(p.requires_grad, p.grad is None, float(p.detach().sum())) for p in model.parameters()]]


def test_texts_without_words_are_refused(tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, rows_of: Any) -> None:
    with pytest.raises(ValueError, match="none of the 2 texts has a word"):
        fit_selector(SelectorSettings(), tiny_bert(), tokenizer, rows_of(tokenizer, ["", " "]), seed=0)


def test_another_model_is_refused(tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, reviews: Dataset, mixed: Batch) -> None:
    selector = fit_selector(SelectorSettings(**QUICK), tiny_bert(), tokenizer, reviews, seed=0)
    with pytest.raises(ValueError, match=r"widths \(32, 32, 32, 32\), the model has \(16, 16, 16, 16\)"):
        selector.select(tiny_bert(width=16), tokenizer, mixed)


# --- explainers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_an_explainer_needs_a_fitted_selector(
    explainer: type[AmortisedExplainer], tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, reviews: Dataset, tmp_path: Path
) -> None:
    model, rows = tiny_bert(num_labels=3), list(reviews.select(range(6)))
    with pytest.raises(ValueError, match=r"no selector yet; fit one with"):
        score_dataset(explainer(), model, tokenizer, rows)
    fitted = explainer().fit(model, tokenizer, reviews, settings=SelectorSettings(**QUICK), seed=1)
    assert fitted.selector is not None
    assert fitted.selector.settings.kind == explainer.kind
    fitted.selector.save(tmp_path)
    loaded = explainer(selector=tmp_path)
    batch = collate(rows, tokenizer.pad_token_id)
    shares_BU = fitted.selector.unit_logits(model, batch).sigmoid()
    for row, one, other in zip(
        shares_BU, score_dataset(fitted, model, tokenizer, rows), score_dataset(loaded, model, tokenizer, rows), strict=True
    ):
        assert torch.equal(one.scores_U, other.scores_U)
        torch.testing.assert_close(one.scores_U, row[: len(one.scores_U)], atol=1e-5, rtol=1e-5)
        assert one.target == int(one.logits_C.argmax())
    assert json.loads(json.dumps(fitted.settings())) == {"selector": fitted.selector.fingerprint()}
    wrong = next(other for other in EXPLAINERS if other is not explainer)(selector=tmp_path)
    with pytest.raises(ValueError, match="fit its own"):
        score_dataset(wrong, model, tokenizer, rows)


def test_by_name_with_a_saved_selector(
    tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, reviews: Dataset, tmp_path: Path
) -> None:
    model = tiny_bert()
    L2X().fit(model, tokenizer, reviews, settings=SelectorSettings(**QUICK)).selector.save(tmp_path)  # type: ignore[union-attr]
    explainer = explainer_from_name("l2x", {"selector": str(tmp_path)})
    (found,) = explain(model, tokenizer, "a great film", method=explainer)
    assert list(found.words) == ["a", "great", "film"]
    assert found.settings == explainer.settings()
    assert not explainer.signed
    assert all(0 < score < 1 for score in found.scores)
    with pytest.raises(ValueError, match=r"'l2x', setting 'selector': .*no selector in") as caught:
        explainer_from_name("l2x", {"selector": str(tmp_path / "elsewhere")})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="'l2x' has no selector yet"):
        explain(model, tokenizer, "a great film", method="l2x")


def test_the_sufficient_subset_is_the_word_that_decides(tokenizer: PreTrainedTokenizerBase, planted: Dataset) -> None:
    model, rows = OneWordDecides(tokenizer), list(planted.select(range(8)))
    great = tokenizer.convert_tokens_to_ids("great")
    for row, scored in zip(rows, score_dataset(SufficientSubset(), model, tokenizer, rows), strict=True):
        assert int(scored.scores_U.argmax()) == row["unit_ids"][row["input_ids"].index(great)]
        assert scored.diagnostics["size"] == 1
        assert scored.diagnostics["divergence"] == pytest.approx(0, abs=1e-5)
        assert sorted(scored.scores_U.tolist()) == pytest.approx([(i + 1) / 10 for i in range(10)])


@pytest.mark.parametrize("num_labels", [1, 3])
def test_pruning_finds_what_enumeration_finds(
    num_labels: int, tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, rows_of: Any
) -> None:
    """Down to one of two words, and of three the path of the least harm: against every subset, tried one by one."""
    model = tiny_bert(num_labels=num_labels)
    for text in ("great plot", "the awful cast"):
        rows = rows_of(tokenizer, [text])
        (scored,) = score_dataset(SufficientSubset(rate=0.5, steps=3, tolerance=1e-9), model, tokenizer, rows)
        order = scored.scores_U.argsort().tolist()  # the first given up comes first
        kept = set(range(len(order)))
        for unit in order[:-1]:
            harms = {gone: _divergence(model, tokenizer, rows[0], kept - {gone}) for gone in kept}
            assert unit == min(harms, key=lambda gone: harms[gone])
            kept.remove(unit)
        assert scored.diagnostics["size"] == len(order)
        best = min(
            _divergence(model, tokenizer, rows[0], set(some)) for some in combinations(range(len(order)), len(order) - 1)
        )
        assert _divergence(model, tokenizer, rows[0], set(order[1:])) == pytest.approx(best, rel=1e-4)


def _divergence(model: nn.Module, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], kept: set[int]) -> float:
    batch = collate([row], tokenizer.pad_token_id)
    keep_BU = torch.tensor([[unit in kept for unit in range(row["n_units"])]])
    with torch.no_grad():
        whole, part = (observe(model, b).logits_BC for b in (batch, perturb(batch, keep_BU, "mask", tokenizer)))
    if whole.shape[1] == 1:
        return float((whole - part).square())
    p = whole.softmax(1)
    return float((p * (whole.log_softmax(1) - part.log_softmax(1))).sum())


def test_the_sufficient_subset_is_repeatable(
    tiny_bert: Any, tokenizer: PreTrainedTokenizerBase, rows_of: Any, texts: list[str], pairs: list[str]
) -> None:
    model, rows = tiny_bert(num_labels=3), rows_of(tokenizer, texts, pairs)
    before, explainer = _state(model), SufficientSubset(steps=5)
    together = score_dataset(explainer, model, tokenizer, rows, seed=1)
    alone = score_dataset(explainer, model, tokenizer, rows, seed=1, token_budget=1)
    assert _state(model) == before
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.scores_U, other.scores_U)
        assert one.diagnostics == pytest.approx(other.diagnostics, abs=1e-5)
