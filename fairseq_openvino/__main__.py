"""`python -m fairseq_openvino`."""

import sys

from fairseq_openvino.cli import main

sys.exit(main())
