"""Transcription over HTTP: OpenAI's audio API, by one model."""
