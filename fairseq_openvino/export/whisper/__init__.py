"""Whisper checkpoints."""
