"""Fairseq's side."""

from fairseq_openvino.compat.telemetry import require_consent

require_consent()
