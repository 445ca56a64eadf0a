"""Compiled graphs: the only folder that knows OpenVINO, and none that knows a family."""
