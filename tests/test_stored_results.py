"""Results stored by version 0.1.0: evaluations score the same, benchmarks make the same tables."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from fairseq_openvino import cli
from fairseq_openvino.errors import EXIT_OK
from fairseq_openvino.measure.benchmark_figures import compute
from fairseq_openvino.measure.benchmark_report import markdown
from fairseq_openvino.measure.plan import fairseq_engines

EVALUATION = Path(__file__).parent / "fixtures" / "evaluation-0.1.0"
BENCHMARKS = ROOT / "examples" / "covost" / "results"


def test_an_evaluation_scores_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("utterances.jsonl", "normalizer.json"):
        shutil.copy(EVALUATION / name, tmp_path)
    assert cli.main(["evaluate", "--score-only", str(tmp_path)]) == EXIT_OK
    for name in ("evaluation.md", "evaluation.json"):
        found, expected = ((place / name).read_text() for place in (tmp_path, EVALUATION))
        assert without_versions(found) == without_versions(expected)
    assert capsys.readouterr().out == (tmp_path / "evaluation.md").read_text()


def without_versions(text: str) -> str:
    """What scored it may be newer."""
    return re.sub(r"(version|jiwer):[0-9.]+", r"\1", text)


@pytest.mark.parametrize("name", ["benchmark", "benchmark-shapes", "benchmark-large", "whisper"])
def test_a_benchmark_makes_the_same_tables(name: str, tmp_path: Path) -> None:
    stored = json.loads((BENCHMARKS / f"{name}.json").read_text())
    records = of_whisper(stored) if name == "whisper" else of_fairseq(stored)
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    results = compute(path)
    for row, before in zip(results.rows, stored["rows"], strict=True):
        if row.rounds:
            row.bleu = before["rounds"][0].get("bleu")  # the texts were not stored
    expected = (BENCHMARKS / f"{name}.md").read_text().replace("eager's tokens.", "eager's text.")
    assert markdown(results) + "\n" == expected


def of_fairseq(stored: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The records from which benchmark.json would be computed now."""
    known = {spec.name: spec for spec in fairseq_engines()}
    specs = [[name, known[name].meaning, known[name].is_ours] for name in stored["engines"]]
    stated = {name: stored[name] for name in ("options", "provenance")}
    yield {"kind": "run", **stated, "engines": specs}
    cases = list({json.dumps(row["case"]): row["case"] for row in stored["rows"]}.values())
    for number, case in enumerate(cases):
        tokens = None if case["vocabulary"] is None else stored["options"]["tokens"]
        yield {"kind": "case", "number": number, "tokens": tokens, **case}
        rows = [row for row in stored["rows"] if row["case"] == case]
        for row in rows:
            engine = {"kind": "engine", "cases": [number], "engine": row["engine"]}
            loads = {"cold_seconds": row["load_cold_seconds"], "load_seconds": row["load_seconds"]}
            yield {**engine, **loads, "precision": row["precision"], "error": row["error"]}
            if row["profile"] is not None:
                profile = {"kind": "profile", "case": number, "engine": row["engine"]}
                yield profile | row["profile"]
        yield from utterances(number, {row["engine"]: row["rounds"] for row in rows},
                              rows[0]["audio_seconds"])  # fmt: skip
    yield {"kind": "end"}


def of_whisper(stored: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The records from which whisper.json would be computed now."""
    specs = [
        [each["engine"]["name"], each["engine"]["package"], each["engine"]["package"] == "fairseq-openvino"]
        for each in stored["loaded"]
    ]  # fmt: skip
    options = stored["options"] | {"whisper": stored["options"]["sizes"]}
    yield {"kind": "run", "options": options, "provenance": stored["provenance"], "engines": specs}
    loads = {each["engine"]["name"]: each for each in stored["loaded"]}
    workloads = {row["workload"]["name"]: row["workload"] for row in stored["rows"]}
    for number, (name, workload) in enumerate(workloads.items()):
        rows = [row for row in stored["rows"] if row["workload"]["name"] == name]
        yield {"kind": "case", "number": number, "model": rows[0]["size"], "vocabulary": None,
               "utterances": workload["clips"], "beam": workload["beam"],
               "tokens": rows[0]["tokens"], "whisper": True}  # fmt: skip
        rounds = {}
        for row in rows:
            load = loads[row["engine"]["name"]]
            yield {"kind": "engine", "cases": [number], "engine": row["engine"]["name"],
                   "cold_seconds": load["cold_seconds"], "load_seconds": load["warm_seconds"],
                   "summary": load["precision"], "batches": row["engine"]["batches"],
                   "error": row["error"]}  # fmt: skip
            peak = {"peak_mb": load["peak_mb"]}
            rounds[row["engine"]["name"]] = [each | peak for each in row["rounds"]]
        yield from utterances(number, rounds, 1.0)
    yield {"kind": "end"}


def utterances(
    case: int, rounds: dict[str, list[dict[str, Any]]], audio_seconds: float
) -> Iterator[dict[str, Any]]:
    """Digests stand for the texts; tokens of all are split as evenly as they must be."""
    count = max(len(each[0]["digests"]) for each in rounds.values() if each)
    for i in range(count):
        engines = {}
        for name, each in rounds.items():
            if not each:
                continue
            first = each[0]
            whole = first.get("tokens", 0) - count  # without eos
            counts = first.get("counts") or [*[whole // count] * (count - 1)]
            counts = [*counts, whole - sum(counts)][:count]
            entry = {
                "text": first["digests"][i], "tokens": counts[i],
                "seconds": [one["seconds"] for one in each],
                "peak_mb": max(one["peak_mb"] for one in each),
            }  # fmt: skip
            if "steps" in first:
                own = {key: [one[key] for one in each] for key in ("encode_seconds", "steps")}
                entry |= own | {"generation_seconds": entry["seconds"]}
            engines[name] = entry
        yield {
            "kind": "utterance", "case": case, "batch": 0, "id": str(i), "engines": engines,
            "seconds": audio_seconds / count, "reference": "not stored",
        }  # fmt: skip
