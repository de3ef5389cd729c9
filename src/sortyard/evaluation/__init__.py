"""Scores, baselines, costs and looks inside a model; nothing here trains."""
