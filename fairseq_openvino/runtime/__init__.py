"""Compiled graphs: the only folder that knows OpenVINO, and none that knows a family."""

from fairseq_openvino.compat.telemetry import require_consent

require_consent()  # before OpenVINO is imported, as in every room that imports it
