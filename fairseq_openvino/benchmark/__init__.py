"""Measure Fairseq on OpenVINO against every other way to run the same checkpoint.

| module      | what it holds                                                            |
|-------------|--------------------------------------------------------------------------|
| `plan`      | options, engines by name, the configurations to measure                  |
| `material`  | random models at true size, their data, and the shipped trained model    |
| `workload`  | in a child: Fairseq's task, batches and generator; one timed round        |
| `engines`   | in a child: how each engine turns a checkpoint into a model               |
| `graphs`    | our ONNX graphs under onnxruntime, and OpenVINO without state             |
| `profile`   | in a child: where a decoder step spends its time                          |
| `child`     | the loop that answers the parent                                          |
| `process`   | the parent's side of a child                                              |
| `rounds`    | the measurement: children side by side, rounds interleaved                |
| `results`   | what was measured, and the figures derived from it                        |
| `report`    | Markdown, JSON and the chart                                              |
| `provenance`| machine and versions                                                      |
| `arguments` | the `benchmark` subcommand                                                |
"""

from __future__ import annotations

from fairseq_openvino.benchmark.plan import Options
from fairseq_openvino.benchmark.results import Results
from fairseq_openvino.benchmark.rounds import run_benchmark

__all__ = ["Options", "Results", "run_benchmark"]
