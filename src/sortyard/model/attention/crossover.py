"""Up to which length dense attention is the faster of the two; imports no torch."""

# Tokens at which bucket attention's forward and backward overtake dense attention's, 8 heads of 64 in float32, default
# settings. "cpu": 2 cores, compiled kernels, benchmarks/results/attention.json. "cuda": an estimate, not measured yet.
_CROSSOVER = {("tree", "cpu"): 256, ("rounds", "cpu"): 2048, ("tree", "cuda"): 4096, ("rounds", "cuda"): 8192}

# Settings that fix the sparsity or the number of buckets ask for buckets where there is room for any.
_SMALLEST = 64


def dense_up_to(selection: str, *, device: str, has_own_budget: bool) -> int:
    """The longest sequence that gets dense attention if the configuration does not say.

    Args:
        selection: "tree" or "rounds".
        device: Type of the device, "cpu" or "cuda"; another one counts as "cuda".
        has_own_budget: Whether `target_sparsity` or `num_buckets` is set, which is obeyed at short lengths, too.

    Returns:
        Tokens.
    """
    if has_own_budget:
        return _SMALLEST
    return _CROSSOVER[selection, device if device == "cpu" else "cuda"]
