"""Audio and what is made of it.

| module                                | what it holds                                                    |
|---------------------------------------|------------------------------------------------------------------|
| `sources`, `files`, `slices`          | what can be given as audio, and how a command line names it      |
| `audio`                               | a file to a waveform, within bounds                              |
| `sndfile`, `media`                    | its decoders: libsndfile, then FFmpeg                            |
| `containers`, `content`, `mp3`        | what a file should hold, so that its damage is told              |
| `waveform`                            | which samples can be used, and at which rate                     |
| `isolation`, `forkserver`             | the same in child processes                                      |
| `recordings`, `ahead`                 | any length in blocks, read while what was read is worked on      |
| `activity`, `pieces`                  | when somebody speaks, and where recordings are cut               |
| `features`, `spectrogram`, `frontend` | what encoders read                                               |
| `corpus`, `manifest`, `stored`        | corpora, Fairseq's tables, and features in files                 |
| `configuration`                       | Fairseq's YAML                                                   |
| `writers`, `subtitles`, `languages`   | transcripts as text                                              |
| `options`                             | how files are read, and subtitles laid out                       |
"""
