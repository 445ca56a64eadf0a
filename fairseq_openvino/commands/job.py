"""`fairseq-openvino job status DIR`, and what `transcribe --job DIR` does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq_openvino.atomic import writable_directory
from fairseq_openvino.commands.outputs import Documents, stems
from fairseq_openvino.commands.progress import JobBar, clock
from fairseq_openvino.errors import EXIT_OK, EXIT_PARTIAL, invalid
from fairseq_openvino.flags import given
from fairseq_openvino.jobs import job as jobs
from fairseq_openvino.jobs.plan import Input, Plan
from fairseq_openvino.jobs.status import Status, status
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.speech.options import SubtitleOptions
from fairseq_openvino.speech.writers import JSONL
from fairseq_openvino.tables import aligned, number

if TYPE_CHECKING:
    from fairseq_openvino.jobs.transcribe import Transcribe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action and its flags."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    action = actions.add_parser(
        "status", help="how far a job is, who works at it, how long it will take"
    )
    action.add_argument("directory", type=Path, metavar="DIR")
    action.add_argument("--format", choices=("table", "json"), default="table")


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Print it."""
    found = status(jobs.read(arguments.directory))
    print(json.dumps(asdict(found)) if arguments.format == "json" else "\n".join(_table(found)))
    return EXIT_OK


def _table(found: Status) -> list[str]:
    eta = "-" if found.eta_seconds is None else clock(found.eta_seconds)
    rows = [
        ("inputs", f"{found.done} of {found.total} done, {found.failed} failed"),
        ("left out", f"{found.skipped} (--skip-existing)"),
        ("batches", f"{found.batches_done} of {found.batches}"),
        ("audio", clock(found.audio_seconds)),
        ("speed", f"{number(found.speed, '.1f')} x real time"),
        ("left", "merged" if found.merged else eta),
    ]
    lines = aligned([row for row in rows if row[0] != "left out" or found.skipped])
    if found.workers:
        table = [("WORKER", "HEARTBEAT", "BATCHES")]
        for each in found.workers:
            beat = "dead" if each.is_dead else f"{each.heartbeat_seconds:.0f} s ago"
            table.append((each.name, beat, ", ".join(map(str, each.holds)) or "-"))
        lines += aligned(table)
    return lines


def transcribe_job(
    arguments: argparse.Namespace,
    named: Sequence[tuple[str, str | None]],
    options: Mapping[str, Any],
) -> int:
    """Begin a job or go on with it; failures are listed on stderr at the end.

    Raises:
        OptionError: it was begun with others; the message names what has changed.
        StorageError: the job's directory or an output cannot be written.
    """
    from fairseq_openvino.jobs.transcribe import Transcribe

    formats = dict.fromkeys(
        arguments.format or ((JSONL,) if arguments.output_dir is None else ("text",))
    )
    if arguments.output_dir is None and {*formats} - {JSONL}:
        got = ", ".join(formats)
        raise invalid("Transcribing", "format", "jsonl for a job", got, "Give --output-dir")
    engine = given(arguments, EngineOptions)
    load = {"data": arguments.data, "config_yaml": arguments.config_yaml, **engine}
    if "threads" not in engine:
        load["threads"] = jobs.threads(arguments.job)
    transcribe = Transcribe(
        arguments.model, formats=formats, batch_size=arguments.batch_size, load=load,
        **options, **given(arguments, SubtitleOptions),
    )  # fmt: skip
    inputs = [Input.of(path, name or Path(path).stem) for path, name in named]
    documents = None
    if arguments.output_dir is not None:
        if arguments.output_dir.resolve().is_relative_to(arguments.job.resolve()):
            expected = "a directory outside of --job"
            raise invalid("Transcribing", "output_dir", expected, arguments.output_dir)
        writable_directory(arguments.output_dir)
        found = stems([(each.path, name) for each, (_, name) in zip(inputs, named, strict=True)])
        documents = Documents(tuple(formats), arguments.output_dir, found)
        there = {one.path for one in inputs if not documents.missing(one.path)}
        if arguments.skip_existing:
            inputs = [replace(one, skipped=one.path in there) for one in inputs]
    digest = transcribe.recognizer().bundle.digest
    job = jobs.begin(
        arguments.job, Plan.of(digest, transcribe.described(), inputs), arguments.retry_failed
    )
    try:
        finish(job, transcribe, documents, arguments.retry_failed, arguments.ray)
    except KeyboardInterrupt:
        done = status(job)
        print(
            f"stopped: {done.done} of {done.total} files are done; the same command goes on",
            file=sys.stderr,
        )  # fmt: skip
        raise
    return _summary(job, documents)


def finish(
    job: jobs.Job,
    transcribe: Transcribe,
    documents: Documents | None,
    retry_failed: bool,
    address: str | None = None,
) -> None:
    """Work until the job is merged, by us or others, or by the actors of the Ray cluster at an address."""
    while not (now := status(job)).is_complete or retry_failed:
        with JobBar(now.done, now.total) as bar:
            for records in _decoded(job, transcribe, retry_failed, address):
                bar.take(records)
                for record in records:
                    if documents is not None:
                        documents.write(record)
        job.merge()
        retry_failed = False


def _decoded(
    job: jobs.Job, transcribe: Transcribe, retry_failed: bool, address: str | None
) -> Iterator[list[dict[str, Any]]]:
    from fairseq_openvino.jobs import ray
    from fairseq_openvino.jobs.work import work
    from fairseq_openvino.jobs.worker import Worker

    if address is not None:
        yield from ray.work(job, transcribe, retry_failed, address)
        return
    with Worker(job, retry_failed, isolated=transcribe.isolates) as worker:
        yield from work(worker, transcribe)


def _summary(job: jobs.Job, documents: Documents | None) -> int:
    """See to it that all outputs are there, and say what went wrong."""
    failed, damaged, total = [], 0, 0
    for record in job.records():
        if documents is not None:
            documents.write(record)
        total, damaged = total + 1, damaged + (record["damage"] is not None)
        failed += [record["error"]] if record["error"] is not None else []
    if documents is not None:
        documents.sync()
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    for count, what in ((len(failed), "failed (--retry-failed)"), (damaged, "are damaged")):
        if count:
            print(f"{count} of {total} files {what}", file=sys.stderr)
    print(f"results: {job.results}", file=sys.stderr)
    return EXIT_PARTIAL if failed or damaged else EXIT_OK
