"""The article's claims, in its numbers."""

from dataclasses import dataclass

LOG_LINEAR_SLOPE = 1.10  # log-log slope of n log n between 4,096 and 65,536


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        id: C1 to C12.
        title: What it is about, in a few words.
        claimed: What the article says.
        how: How it is measured here, and when it counts as held.
    """

    id: str
    title: str
    claimed: str
    how: str


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1", "cost of attention", "O(n log n), not O(n²)",
        "log-log slope of time and of memory over the length, beside dense attention in the same run; n log n itself "
        f"has {LOG_LINEAR_SLOPE:.2f} between 4,096 and 65,536; held up to .15 above it",
    ),
    Claim(
        "C2", "memory of dynamic buckets", "-42 %",
        "peak extra memory over a mix of lengths, against 64 fixed buckets; held within 5 points",
    ),
    Claim(
        "C3", "utilisation of the experts", "≥ 85 %",
        "exp(entropy of the loads) / N of the least even layer, 32 experts, on held-out text; beside other balances "
        "and a random choice, with the loss",
    ),
    Claim(
        "C4", "accuracy over a dense twin", "SST-2 94.2 against 93.5, MNLI 88.1 against 86.9",
        "one encoder, dense and upcycled to equal active parameters, fine-tuned the same way, paired over seeds; held "
        "if the interval lies above 0",
    ),
    Claim(
        "C5", "speed of inference", "1.8x",
        "against BERT-large at equal total parameters, by kind of batch and length; held where the ratio is 1.8",
    ),
    Claim(
        "C6", "without dynamic routing", "-3.2 %",
        "a gate that reads the context against the static one, paired over seeds, at two budgets; held where the "
        "interval lies above 0 and reaches 3.2 points",
    ),
    Claim(
        "C7", "how sparse attention may be", "best at 55-60 %, falls beyond 70 %",
        "sweep of sparsity, before and after training with it; the knee is where the score falls by 1 %; held if the "
        "tree's knee lies between 60 and 80 %",
    ),
    Claim(
        "C8", "mixed precision", "2.3x",
        "time of a training step in fp32 over that in bf16, and in fp16 where the machine multiplies it",
    ),
    Claim(
        "C9", "memory of activation checkpointing", "-35 %",
        "peak of gradients and activations of a training step, beside the time it costs",
    ),
    Claim(
        "C10", "8-step accumulation", "equal to one large batch",
        "largest difference of gradients between one batch and 8 portions with unequal numbers of targets, float64",
    ),
    Claim(
        "C11", "training efficiency", "+40 %, accuracy within 1 %",
        "what the dense twin of equal active parameters spends until its last loss, over what ours spends until "
        "the same loss, less 1; held if in processor time its mean is 40 % and its interval above 0",
    ),
    Claim(
        "C12", "tensor 8 x pipeline 4 x data parallel", "runs",
        "the losses of 32 processes beside those of one, step by step, in float32",
    ),
)  # fmt: skip
BY_ID = {claim.id: claim for claim in CLAIMS}
