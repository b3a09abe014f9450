"""Decoders with a classification head: causal, without [CLS], read at their last token, cut by byte-level BPE."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    GemmaConfig,
    GemmaForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from egkd.config import resolve
from egkd.data import Task
from egkd.explain.base import score_dataset
from egkd.explain.fitting import fit_selector
from egkd.explain.gradient import InputXGradient, IntegratedGradients
from egkd.explain.masking import soft_mask
from egkd.explain.perturbation import Occlusion
from egkd.explain.selectors import SelectorSettings
from egkd.models import double_backward, embedding_layer, observe, reads_last_token
from egkd.pipeline import distill
from egkd.students import build_student, load_classifier, load_tokenizer
from egkd.text import SPECIAL, Batch, collate, encode, perturb, pool_units, width

pytestmark = pytest.mark.usefixtures("calm_libraries")
FAMILIES: dict[str, tuple[type, type]] = {
    "llama": (LlamaConfig, LlamaForSequenceClassification),
    "qwen2": (Qwen2Config, Qwen2ForSequenceClassification),
    "qwen3": (Qwen3Config, Qwen3ForSequenceClassification),
    "gemma": (GemmaConfig, GemmaForSequenceClassification),
    "gemma2": (Gemma2Config, Gemma2ForSequenceClassification),
    "gemma3": (Gemma3TextConfig, Gemma3TextForSequenceClassification),
    "mistral": (MistralConfig, MistralForSequenceClassification),
    "gpt2": (GPT2Config, GPT2ForSequenceClassification),
}
TEXTS = ["dull", "The film is great, isn't it", "I really love this lovely movie and the cast", ""]
TASK = Task(name="reviews", kind="classification", label_names=("negative", "positive"), metrics=("accuracy",))
STEPS = "use_cpu=true max_steps=3 per_device_train_batch_size=8 logging_steps=1 learning_rate=1e-3"


def byte_bpe(data: Dataset, *, starts: bool, ends: bool = False, pads: bool = False) -> PreTrainedTokenizerFast:
    """Like Llama's (`starts`: <s> before every text) or Qwen's (nothing is added); no mask token, padding only if asked."""
    special = ["<s>", "</s>", *(["<pad>"] if pads else [])]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        data["text"],
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    frame = f"{'<s> ' * starts}$A{' </s>' * ends}"
    if starts or ends:
        pair = f"{frame} {'<s>:1 ' * starts}$B:1{' </s>:1' * ends}"
        backend.post_processor = processors.TemplateProcessing(
            single=frame, pair=pair, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=128,
        padding_side="left",  # as decoders like it; nothing here may depend on it
        bos_token="<s>" if starts else None,
        eos_token="</s>",
        pad_token="<pad>" if pads else None,
    )


@pytest.fixture(scope="module")
def bpe(tiny_data: Dataset) -> dict[bool, PreTrainedTokenizerFast]:
    """By whether texts start with <s>: a tokenizer as it comes, without padding."""
    return {starts: byte_bpe(tiny_data, starts=starts) for starts in (True, False)}


@pytest.fixture(scope="module")
def decoder(bpe: Any) -> Callable[..., PreTrainedModel]:
    """A tiny random decoder of a family whose padding token is `</s>`, as people set it."""

    def build(family: str, *, pad_token_id: int | None = 1, layers: int = 3, seed: int = 0) -> PreTrainedModel:
        config_class, model_class = FAMILIES[family]
        sizes: dict[str, Any] = {
            "vocab_size": len(bpe[True]),
            "hidden_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "pad_token_id": pad_token_id,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "initializer_range": 0.3,
            "num_labels": 2,
        }
        if family == "gpt2":
            sizes |= {"n_positions": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        else:
            sizes |= {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128, "head_dim": 8}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return model_class(config_class(**sizes)).eval()

    return build


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, decoder: Any, bpe: Any) -> Callable[..., Path]:
    """A decoder saved as people keep it: without a padding token, with names for its labels."""
    folder = tmp_path_factory.mktemp("decoders")

    def save(family: str, *, starts: bool) -> Path:
        out = folder / f"{family}-{starts}"
        if not out.exists():
            model = decoder(family, pad_token_id=None)
            model.config.id2label, model.config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
            model.save_pretrained(out)
            bpe[starts].save_pretrained(out)
        return out

    return save


def rows(tokenizer: Any, texts: list[str], pairs: list[str] | None = None) -> list[dict[str, Any]]:
    encoded = encode(tokenizer, texts, pairs)
    return [{name: values[index] for name, values in encoded.items()} for index in range(len(texts))]


@pytest.mark.parametrize(
    ("family", "attention"),
    [(family, how) for family in FAMILIES for how in ("sdpa", "eager") if (family, how) != ("gemma2", "sdpa")],  # it has none
)
def test_padding_changes_neither_answers_nor_attributions(decoder: Any, bpe: Any, family: str, attention: str) -> None:
    """The oracle is transformers' own answer to one text alone, where nothing is padded."""
    for starts in (True, False):
        model = decoder(family)
        model.set_attn_implementation(attention)
        examples = rows(bpe[starts], TEXTS)

        def look(batch: Batch, model: Any = model) -> tuple[torch.Tensor, torch.Tensor]:
            seen = observe(model, batch, keep=("embeddings",))
            assert seen.embeddings_BTD is not None
            (gradient_BTD,) = torch.autograd.grad(seen.logits_BC[:, 1].sum(), seen.embeddings_BTD)
            scores_BT = (gradient_BTD * seen.embeddings_BTD).sum(-1)
            return seen.logits_BC.detach(), pool_units(scores_BT, batch["unit_ids"], width(batch)).detach()

        together, scores = look(collate(examples, 1))
        assert (together - together[0]).abs().max() > 0.1
        for index, example in enumerate(examples):
            logits, own = look(collate([example], 1))
            if TEXTS[index]:
                alone = model(**bpe[starts](TEXTS[index], return_tensors="pt")).logits[0]
                torch.testing.assert_close(together[index], alone, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(logits[0], together[index], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(own[0], scores[index, : own.shape[1]], atol=1e-3, rtol=1e-3)
            assert not scores[index, own.shape[1] :].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_not_the_tokenizers_padding_that_counts(decoder: Any, bpe: Any, family: str) -> None:
    """A batch padded with any token, on either side, is read as the model's own padding says."""
    model = decoder(family)
    batch = collate(rows(bpe[True], TEXTS), 1)
    other = batch | {"input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 17)}
    torch.testing.assert_close(observe(model, other).logits_BC, observe(model, batch).logits_BC)
    if family != "gpt2":  # which counts positions from the left, padding or not
        order = batch["attention_mask"].argsort(dim=1, stable=True)
        left = {name: batch[name].gather(1, order) for name in ("input_ids", "attention_mask")}
        torch.testing.assert_close(observe(model, left).logits_BC, observe(model, batch).logits_BC, atol=1e-4, rtol=1e-4)


def test_a_decoder_that_knows_no_padding_is_refused_with_advice(decoder: Any, bpe: Any) -> None:
    model = decoder("llama", pad_token_id=None)
    with pytest.raises(ValueError, match=r"reads the last token .* set model.config.pad_token_id = tokenizer.pad_token_id"):
        observe(model, collate(rows(bpe[True], TEXTS), 1))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("starts", [True, False])
def test_loading_tells_a_decoder_what_padding_is(kept: Any, family: str, starts: bool) -> None:
    model, tokenizer = load_classifier(str(kept(family, starts=starts)), TASK), load_tokenizer(str(kept(family, starts=starts)))
    assert model.config.pad_token_id == tokenizer.pad_token_id == 1
    assert reads_last_token(model)


def test_what_ends_every_text_is_no_padding(tiny_data: Dataset, tmp_path: Path) -> None:
    byte_bpe(tiny_data, starts=True, ends=True).save_pretrained(tmp_path / "both")
    assert load_tokenizer(str(tmp_path / "both")).pad_token == "<s>"
    byte_bpe(tiny_data, starts=False, ends=True).save_pretrained(tmp_path / "end")
    with pytest.raises(ValueError, match="has no padding token; set one and save it"):
        load_tokenizer(str(tmp_path / "end"))
    byte_bpe(tiny_data, starts=False, ends=True, pads=True).save_pretrained(tmp_path / "pads")
    assert load_tokenizer(str(tmp_path / "pads")).pad_token == "<pad>"


def test_encoders_do_not_read_the_last_token(tiny_bert: Any) -> None:
    assert not reads_last_token(tiny_bert())


@pytest.mark.parametrize("starts", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
def test_words_that_are_taken_away_leave_no_trace(decoder: Any, bpe: Any, family: str, starts: bool) -> None:
    """Whatever word stood there, also the last one, at which the model reads: the answer without it is the same."""
    model, tokenizer = decoder(family), bpe[starts]
    first, second = (collate(rows(tokenizer, [f"the film is {word}", f"{word} plot"]), 1) for word in ("great", "dull"))
    assert (observe(model, first).logits_BC - observe(model, second).logits_BC).abs().max() > 0.1
    keep = torch.tensor([[True, True, True, False], [False, True, False, False]])
    operators = ("delete", "attention", "gather")
    for operator in operators:
        answers = [observe(model, perturb(batch, keep, operator, tokenizer)).logits_BC for batch in (first, second)]
        if first["input_ids"].shape == second["input_ids"].shape or operator == "delete":
            torch.testing.assert_close(answers[0][0], answers[1][0], atol=1e-4, rtol=1e-4)
    left = observe(model, collate(rows(tokenizer, ["the film is"]), 1)).logits_BC[0]
    for operator in operators:
        answer = observe(model, perturb(first, keep, operator, tokenizer)).logits_BC[0]
        torch.testing.assert_close(answer, left, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("operator", ["delete", "attention", "gather"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("starts", [True, False])
def test_a_text_without_words_is_an_empty_text(decoder: Any, bpe: Any, family: str, starts: bool, operator: Any) -> None:
    model, tokenizer = decoder(family), bpe[starts]
    batch = collate(rows(tokenizer, TEXTS), 1)
    answers = observe(model, perturb(batch, torch.zeros(4, width(batch)).bool(), operator, tokenizer)).logits_BC
    empty = observe(model, collate(rows(tokenizer, [""]), 1)).logits_BC[0]
    assert torch.isfinite(empty).all()
    for answer in answers:
        torch.testing.assert_close(answer, empty, atol=1e-4, rtol=1e-4)


def test_hidden_words_count_as_gathered_ones(decoder: Any, bpe: Any) -> None:
    """`gather` leaves positions as `attention` does, and rotary positions are all that is left of hidden words."""
    model, batch = decoder("qwen2"), collate(rows(bpe[True], TEXTS), 1)
    keep = torch.rand(4, width(batch), generator=torch.Generator().manual_seed(3)) > 0.4
    hidden, gathered = (observe(model, perturb(batch, keep, how, bpe[True])).logits_BC for how in ("attention", "gather"))
    torch.testing.assert_close(hidden, gathered, atol=1e-4, rtol=1e-4)


def test_masking_is_refused(bpe: Any) -> None:
    batch = collate(rows(bpe[True], TEXTS), 1)
    with pytest.raises(ValueError, match="has no mask token; use the operator 'delete' or 'attention'"):
        perturb(batch, torch.ones(4, width(batch)).bool(), "mask", bpe[True])


def test_pairs_are_told_apart_without_separators(bpe: Any) -> None:
    for starts in (True, False):
        (row,) = rows(bpe[starts], ["the film"], ["is dull"])
        words: dict[int, str] = {}
        for token, unit in zip(row["input_ids"], row["unit_ids"], strict=True):
            if unit != SPECIAL:
                words[unit] = words.get(unit, "") + bpe[starts].decode([token])
        assert [words[unit].strip() for unit in sorted(words)] == ["the", "film", "is", "dull"]


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_tapped_where_they_enter_the_layers(decoder: Any, bpe: Any, family: str) -> None:
    """Gemma scales them: what is tapped is what the first layer gets."""
    model, batch = decoder(family), collate(rows(bpe[True], TEXTS), 1)
    assert embedding_layer(model) is model.get_input_embeddings()
    seen = observe(model, batch, keep=("embeddings", "hidden_states"))
    assert seen.hidden_states is not None
    assert seen.embeddings_BTD is not None
    if family != "gpt2":  # which adds positions afterwards
        torch.testing.assert_close(seen.embeddings_BTD, seen.hidden_states[0])
    assert seen.at is not None
    torch.testing.assert_close(seen.at(seen.embeddings_BTD), seen.logits_BC)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"])
def test_a_second_derivative_is_that_of_finite_differences(decoder: Any, bpe: Any, family: str, training: bool) -> None:
    """Through RMSNorm, rotary positions, grouped heads and soft caps."""
    model, batch = decoder(family, layers=2).double().train(training), collate(rows(bpe[True], TEXTS[:2]), 1)

    def size() -> torch.Tensor:
        seen = observe(model, batch, keep=("embeddings",), differentiable=True)
        assert seen.embeddings_BTD is not None
        (gradient,) = torch.autograd.grad((seen.logits_BC[:, 1]).sum(), seen.embeddings_BTD, create_graph=True)
        return gradient.square().sum().log()

    weight = model.model.layers[0].self_attn.q_proj.weight
    with double_backward():
        (found,) = torch.autograd.grad(size(), weight)
    along = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)
    values = []
    for step in (1e-3, -1e-3):  # norms and positions are computed in float32 whatever the model is
        with torch.no_grad():
            weight += step * along
        values.append(size().item())
        with torch.no_grad():
            weight -= step * along
    expected = (values[0] - values[1]) / 2e-3
    assert abs(expected) > 1e-4
    assert (found * along).sum().item() == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2"])
def test_explanations_of_decoders(decoder: Any, bpe: Any, family: str) -> None:
    """Finite, of every word, the same in any company; complete where they promise it."""
    model, tokenizer = decoder(family), bpe[True]
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", pad_token="</s>", bos_token="<s>"
    )
    examples = rows(tokenizer, TEXTS[:3])
    for explainer in (
        InputXGradient(),
        IntegratedGradients(baseline="zero", steps=200),
        Occlusion(operator="delete"),
        Occlusion(operator="attention"),
    ):
        together = score_dataset(explainer, model, tokenizer, examples, targets=[1, 1, 0], seed=0)
        for index, one in enumerate(together):
            (alone,) = score_dataset(explainer, model, tokenizer, [examples[index]], targets=[[1, 1, 0][index]], seed=0)
            assert one.visible_U.all()
            assert one.scores_U.abs().max() > 1e-3
            torch.testing.assert_close(one.scores_U, alone.scores_U, atol=2e-3, rtol=2e-3)


def test_occlusion_is_asking_without_the_word(decoder: Any, bpe: Any) -> None:
    model, tokenizer = decoder("llama"), bpe[True]
    (scored,) = score_dataset(
        Occlusion(operator="delete"), model, tokenizer, rows(tokenizer, ["the film is great"]), targets=[1]
    )

    def odds(text: str) -> float:
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        return (logits[1] - logits[0]).item()

    assert scored.scores_U[3].item() == pytest.approx(odds("the film is great") - odds("the film is"), abs=1e-3)


def test_soft_masks_of_ones_and_zeros(decoder: Any, bpe: Any) -> None:
    model, batch = decoder("gemma"), collate(rows(bpe[True], TEXTS[:3]), 1)
    masked = soft_mask(model, bpe[True], batch)
    torch.testing.assert_close(masked.logits(torch.ones(3, width(batch))), observe(model, batch).logits_BC)
    assert (masked.logits(torch.zeros(3, width(batch))) - observe(model, batch).logits_BC).abs().max() > 0.01


def test_a_selector_can_be_fitted_to_a_decoder(decoder: Any, bpe: Any, tiny_data: Dataset) -> None:
    model, tokenizer = decoder("qwen2"), bpe[False]
    examples = rows(tokenizer, tiny_data["text"][:16])
    settings = SelectorSettings(kind="l2x", rate=0.3, epochs=1, batch_size=8)
    selector = fit_selector(settings, model, tokenizer, examples, seed=0)
    batch = collate(examples, 1)
    kept_B = selector.select(model, tokenizer, batch).sum(1)
    assert torch.equal(kept_B, torch.ceil(0.3 * batch["n_units"]).long())


GUIDES: dict[str, dict[str, Any]] = {
    "gradient": {},
    "perturbation": {"operator": "delete"},
    "selection": {"operator": "delete"},
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, save: Any, write_csv: Any, tiny_data: Dataset) -> Path:
    """A folder with a small BERT and reviews."""
    folder = tmp_path_factory.mktemp("shop")
    save(folder / "bert", layers=2, width=16)
    names = ["negative" if label == 0 else "positive" for label in tiny_data["label"]]
    write_csv(folder / "train.csv", text=tiny_data["text"][:48], label=names[:48])
    write_csv(folder / "dev.csv", text=tiny_data["text"][48:72], label=names[48:72])
    return folder


@pytest.mark.parametrize(
    ("family", "starts", "student"), [("llama", True, "bert"), ("qwen2", False, "bert"), ("qwen2", False, "layers:2")]
)
def test_a_decoder_teaches(shop: Path, kept: Any, family: str, starts: bool, student: str) -> None:
    """A whole run with all three families, into a small BERT or into layers of the decoder itself."""
    teacher = kept(family, starts=starts)
    config = resolve(
        {
            "teacher": str(teacher),
            "student": str(shop / student) if student == "bert" else student,
            "data": {"train": str(shop / "train.csv"), "eval": str(shop / "dev.csv")},
            "objectives": GUIDES,
            "train": {name: value for name, _, value in (each.partition("=") for each in STEPS.split())},
            "evaluate": {"explained": 4, "shown": 2, "latency_repeats": 1},
            "max_length": 48,
        }
    )
    out = shop / f"{family}-{student.replace(':', '')}"
    distill(config, out)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(out / "student"),
        AutoTokenizer.from_pretrained(out / "student"),
    )
    assert model.config.id2label == {0: "negative", 1: "positive"}
    if student != "bert":
        assert type(model).__name__ == "Qwen2ForSequenceClassification"
        assert len(model.model.layers) == model.config.num_hidden_layers == len(model.config.layer_types) == 2
        texts = ["the film is great", "dull"]
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        for text, logits in zip(texts, together, strict=True):
            alone = model(**tokenizer(text, return_tensors="pt")).logits[0]
            torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)


def test_masking_is_refused_before_anything_is_done(shop: Path, kept: Any) -> None:
    data = {"train": str(shop / "train.csv"), "eval": str(shop / "dev.csv")}
    settings = {"teacher": str(kept("llama", starts=True)), "student": str(shop / "bert"), "data": data, "max_length": 48}
    for guide in ("perturbation", "selection"):
        with pytest.raises(ValueError, match=rf"objectives.{guide}.operator is 'mask', .* set it to delete, gather"):
            distill(resolve(settings | {"objectives": {guide: {}}}), shop / "refused")
    assert not (shop / "refused").exists()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3", "gpt2"])
def test_layers_of_a_decoder(decoder: Any, bpe: Any, family: str, tmp_path: Path) -> None:
    """All layers answer as the teacher; two survive being saved."""
    decoder(family).save_pretrained(tmp_path / "teacher")
    bpe[True].save_pretrained(tmp_path / "teacher")
    batch = collate(rows(bpe[True], TEXTS), 1)
    whole, _ = build_student("layers:3", str(tmp_path / "teacher"), TASK)
    torch.testing.assert_close(observe(whole.eval(), batch).logits_BC, observe(decoder(family), batch).logits_BC)
    part, tokenizer = build_student("layers:0,2", str(tmp_path / "teacher"), TASK)
    assert tokenizer.pad_token_id == 1
    answers = observe(part.eval(), batch).logits_BC
    part.save_pretrained(tmp_path / "student")
    again = load_classifier_of(tmp_path / "student")
    torch.testing.assert_close(observe(again, batch).logits_BC, answers)


def load_classifier_of(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()
