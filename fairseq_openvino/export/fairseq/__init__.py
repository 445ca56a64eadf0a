"""Fairseq checkpoints."""
