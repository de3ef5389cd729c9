"""Selection, token by token, as the text defines it: the truth that `route` is tested against."""

from collections.abc import Sequence


def choose_experts(
    scores: Sequence[float], *, num_groups: int, num_groups_per_tok: int, num_experts_per_tok: int
) -> set[int]:
    """Choose the experts of one token.

    Args:
        scores: selection scores of the E experts, bias included.
        num_groups: groups of equal size; a divisor of E.
        num_groups_per_tok: groups chosen.
        num_experts_per_tok: experts chosen, equally many in each group.

    Returns:
        The chosen experts.
    """
    size, per_group = len(scores) // num_groups, num_experts_per_tok // num_groups_per_tok
    ranked = [
        sorted(range(group * size, (group + 1) * size), key=lambda expert: -scores[expert])[:per_group]
        for group in range(num_groups)
    ]
    best = sorted(ranked, key=lambda experts: -sum(scores[expert] for expert in experts))
    return {expert for experts in best[:num_groups_per_tok] for expert in experts}


def gather_copies(experts: Sequence[Sequence[int]], *, num_experts: int) -> list[tuple[int, int]]:
    """List every routed copy as (expert, token), expert after expert.

    Args:
        experts: chosen experts of each token; `num_experts` stands for padding.
        num_experts: number of experts E.

    Returns:
        The copies in dispatch order.
    """
    return [
        (expert, token)
        for expert in range(num_experts)
        for token, chosen in enumerate(experts)
        for choice in chosen
        if choice == expert
    ]
