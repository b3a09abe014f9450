"""The BiLSTM against torch's own on packed sequences, attention pooling against a loop."""

import math

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from egkd.students.recurrent import AttentionPooling, BiLSTM, BiLSTMConfig


def test_the_bilstm_is_torchs_on_packed_sequences() -> None:
    torch.manual_seed(0)
    ours = BiLSTM(BiLSTMConfig(embedding_size=5, hidden_size=6, num_hidden_layers=2, dropout=0.0)).eval()
    theirs = nn.LSTM(5, 3, num_layers=2, bidirectional=True, batch_first=True)
    for layer in range(2):
        for direction, suffix in (("right", ""), ("left", "_reverse")):
            for name, value in ours.directions[f"{direction}_{layer}"].named_parameters():
                getattr(theirs, name.replace("_l0", f"_l{layer}{suffix}")).data.copy_(value)
    values_BSD, lengths = torch.randn(3, 6, 5), torch.tensor([4, 6, 1])
    packed = pack_padded_sequence(values_BSD, lengths, batch_first=True, enforce_sorted=False)
    expected_BSH = pad_packed_sequence(theirs(packed)[0], batch_first=True)[0]
    visible_BS = torch.arange(6) < lengths[:, None]
    found_BSH = ours(values_BSD, visible_BS)
    torch.testing.assert_close(found_BSH * visible_BS[..., None], expected_BSH)


def test_attention_pooling_by_a_loop() -> None:
    torch.manual_seed(1)
    pooling = AttentionPooling(4).eval()
    states_BSH, visible_BS = torch.randn(2, 3, 4), torch.tensor([[True, True, True], [True, False, False]])
    weight, bias, vector = (value.detach() for value in (pooling.project.weight, pooling.project.bias, pooling.score.weight[0]))
    for states_SH, visible_S, found_H in zip(states_BSH, visible_BS, pooling(states_BSH, visible_BS), strict=True):
        energies = []
        for state_H, visible in zip(states_SH, visible_S, strict=True):
            if visible:
                hidden = [math.tanh(float(row @ state_H + b)) for row, b in zip(weight, bias, strict=True)]
                energies.append(math.exp(sum(float(v) * h for v, h in zip(vector, hidden, strict=True))))
        expected_H = sum(energy / sum(energies) * state for energy, state in zip(energies, states_SH, strict=False))
        torch.testing.assert_close(found_H, expected_H)
