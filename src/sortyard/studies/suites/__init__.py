"""Sets of tasks that a model is fine-tuned on, each task and seed in a process of its own: GLUE, long documents."""
