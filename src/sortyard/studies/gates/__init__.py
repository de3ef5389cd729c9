"""What a gate is worth that reads a token's context: the same model and data with other gates, or with none."""
