"""Measure Whisper bundles against every other way to run the same checkpoint on this CPU.

| module       | what it holds                                                           |
|--------------|-------------------------------------------------------------------------|
| `plan`       | options, workloads, engines by name                                     |
| `checkpoint` | random Whisper checkpoints at true size, with tokenizer                  |
| `material`   | checkpoint, clips, our bundle and the files of the peers, made once      |
| `peer_child` | run by .venv-peers: one other engine; also the protocol of a child       |
| `peer_ggml`  | run by .venv-peers: a checkpoint for whisper.cpp                         |
| `own_child`  | our engine behind the same protocol                                     |
| `rounds`     | the measurement: children side by side, rounds interleaved               |
| `results`    | what was measured, and the figures derived from it                       |
| `report`     | Markdown, JSON and the chart                                            |
| `memory`     | resident memory over many transcriptions                                |
| `command`    | what `benchmark --whisper` and `--whisper-memory` run                   |
"""
