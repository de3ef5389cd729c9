"""Routed experts: context, router, balance and the layer that joins them."""

from sortyard.model.experts.options import ExpertOptions, check_causal

__all__ = ["ExpertOptions", "check_causal"]
