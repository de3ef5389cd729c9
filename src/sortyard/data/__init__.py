"""From text to batches: reading, token shards, packing, masking, tasks; the order of everything is a pure function."""
