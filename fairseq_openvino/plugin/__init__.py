"""Fairseq's side."""
