"""Door for `--user-dir`: see `plugin.model`."""

from fairseq_openvino.plugin.model import S2TOpenVINOModel

__all__ = ["S2TOpenVINOModel"]
