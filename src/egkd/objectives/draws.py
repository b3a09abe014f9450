"""Random numbers that belong to an example, not to a batch: whoever computes them, and beside whomever, they are the same.

Shapes: B batch, K numbers of an example.
"""

import torch
from torch import Tensor

from egkd.text import Batch


def numbers_of(batch: Batch) -> Tensor:
    """The examples' numbers in the data set, long [B]; 0 where they have none."""
    return batch["idx"] if "idx" in batch else torch.zeros_like(batch["input_ids"][:, 0])


def drawn(idx_B: Tensor, count: int, *keys: int | Tensor) -> Tensor:
    """Integers, uniform from 0 to 2^32 - 1, long [B, K], that depend on an example's number, the keys (each one for all or of
    an example) and their place alone."""
    key_B = idx_B.long()
    for key in keys:
        key_B = _scrambled(key_B) + key
    return _scrambled(_scrambled(key_B)[:, None] + torch.arange(count, device=idx_B.device))


def signs(idx_B: Tensor, count: int, *keys: int | Tensor) -> Tensor:
    """+1 or -1, long [B, K], see `drawn`."""
    return (drawn(idx_B, count, *keys) >> 16 & 1) * 2 - 1


def normals(idx_B: Tensor, count: int, *keys: int | Tensor) -> Tensor:
    """Normal numbers, float [B, K], see `drawn`."""
    return torch.special.ndtri((drawn(idx_B, count, *keys).cpu().double() + 0.5) / 2**32).float().to(idx_B.device)


def _scrambled(key: Tensor) -> Tensor:
    """Integers that look random, 0 to 2^32 - 1; any equal ones stay equal."""
    for _ in range(2):
        key = ((key ^ (key >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return key ^ (key >> 16)
