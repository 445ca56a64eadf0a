"""Audio and what is made of it."""
