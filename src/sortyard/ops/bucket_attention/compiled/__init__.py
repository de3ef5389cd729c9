"""Tree attention by own C++ kernels for CPUs, built on first use; README.md derives them."""

from sortyard.ops.bucket_attention.compiled.attention import compiled_tree_attention
from sortyard.ops.bucket_attention.compiled.choice import choose_compiled
from sortyard.ops.bucket_attention.compiled.library import why_not

__all__ = ["choose_compiled", "compiled_tree_attention", "why_not"]
