"""Quantize a bundle, and publish the result only if its texts hold up.

| module       | what it holds                                                              |
|--------------|----------------------------------------------------------------------------|
| `options`    | modes, metrics, limits                                                     |
| `material`   | which utterances calibrate, choose alpha and validate                      |
| `recording`  | what the real pipeline feeds its encoder and decoder, spilled to files     |
| `samples`    | those recordings as inputs of either graph, for NNCF                       |
| `compress`   | the NNCF calls, and the nodes that stay in floating point                  |
| `divergence` | how far a quantized graph's distributions are from the original's          |
| `components` | encoder and decoder in every form that was asked for                       |
| `yardstick`  | what a difference of scores proves                                         |
| `faults`     | texts that no score excuses                                                |
| `gate`       | the ladder of trials: score, compare, relax                                |
| `procedure`  | from bundle to bundle                                                      |
| `report`     | what was tried, as a table and for the manifest                            |
| `progress`   | how far the whole of it is                                                 |
"""

from fairseq_openvino.compat.telemetry import require_consent

require_consent()
