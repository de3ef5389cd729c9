"""The model: a native transformers encoder whose blocks, attention and experts are plain torch modules."""
