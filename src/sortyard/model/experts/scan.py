"""Decayed running sums over packed sequences, in blocks."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 32


def segment_scan(
    values: Float[Tensor, "R D"], *, ids: Int[Tensor, " R"], positions: Int[Tensor, " R"], decay: float
) -> Float[Tensor, "R D"]:
    """Compute s_t = decay * s_{t-1} + v_t, starting anew with each sequence.

    Within a block the recurrence is one product with a lower triangular matrix of decays. What a block receives from
    those before it is the same recurrence over the blocks' last rows, one level up; the depth is the logarithm of R.

    Args:
        values: rows, sequence after sequence, in order.
        ids: sequence of each row.
        positions: rank of each row within its sequence.
        decay: share kept per step of position, in (0, 1]; 1 gives running sums.

    Returns:
        The sums.
    """
    if len(values) <= BLOCK:
        return _decays(ids, positions, ids, positions, decay=decay, like=values) @ values
    num_rows, padding = len(values), -len(values) % BLOCK
    blocks = F.pad(values, (0, 0, 0, padding)).view(-1, BLOCK, values.shape[1])  # [blocks, BLOCK, D]
    ids = F.pad(ids, (0, padding), value=-1).view(-1, BLOCK)
    positions = F.pad(positions, (0, padding)).view(-1, BLOCK)
    sums = _decays(ids, positions, ids, positions, decay=decay, like=values) @ blocks
    carried = segment_scan(sums[:, -1], ids=ids[:, -1], positions=positions[:, -1], decay=decay)[:-1]
    reach = _decays(ids[1:], positions[1:], ids[:-1, -1:], positions[:-1, -1:], decay=decay, like=values)
    rest = sums[1:] + reach * carried[:, None]
    return torch.cat([sums[:1], rest]).flatten(0, 1)[:num_rows]


def _decays(
    ids: Tensor, positions: Tensor, past_ids: Tensor, past_positions: Tensor, *, decay: float, like: Tensor
) -> Tensor:
    steps = positions[..., :, None] - past_positions[..., None, :]
    reached = (ids[..., :, None] == past_ids[..., None, :]) & (steps >= 0)
    powers = torch.as_tensor(decay, dtype=like.dtype, device=like.device) ** steps.clamp(min=0).to(like.dtype)
    return torch.where(reached, powers, torch.zeros_like(powers))
