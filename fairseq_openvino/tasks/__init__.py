"""Fairseq tasks; this folder is imported by `--user-dir fairseq_openvino`."""
