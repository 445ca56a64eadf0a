"""Long jobs that lose nothing: whoever is stopped when, the same plan gives the same bytes.

A job is a directory that several processes, on machines that share it, work in at the same time.

| in it                      | what it is                                                              |
|----------------------------|-------------------------------------------------------------------------|
| `job.json`, `inputs.jsonl` | the plan: written once, whole; the first again if failed inputs are repaired |
| `workers/<worker>`         | who a worker is; touched each second while it lives                     |
| `leases/<batch>.<epoch>`   | links to who decodes a batch: a name; the highest epoch counts          |
| `journals/<worker>.jsonl`  | what it has finished, see `journal`                                     |
| `results.jsonl`            | a line an input, or channel, in their order; once all is done           |

| module       | what it holds                                                                         |
|--------------|---------------------------------------------------------------------------------------|
| `plan`       | batches, a pure function of inputs, bundle and options                                |
| `leases`     | who decodes which batch, and who is gone                                              |
| `index`      | where the records of each batch are                                                   |
| `job`        | the directory: begun, resumed, merged                                                 |
| `answers`    | of a model, in long recordings                                                        |
| `worker`     | claims batches, commits records                                                       |
| `transcribe` | files to records; it knows no job, and can be sent to other processes                 |
| `work`       | a worker's loop: some batches at a time                                               |
| `ray`        | its batches decoded by the actors of a cluster                                        |
| `status`     | how far a job is                                                                      |
"""
