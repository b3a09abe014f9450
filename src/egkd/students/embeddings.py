"""Word embeddings for students of another architecture, from the teacher's.

Shapes: V vocabulary, D width of the teacher's embeddings, W width asked for.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from egkd.students.base import Origin
from egkd.students.loading import load_encoder, load_tokenizer


def teacher_embeddings(origin: Origin) -> tuple[Tensor, PreTrainedTokenizerBase]:
    """The teacher's table of word embeddings [V, D], a row for each token of its tokenizer, and that tokenizer."""
    trust = origin.trust_remote_code
    model = load_encoder(origin.teacher, origin.task, seed=origin.seed, trust_remote_code=trust)
    tokenizer = load_tokenizer(origin.teacher, trust_remote_code=trust)
    embeddings: Any = model.get_input_embeddings()
    table_VD: Tensor = embeddings.weight.detach()
    used = max(tokenizer.get_vocab().values()) + 1
    if used > len(table_VD):
        raise ValueError(f"{origin.teacher} embeds {len(table_VD)} tokens, its tokenizer knows {used}; give it its own")
    return table_VD[:used].clone(), tokenizer  # some models have spare rows


def principal_components(table_VD: Tensor, width: int) -> Tensor:
    """The table's rows in the `width` directions along which they vary most, around their mean: [V, W]; as it is for W = D.

    (X - mean) E, where E are the leading eigenvectors of X's covariance, which are X's singular vectors: exact, and the same
    every time, since each direction's largest entry is made positive.
    """
    if width == table_VD.shape[1]:
        return table_VD
    centred_VD = table_VD.double() - table_VD.double().mean(0)
    directions_DD = torch.linalg.eigh(centred_VD.T @ centred_VD).eigenvectors.flip(1)  # in ascending order
    directions_DW = directions_DD[:, :width]
    largest_1W = directions_DW.gather(0, directions_DW.abs().argmax(0, keepdim=True))
    return (centred_VD @ (directions_DW * largest_1W.sign())).to(table_VD.dtype)
