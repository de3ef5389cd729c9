"""One training run: the loop, its step, its record on disk and its checkpoints."""
