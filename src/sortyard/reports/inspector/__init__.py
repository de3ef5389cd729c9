"""A model looked at while it reads a text: its buckets, its experts and its answer."""
