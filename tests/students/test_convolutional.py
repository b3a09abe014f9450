"""The TextCNN against convolutions written out by hand."""

import torch

from egkd.students import TextCNNConfig, TextCNNForSequenceClassification


def test_logits_by_loops_over_windows() -> None:
    torch.manual_seed(0)
    config = TextCNNConfig(vocab_size=12, embedding_size=4, filters=3, widths=(1, 3), num_labels=2)
    model = TextCNNForSequenceClassification(config).eval()
    ids = [5, 7, 2, 9]
    words = [model.embeddings.weight[each] for each in ids] + [torch.zeros(4)] * 2  # behind the last word come zeros
    features = []
    for width in (1, 3):
        convolution = model.encoder.by_width[str(width)]
        for channel in range(3):
            values = []
            for start in range(len(ids)):
                total = convolution.bias[channel]
                for offset in range(width):
                    total = total + convolution.weight[channel, :, offset] @ words[start + offset]
                values.append(total.clamp(min=0))
            features.append(torch.stack(values).max())
    expected = model.classifier.weight @ torch.stack(features) + model.classifier.bias
    torch.testing.assert_close(model(torch.tensor([ids])).logits[0], expected)
