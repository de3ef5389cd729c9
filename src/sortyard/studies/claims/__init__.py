"""The article's numbered claims, each measured beside its controls."""
