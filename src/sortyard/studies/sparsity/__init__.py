"""How sparse attention can be before a model pays for it: loss and accuracy by sparsity, and where the knee is."""
