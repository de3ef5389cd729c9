"""What a training step minimises: the task's loss and the experts' balance, over the targets of a whole step."""
