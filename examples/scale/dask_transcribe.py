"""Audio files to text by Dask: `python dask_transcribe.py BUNDLE FILE ...`."""

import sys

from dask.distributed import Client

from fairseq_openvino.jobs.transcribe import Transcribe

if __name__ == "__main__":
    bundle, *files = sys.argv[1:]
    batches = [files[begin : begin + 8] for begin in range(0, len(files), 8)]
    with Client(n_workers=2, threads_per_worker=1) as client:  # or Client("SCHEDULER:8786")
        found = client.map(Transcribe(bundle, load={"threads": 1}), batches)
        for record in (record for batch in found for record in batch.result()):
            for result in record["results"]:
                print(result["documents"]["jsonl"], end="")
