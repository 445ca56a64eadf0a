"""Encoders whose output is the text: CTC models and the CTC heads of others."""
