"""From a text to something to read, to keep and to show."""

import copy
import json
import re
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from rich.console import Console

from egkd.explain import (
    EXPLAINERS,
    Explanation,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    Saliency,
    SmoothGrad,
    Unit,
    explain,
    explainer_from_name,
    load,
    save,
)

NASTY = 'The <b>film</b> & "plot" is <script>alert(1)</script> great'


@pytest.fixture
def model(tiny_bert):
    model = tiny_bert(layers=2)
    model.config.id2label, model.config.label2id = {0: "<bad>", 1: "good"}, {"<bad>": 0, "good": 1}
    return model


def test_an_explanation_knows_its_text_words_class_method_and_settings(model, tokenizer):
    one, two = explain(
        model, tokenizer, ["A dull  film.", "great"], ["", "the cast!"], method=KernelShap(n_samples=12), target="good"
    )
    assert one.words == ("A", "dull", "film", ".")
    assert one.units[2] == Unit(0, 8, 12)
    assert two.words == ("great", "the", "cast", "!")
    assert [unit.part for unit in two.units] == [0, 1, 1, 1]
    assert (one.target, one.label) == (1, "good")
    assert one.prediction == (one.logits[1] > one.logits[0])
    assert (one.method, one.settings) == ("kernel-shap", {"n_samples": 12, "operator": "mask"})
    assert one.errors is not None
    assert len(one.errors) == 4
    assert not any(one.hidden)


def test_the_predicted_class_is_the_default_and_names_or_numbers_pick_another(model, tokenizer, texts):
    predicted = explain(model, tokenizer, texts, method="occlusion")
    assert [one.target for one in predicted] == [one.prediction for one in predicted]
    by_name = explain(model, tokenizer, texts, method="occlusion", target="<bad>")
    assert by_name == explain(model, tokenizer, texts, method="occlusion", target=0)
    assert by_name == explain(model, tokenizer, texts, method="occlusion", target=[0] * 5)
    for one, same in zip(predicted, by_name, strict=True):
        assert (one == same) == (one.target == 0)


def test_regression_explains_the_output(tiny_bert, tokenizer):
    (one,) = explain(tiny_bert(num_labels=1), tokenizer, "a dull film", method="input-x-gradient")
    assert (one.target, one.label, one.prediction) == (0, "output", one.logits[0])


def test_cut_texts_say_so(model, tokenizer):
    (one,) = explain(model, tokenizer, ["the plot is dull and the cast is awful"], method="lime", max_length=6)
    assert one.hidden == (False,) * 4 + (True,) * 5
    assert one.cut == one.hidden
    assert one.n_cut == 5
    assert "5 of 9 words not seen by the model" in one.headline()
    assert one.to_html().count("not seen by the model") == 6  # each word, and the headline


def test_words_that_share_a_token_are_not_cut(tiny_bert, bpe_tokenizer):
    """Three full stops are three words; a tokenizer may read them as one token, which the first of them owns."""
    bpe = copy.deepcopy(bpe_tokenizer)
    bpe.add_tokens(["..."])
    model = tiny_bert(layers=1, tokenizer=bpe)
    whole, cut = (explain(model, bpe, "wait... what is it", max_length=most)[0] for most in (64, 8))
    assert whole.words[:4] == ("wait", ".", ".", ".")
    assert whole.hidden[:4] == (False, False, True, True)
    assert not any(whole.cut)
    assert "not seen" not in whole.headline() + whole.to_html()
    assert whole.to_terminal().plain.startswith("wait... what is it")
    assert cut.hidden[:4] == whole.hidden[:4]
    assert cut.cut[:4] == (False,) * 4
    assert cut.cut[-1]
    assert 0 < cut.n_cut < sum(cut.hidden)


