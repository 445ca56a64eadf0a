"""Fairseq on today's libraries."""
