"""The other side of `explain.py`: captum, lime, shap and transformers-interpret, each at the fastest of a few batch sizes.

Gradient methods of captum get padded batches of texts in order of length, its perturbation methods one text at a time
(its KernelShap and Lime take no more) with many copies in a pass, no gradients, and our words as features.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import (
    FeatureAblation,
    InputXGradient,
    KernelShap,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    Lime,
    NoiseTunnel,
    ShapleyValueSampling,
)
from explain_page import ITSELF
from explain_setting import Contest, Scores, Setting, fastest
from torch import Tensor
from transformers import pipeline

import egkd.explain as ours
from egkd.models import embedding_layer, observe, tapped_embeddings
from egkd.text import unit_spans

SIZES = (16, 64, 256)

Attribute = Callable[[Setting, Sequence[int], int], list[Tensor]]
"""(setting, numbers of texts, size) -> token scores of each of these texts."""


def captum_contests(setting: Setting, samples: int, sizes: Sequence[int]) -> Iterator[Contest]:
    """Every method that both have."""
    steps = max(4, samples // 4)
    yield _captum(setting, sizes, ours.Saliency(reduction="l1"), partial(_gradient, False), 1)
    yield _captum(setting, sizes, ours.InputXGradient(), partial(_gradient, True), 1)
    yield _captum(setting, sizes, ours.IntegratedGradients(steps=steps), partial(_integrated, steps), steps)
    smooth = ours.SmoothGrad(n_samples=steps)
    yield _captum(setting, sizes, smooth, partial(_smooth, steps, smooth.noise), steps)
    orders = max(2, samples // 50 * 2)
    for operator in ("mask", "attention"):
        yield _captum(setting, sizes, ours.Occlusion(operator=operator), partial(_perturbed, operator, FeatureAblation, {}), 1)
        yield _captum(
            setting, sizes, ours.Lime(n_samples=samples, operator=operator), partial(_lime, operator, samples), samples
        )
        kernel = partial(_perturbed, operator, KernelShap, {"n_samples": samples})  # counts the two ends, ours does not
        yield _captum(setting, sizes, ours.KernelShap(n_samples=samples - 2, operator=operator), kernel, samples)
        sampling = partial(_perturbed, operator, ShapleyValueSampling, {"n_samples": orders})
        yield _captum(setting, sizes, ours.ShapleySampling(n_samples=orders, operator=operator), sampling, orders)


def _captum(setting: Setting, sizes: Sequence[int], explainer: ours.Explainer, attribute: Attribute, samples: int) -> Contest:
    numbers = sorted(range(len(setting.texts)), key=lambda number: -setting.rows[number]["length"])
    trial = numbers if explainer.family == "gradient" else numbers[:: max(1, len(numbers) // 2)]
    size = cache(lambda: fastest(sizes, lambda size: attribute(setting, trial, size)))  # found when it is first needed

    def theirs(seed: int) -> Scores:
        torch.manual_seed(seed)
        found = dict(zip(numbers, attribute(setting, numbers, size()), strict=True))
        return [setting.by_words(number, found[number]) for number in range(len(numbers))]

    return Contest(
        method=_called(explainer),
        against="captum",
        setting=setting,
        samples=samples,
        ours=partial(setting.ours, explainer),
        theirs=theirs,
    )


def _called(explainer: ours.Explainer) -> str:
    operator = explainer.settings().get("operator")
    return f"{explainer.name} ({operator})" if operator else explainer.name


def _batched(setting: Setting, numbers: Sequence[int], size: int) -> Iterator[tuple[Any, Tensor, Tensor]]:
    for start in range(0, len(numbers), size):
        part = list(numbers[start : start + size])
        batch = setting.batch(part)
        yield batch, batch["attention_mask"], torch.tensor([setting.targets[number] for number in part])


def _gradient(multiply: bool, setting: Setting, numbers: Sequence[int], size: int) -> list[Tensor]:
    layer = embedding_layer(setting.model)
    captum = LayerGradientXActivation(setting.output, layer, multiply_by_inputs=multiply)
    found: list[Tensor] = []
    for batch, mask_BT, target_B in _batched(setting, numbers, size):
        each_BTD = captum.attribute(batch["input_ids"], additional_forward_args=(mask_BT, target_B))
        found += each_BTD.sum(-1) if multiply else each_BTD.abs().sum(-1)
    return found


def _integrated(steps: int, setting: Setting, numbers: Sequence[int], size: int) -> list[Tensor]:
    layer = embedding_layer(setting.model)
    captum = LayerIntegratedGradients(setting.output, layer)
    found: list[Tensor] = []
    for batch, mask_BT, target_B in _batched(setting, numbers, 8):
        found += captum.attribute(
            batch["input_ids"],
            baselines=_without_words(setting, batch),
            additional_forward_args=(mask_BT, target_B),
            n_steps=steps,
            internal_batch_size=max(size, len(target_B)),
        ).sum(-1)
    return found


def _smooth(steps: int, noise: float, setting: Setting, numbers: Sequence[int], size: int) -> list[Tensor]:
    found: list[Tensor] = []
    for batch, _, target_B in _batched(setting, numbers, 8):
        embeddings_BTD = observe(setting.model, batch, keep=("embeddings",)).embeddings_BTD.detach()

        def output(point_PTD: Tensor, mask_PT: Tensor, ids_PT: Tensor, target_P: Tensor) -> Tensor:
            with tapped_embeddings(setting.model, point_PTD):
                return setting.output(ids_PT, mask_PT, target_P)

        found += (
            NoiseTunnel(InputXGradient(output))
            .attribute(
                embeddings_BTD.requires_grad_(True),
                additional_forward_args=(batch["attention_mask"], batch["input_ids"], target_B),
                nt_samples=steps,
                nt_samples_batch_size=max(1, size // len(target_B)),
                stdevs=noise * float(embeddings_BTD.std()),
            )
            .sum(-1)
        )
    return found


def _perturbed(
    operator: str, method: Any, options: dict[str, int], setting: Setting, numbers: Sequence[int], size: int
) -> list[Tensor]:
    found = []
    for number in numbers:
        row, batch = setting.rows[number], setting.batch([number])
        target_B = torch.tensor([setting.targets[number]])
        if operator == "mask":
            inputs, rest = batch["input_ids"], (batch["attention_mask"], target_B)
            baseline, output = _without_words(setting, batch), setting.output
        else:
            inputs, rest = batch["attention_mask"], (batch["input_ids"], target_B)
            baseline, output = (batch["unit_ids"] < 0).long(), _by_attention(setting)
        with torch.no_grad():
            tokens_T = method(output).attribute(
                inputs,
                baselines=baseline,
                additional_forward_args=rest,
                # special tokens go with the first word, whose removal does not change them
                feature_mask=batch["unit_ids"].clamp(min=0),
                perturbations_per_eval=size,
                **options,
            )[0]
        first = [row["unit_ids"].index(unit) for unit in range(row["n_units"])]
        found.append(torch.zeros(len(tokens_T)).index_copy(0, torch.tensor(first), tokens_T[first].float()))
    return found


def _by_attention(setting: Setting) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda mask_PT, ids_PT, target_P: setting.output(ids_PT, mask_PT, target_P)


def _without_words(setting: Setting, batch: Any) -> Tensor:
    return batch["input_ids"].masked_fill(batch["unit_ids"] >= 0, setting.tokenizer.mask_token_id)


def _lime(operator: str, samples: int, setting: Setting, numbers: Sequence[int], size: int) -> list[Tensor]:
    """With the kernel, the coalitions and the ridge of the lime package."""

    def kernel(_original: Any, _perturbed: Any, keep_1N: Tensor, **_options: Any) -> Tensor:
        return torch.exp(-((100 * (1 - keep_1N.float().mean().sqrt())) ** 2) / (2 * 25**2))

    def some_words(_original: Any, **options: Any) -> Tensor:
        n_words = options["num_interp_features"]
        return (torch.randperm(n_words) >= torch.randint(1, n_words + 1, (1,))).long()[None]

    method = partial(Lime, interpretable_model=SkLearnRidge(alpha=1.0), similarity_func=kernel, perturb_func=some_words)
    return _perturbed(operator, method, {"n_samples": samples}, setting, numbers, size)


def lime_contests(setting: Setting, samples: int, sizes: Sequence[int]) -> Iterator[Contest]:
    """The lime package, with our words, its own regression on the same number of samples, and no feature selection."""
    from lime.lime_text import LimeTextExplainer

    mask = setting.tokenizer.mask_token

    def theirs(size: int, numbers: Sequence[int], seed: int) -> Scores:
        found = []
        for number in numbers:
            text, row = setting.texts[number], setting.rows[number]
            explainer = LimeTextExplainer(
                bow=False, mask_string=mask, split_expression=_words, feature_selection="none", random_state=seed
            )

            def classify(texts: Sequence[str], target: int = setting.targets[number]) -> Any:
                value_P = setting.predict(texts, target, size)
                return np.stack([-value_P, value_P], axis=1)

            told = explainer.explain_instance(text, classify, labels=(1,), num_features=row["n_units"], num_samples=samples)
            found.append(np.array([score for _, score in sorted(told.local_exp[1])]))
        return found

    yield _package(setting, sizes, ours.Lime(n_samples=samples), "lime", samples, theirs)


def shap_contests(setting: Setting, samples: int, sizes: Sequence[int]) -> Iterator[Contest]:
    """The shap package: its explainer of text pipelines (Partition), and Kernel on the presence of words."""
    import shap

    def partition(size: int, numbers: Sequence[int], seed: int) -> Scores:
        pipe = pipeline("text-classification", model=setting.model, tokenizer=setting.tokenizer, top_k=None, batch_size=size)
        explainer = shap.Explainer(shap.models.TransformersPipeline(pipe, rescale_to_logits=True), seed=seed)
        found = []
        for number in numbers:
            told = explainer([setting.texts[number]], max_evals=samples, batch_size=size, silent=True)
            found.append(setting.by_words(number, torch.from_numpy(told.values[0][:, setting.targets[number]])))
        return found

    def kernel(size: int, numbers: Sequence[int], seed: int) -> Scores:
        np.random.seed(seed)  # shap draws from there
        found = []
        for number in numbers:
            text, spans = setting.texts[number], unit_spans(setting.texts[number])

            def value(keep_PN: Any, text: str = text, spans: Any = spans, target: int = setting.targets[number]) -> Any:
                texts = [_masked(text, spans, keep_N, setting.tokenizer.mask_token) for keep_N in keep_PN]
                return setting.predict(texts, target, size)

            explainer = shap.KernelExplainer(value, np.zeros((1, len(spans))))
            values = explainer.shap_values(np.ones((1, len(spans))), nsamples=samples, l1_reg=False, silent=True)
            found.append(np.asarray(values[0]))
        return found

    explainer = ours.KernelShap(n_samples=samples)
    yield _package(setting, sizes, explainer, "shap (Partition)", samples, partition)
    yield _package(setting, sizes, explainer, "shap (Kernel)", samples, kernel)


def transformers_interpret_contests(setting: Setting, samples: int, sizes: Sequence[int]) -> Iterator[Contest]:
    """transformers-interpret, where it is installed: integrated gradients from padding tokens."""
    if find_spec("transformers_interpret") is None:
        return
    from transformers_interpret import SequenceClassificationExplainer

    steps = max(4, samples // 4)

    def theirs(size: int, numbers: Sequence[int], seed: int) -> Scores:
        explainer = SequenceClassificationExplainer(setting.model, setting.tokenizer)
        found = []
        for number in numbers:
            told = explainer(setting.texts[number], index=setting.targets[number], n_steps=steps, internal_batch_size=size)
            found.append(setting.by_words(number, torch.tensor([score for _, score in told])))
        return found

    explainer = ours.IntegratedGradients(steps=steps, baseline="pad")
    yield _package(setting, sizes, explainer, "transformers-interpret", steps, theirs)


def bfloat16_contests(setting: Setting, samples: int, sizes: Sequence[int]) -> Iterator[Contest]:
    """Ours in bfloat16 against ours in float32."""
    for explainer in (ours.Occlusion(), ours.Lime(n_samples=samples), ours.KernelShap(n_samples=samples)):
        yield Contest(
            method=f"{_called(explainer)} in bfloat16",
            against=ITSELF,
            setting=setting,
            samples=getattr(explainer, "n_samples", 1),
            ours=partial(setting.ours, explainer, precision="bfloat16"),
            theirs=partial(setting.ours, explainer),
        )


CONTESTS = (captum_contests, lime_contests, shap_contests, transformers_interpret_contests, bfloat16_contests)


def _package(
    setting: Setting,
    sizes: Sequence[int],
    explainer: ours.Explainer,
    against: str,
    samples: int,
    theirs: Callable[[int, Sequence[int], int], Scores],
) -> Contest:
    numbers = range(len(setting.texts))
    size = cache(lambda: fastest(sizes, lambda size: theirs(size, numbers[:1], 0)))
    return Contest(
        method=_called(explainer),
        against=against,
        setting=setting,
        samples=samples,
        ours=partial(setting.ours, explainer),
        theirs=lambda seed: theirs(size(), numbers, seed),
    )


def _words(text: str) -> list[str]:
    return [text[start:end] for start, end in unit_spans(text)]


def _masked(text: str, spans: Sequence[tuple[int, int]], keep_N: Any, mask: str) -> str:
    pieces, end = [], 0
    for (start, stop), keep in zip(spans, keep_N, strict=True):
        pieces += [text[end:start], text[start:stop] if keep else mask]
        end = stop
    return "".join(pieces) + text[end:]