def test_classes_may_be_numpy_s_or_torch_s(model, tokenizer):
    (expected,) = explain(model, tokenizer, ["great"], target=1)
    for target in (np.int64(1), torch.tensor(1), [np.int64(1)], torch.tensor([1])):
        assert explain(model, tokenizer, ["great"], target=target) == [expected]
    both = explain(model, tokenizer, ["great", "dull"], target=[1, 0])
    for targets in (np.array([1, 0]), torch.tensor([1, 0])):
        assert explain(model, tokenizer, ["great", "dull"], target=targets) == both


@pytest.mark.parametrize("suffix", ["jsonl", "arrow"])
def test_saved_and_loaded_it_is_the_same(suffix, model, tokenizer, texts, pairs, tmp_path):
    kept = [
        *explain(model, tokenizer, [*texts, NASTY], method=SmoothGrad(inner=Saliency(reduction="l1"), n_samples=2)),
        *explain(model, tokenizer, texts, pairs, method=IntegratedGradients(steps=2), max_length=9),
        *explain(model, tokenizer, ["the film"], method=KernelShap(n_samples=2)),
    ]
    path = tmp_path / f"explanations.{suffix}"
    save(kept, path)
    assert load(path) == kept


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"saved as .jsonl or .arrow"):
        save([], tmp_path / "explanations.csv")
    with pytest.raises(ValueError, match=r"read from .jsonl or .arrow"):
        load(tmp_path / "explanations.csv")
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "hello"}) + "\n")
    with pytest.raises(ValueError, match="no saved explanation: it has no diagnostics, errors, hidden"):
        load(tmp_path / "other.jsonl")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="no saved explanation: found list, expected an object"):
        load(tmp_path / "list.jsonl")


def test_too_few_samples_for_an_error_are_told_as_none(model, tokenizer):
    (one,) = explain(model, tokenizer, ["the plot is dull"], method=KernelShap(n_samples=2))
    assert one.errors == (None,) * 4
    json.dumps(one.to_dict(), allow_nan=False)


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.data, self.spans = set(), "", []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "span":
            self.spans.append(dict(attributes))

    def handle_data(self, data):
        self.data += data


def test_html_escapes_whatever_a_text_or_label_says(model, tokenizer):
    (one,) = explain(model, tokenizer, [NASTY], ["<i>"], method="input-x-gradient", target="<bad>")
    reader = _Reader()
    reader.feed(str(one.to_html()))
    assert reader.tags == {"div", "p", "span", "small"}
    assert reader.data.startswith(f"{NASTY}\n<i>")  # nothing is lost or added either
    assert "<bad>" in reader.data
    assert [span["title"] for span in reader.spans] == [f"{score:+.4g}" for score in one.scores]


def test_colour_tells_sign_and_strength():
    one = Explanation(
        text="good so bad", units=(Unit(0, 0, 4), Unit(0, 5, 7), Unit(0, 8, 11)), scores=(2.0, 0.0, -1.0), hidden=(False,) * 3,
        target=1, label="good", logits=(0.0, 1.0), method="occlusion", settings={},
    )  # fmt: skip
    reader = _Reader()
    reader.feed(str(one.to_html()))
    red_green_blue = [[int(n) for n in re.findall(r"\d+", span["style"])[:3]] for span in reader.spans]
    assert red_green_blue[0][2] > red_green_blue[0][0]  # for: blue
    assert red_green_blue[1] == [255, 255, 255]
    assert red_green_blue[2][0] > red_green_blue[2][2]  # against: red
    assert min(red_green_blue[0]) < min(red_green_blue[2])  # and the stronger the fuller
    terminal = one.to_terminal()
    assert terminal.plain == "good so bad\nocclusion: for “good”"
    console = Console(force_terminal=True, color_system="truecolor", width=80)
    with console.capture() as capture:
        console.print(terminal)
    assert "48;2;33;102;172m" in capture.get()


STEERING = "A \x1b[31mred\x1b[0m \x1b]0;title\x07 [bold]film[/bold] \x9b2J is\r\u202e dull\u202c :smile:"


