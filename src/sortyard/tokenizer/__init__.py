"""Training and loading the tokenizers that the models read text with."""
