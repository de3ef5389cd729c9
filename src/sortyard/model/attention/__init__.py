"""Self-attention: one module of projections over a core that is dense, sliding or bucketed."""
