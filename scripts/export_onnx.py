"""Export a Fairseq or Whisper checkpoint to a bundle: ONNX graphs, OpenVINO IR, parity report, manifest."""

import sys

from fairseq_openvino.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", "--keep-onnx", *sys.argv[1:]]))
