"""Balanced data-dependent LSH tree over the keys of each head and sequence."""

from sortyard.ops.lsh_tree.build import Leaves, build_leaves, split_directions, take_rows

__all__ = ["Leaves", "build_leaves", "split_directions", "take_rows"]