@pytest.mark.parametrize("coloured", [True, False])
def test_a_text_cannot_steer_the_terminal(coloured, model, tokenizer):
    model.config.id2label[1] = "good\x1b[2J [red]"
    (one,) = explain(model, tokenizer, [STEERING], method="input-x-gradient", target=1)
    assert one.text == STEERING  # what is kept is what was given
    console = Console(force_terminal=coloured, color_system="truecolor" if coloured else None, width=200)
    with console.capture() as capture:
        console.print(one.to_terminal())
    shown = re.sub(r"\x1b\[[\d;]*m", "", capture.get()) if coloured else capture.get()  # rich's own colours
    assert not [character for character in shown if unicodedata.category(character) == "Cc" and character != "\n"]
    assert "\u202e" not in shown
    assert "A ␛[31mred␛[0m ␛]0;title␇ [bold]film[/bold] \ufffd2J is␍" in shown
    assert "for “good␛[2J [red]”" in shown
    assert len(one.to_terminal().plain) == len(STEERING) + 1 + len(one.headline())


def test_every_explainer_is_found_by_its_name_and_rebuilt_from_its_settings():
    for name, explainer in EXPLAINERS.items():
        if explainer.family == "selection":
            continue
        built = explainer_from_name(name)
        assert type(built) is explainer
        assert built.name == name
        assert explainer_from_name(name, built.settings()) == built
        assert built.passes
        assert built.source
    smooth = SmoothGrad(inner=IntegratedGradients(steps=4), noise=0.5)
    assert explainer_from_name("smoothgrad", smooth.settings()) == smooth
    assert explainer_from_name("smoothgrad", {"inner": "saliency"}).inner == Saliency()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("integrated-gradient", {}, "unknown explanation method 'integrated-gradient'; did you mean 'integrated-gradients'?"),
        ("xyz", {}, "unknown explanation method 'xyz'; known are diffmask, exact-shapley"),
        ("lime", {"n_sample": 3}, "'lime' has no setting 'n_sample'; did you mean 'n_samples'?"),
        ("lime", {"n_samples": 0}, "'lime', setting 'n_samples': Input should be greater than 1; it is 0"),
        (
            "occlusion",
            {"operator": "erase"},
            "'occlusion', setting 'operator': Input should be 'mask', 'delete', 'attention'",
        ),
        ("shapley-sampling", {"n_samples": 3}, "'shapley-sampling', setting 'n_samples': Input should be a multiple of 2"),
        ("smoothgrad", {"inner": "lime"}, "'smoothgrad', setting 'inner': "),
        ("smoothgrad", {"inner": 3}, "'smoothgrad', setting 'inner': found 3, expected a method's name"),
        ("smoothgrad", {"inner": {"method": 5}}, "'smoothgrad', setting 'inner': found {'method': 5}"),
        ("saliency", {"steps": 2}, "'saliency' has no setting 'steps'; known are reduction"),
    ],
)
def test_wrong_names_and_settings_are_told_in_one_line(name, values, message):
    with pytest.raises(ValueError, match=name) as caught:
        explainer_from_name(name, values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_wrong_calls_are_told(model, tokenizer):
    with pytest.raises(ValueError, match="2 texts and 1 pairs"):
        explain(model, tokenizer, ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="no class 'goo'; did you mean 'good'"):
        explain(model, tokenizer, ["a"], target="goo")
    with pytest.raises(ValueError, match=r"target holds names, .*; give one name for all texts, or a number for each"):
        explain(model, tokenizer, ["a"], target=["good"])
    assert explain(model, tokenizer, []) == []
    with pytest.raises(ValueError, match="unit is 'tokens'; did you mean 'token'"):
        explain(model, tokenizer, ["a"], unit="tokens")
    with pytest.raises(ValueError, match="precision is 'float16'; did you mean 'bfloat16'"):
        explain(model, tokenizer, ["a"], precision="float16")
    with pytest.raises(ValueError, match="reduction"):
        InputXGradient(reduction="mean")
