"""Compare PyTorch, OpenVINO and quantized OpenVINO on a corpus: accuracy, time, memory.

| module      | what it holds                                                          |
|-------------|------------------------------------------------------------------------|
| `accuracy`  | BLEU, chrF, WER, normalisers, paired bootstrap                         |
| `corpus`    | Fairseq manifests, Common Voice, LibriSpeech and plain TSV as a stream |
| `clips`     | audio, stored features and slices of ZIP files to filter banks         |
| `options`   | what is compared                                                       |
| `engines`   | in a child: a bundle at some precision                                 |
| `originals` | in a child: the Fairseq or Hugging Face model in PyTorch               |
| `child`     | the loop that answers the parent                                       |
| `process`   | the parent's side of an engine's process                               |
| `measure`   | the run: children side by side, utterance by utterance                 |
| `records`   | `utterances.jsonl`: everything measured, appended as it happens        |
| `results`   | the figures, from the records alone                                    |
| `report`    | Markdown and JSON                                                      |
| `chart`     | speed against accuracy                                                 |
| `arguments` | the `evaluate` subcommand                                              |
"""
