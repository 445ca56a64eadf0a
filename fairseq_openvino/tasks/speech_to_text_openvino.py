"""Door for `--user-dir`: see `plugin.task`."""

from fairseq_openvino.plugin.task import SpeechToTextOpenVINOTask

__all__ = ["SpeechToTextOpenVINOTask"]
