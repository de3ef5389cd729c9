"""What chosen experts say about each other: how alike they are, which ones meet, and how early a choice settles."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ExpertPair(NamedTuple):
    """Two experts that process the same tokens.

    Attributes:
        expert: the one whose tokens are looked at.
        partner: the one that is chosen for them too.
        share: share of the expert's tokens that the partner gets as well, in [0, 1].
        tokens: number of these tokens.
    """

    expert: int
    partner: int
    share: float
    tokens: int


def redundancy(outputs: Float[Tensor, "E N D"]) -> float:
    """Measure how alike the experts are: mean cosine between two experts' outputs on the same token.

    R = 2 / (E (E - 1)) * sum over pairs i < j of the mean over tokens of cos(o_i, o_j). An output of zeros is like no
    other.

    Args:
        outputs: every expert on every token; at least two experts and one token.

    Returns:
        A value in [-1, 1]; 1 for copies of one expert.

    Raises:
        ValueError: if there is nothing to compare.
    """
    num_experts, num_tokens, _ = outputs.shape
    if num_experts < 2 or num_tokens < 1:
        raise ValueError(f"redundancy needs two experts and a token; outputs has shape {tuple(outputs.shape)}")
    units = nn.functional.normalize(outputs.double(), dim=-1)
    # The sum over all pairs is the squared norm of the sum, less the experts' own squares.
    total = units.sum(dim=0).square().sum(dim=-1) - units.square().sum(dim=(0, 2))
    return float(total.mean()) / (num_experts * (num_experts - 1))


def co_activation_counts(experts: Int[Tensor, "N k"], *, num_experts: int) -> Int[Tensor, "E E"]:
    """Count the tokens that two experts share.

    Args:
        experts: the experts of each real token, different ones.
        num_experts: experts E of the layer.

    Returns:
        Tokens of experts i and j at [i, j]; on the diagonal, tokens of i.
    """
    chosen = torch.zeros(len(experts), num_experts, dtype=torch.float32, device=experts.device)
    chosen.scatter_(1, experts.long(), 1.0)
    return (chosen.T @ chosen).round().long()  # float32 counts exactly up to 2^24 tokens


def frequent_pairs(counts: Int[Tensor, "E E"], *, limit: int) -> tuple[ExpertPair, ...]:
    """Name the experts that most often get the tokens of another one.

    The co-activation of i with j is N_ij / N_i: of the N_i tokens of expert i, N_ij are also expert j's. A layer that
    picks k experts evenly and independently has (k - 1) / (E - 1) everywhere.

    Args:
        counts: what `co_activation_counts` gave, summed over batches.
        limit: pairs to return at most.

    Returns:
        The pairs with the largest share, largest first; none where tokens get one expert.

    Source: Muennighoff et al. 2024 (OLMoE, arXiv:2409.02060), section 5.2.
    """
    own = counts.diagonal()
    shares = counts.double() / own.clamp(min=1)[:, None]
    shares.fill_diagonal_(0.0)
    order = shares.flatten().argsort(descending=True, stable=True)[:limit].tolist()
    places = [divmod(place, len(counts)) for place in order]
    return tuple(ExpertPair(i, j, float(shares[i, j]), int(counts[i, j])) for i, j in places if shares[i, j] > 0)


def saturation(earlier: Int[Tensor, "N k"], final: Int[Tensor, "N k"]) -> float:
    """Measure how much of the final choice a model made already: router saturation.

    1 / N * sum over tokens i of |A_i intersected with B_i| / k, where A_i and B_i are the k experts of token i at the
    earlier checkpoint and in the final model. Two independent even choices agree on k / E.

    Args:
        earlier: experts of each real token at the checkpoint; a token's are different ones.
        final: experts of the same tokens, in the same order, in the final model.

    Returns:
        A share in [0, 1]; 1 where every choice is the final one. The order of a token's experts does not matter.

    Raises:
        ValueError: if the two are not about the same tokens, or there are none.

    Source: Muennighoff et al. 2024 (OLMoE, arXiv:2409.02060), section 5.1.
    """
    if earlier.shape != final.shape or not len(final):
        raise ValueError(
            f"saturation compares the same tokens twice: earlier is {tuple(earlier.shape)}, final {tuple(final.shape)}"
        )
    agree = (earlier[:, :, None] == final[:, None, :]).any(dim=-1)
    return float(agree.double().mean())
