"""Checkpoints to bundles.

| module        | what it holds                                                     |
|---------------|-------------------------------------------------------------------|
| `procedure`   | the steps, for every family                                       |
| `graphs`      | what an architecture hands to them                                |
| `layers`      | transformer layers that graphs are built of                       |
| `onnx`, `ir`  | the two formats                                                   |
| `parity`      | the gate; with `forced`, `runners` and `float64`                  |
| `cases`       | what the gate compares, in the bundle, to be run again            |
| `cache`       | bundles found again by content                                    |
| `first_use`   | what an export depends on, and what is said about it              |
| `sources`     | the forms Whisper models come in, and their names                 |
| `fairseq`     | Fairseq checkpoints; one file an architecture                     |
| `speech2text` | Fairseq's S2T models as transformers has them                     |
| `whisper`     | Whisper checkpoints; one file a form of weights                   |
"""

from fairseq_openvino.compat.telemetry import require_consent

require_consent()
