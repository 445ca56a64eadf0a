"""Engines side by side on the same clips: `evaluate` (accuracy and time) and `benchmark` (speed).

| module              | what it holds                                                          |
|---------------------|------------------------------------------------------------------------|
| `process`           | an engine's process: the protocol, its loop, and the parent's side     |
| `child`             | the program in such a process                                          |
| `engines`           | what turns a model into an engine; one file a library                  |
| `turns`             | all engines loaded, one computing at any time                          |
| `journal`           | everything measured, appended as it happens                            |
| `options`           | what `evaluate` compares                                               |
| `evaluation`        | its run; `evaluation_figures` and `evaluation_report` need records only |
| `plan`, `subject`   | what `benchmark` measures: engines and cases; their models and clips   |
| `benchmark`         | its run; `benchmark_figures` and `benchmark_report` need records only  |
| `chart`             | both charts                                                            |
| `material`          | random checkpoints of both families, and the forms engines load        |
| `profile`, `memory` | a decoder step by node type; resident memory over many transcriptions  |
"""
