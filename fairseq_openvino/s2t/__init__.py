"""Fairseq's encoder-decoder family."""
