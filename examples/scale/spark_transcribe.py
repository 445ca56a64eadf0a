"""Audio files to text by Spark: `python spark_transcribe.py BUNDLE FILE ...`; Spark needs Java 17."""

import os
import sys

import pyarrow as pa
from pyspark.sql import SparkSession

from fairseq_openvino.jobs.transcribe import Transcribe

os.environ["PYSPARK_PYTHON"] = sys.executable
bundle, *files = sys.argv[1:]
transcribe = Transcribe(bundle, load={"threads": 1})


def lines(batches):
    """The model stays in Spark's Python process from batch to batch."""
    for batch in batches:
        found = transcribe(batch["path"].to_pylist())
        texts = [each["documents"]["jsonl"] for record in found for each in record["results"]]
        yield pa.RecordBatch.from_pydict({"line": texts})


spark = SparkSession.builder.master("local[2]").getOrCreate()  # or the cluster's, by spark-submit
spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 8)
paths = spark.createDataFrame([(file,) for file in files], "path string")
for row in paths.mapInArrow(lines, "line string").collect():
    print(row.line, end="")
