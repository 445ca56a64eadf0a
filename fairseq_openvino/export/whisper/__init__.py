"""Whisper and Distil-Whisper checkpoints, of every form in `export.sources`."""

from __future__ import annotations

from pathlib import Path

from fairseq_openvino.bundle import Bundle, FeatureConfig, SpecialTokens, TextConfig
from fairseq_openvino.export.options import ExportOptions
from fairseq_openvino.export.parity import Report
from fairseq_openvino.export.procedure import Original, export
from fairseq_openvino.export.sources import Place
from fairseq_openvino.export.whisper.graphs import Reference, build, parity_cases
from fairseq_openvino.export.whisper.source import load_source

TOKENIZER = "tokenizer.json"


def export_whisper(
    source: str | Path | Place,
    output: Path,
    options: ExportOptions | None = None,
    tokenizer: Path | None = None,
) -> tuple[Bundle, Report]:
    """Export one checkpoint.

    Args:
        source: a path, a hub name or a short name, as `export.sources` has them.
        output: the bundle directory to create.
        options: what to write.
        tokenizer: `tokenizer.json`, `*.tiktoken`, or a directory with one; default: beside the
            checkpoint, else OpenAI's of the vocabulary's size.

    Returns:
        The verified bundle and the parity report.

    Raises:
        CheckpointError, ModelError: a file is missing, damaged or does not fit the others.
        UnsafeCheckpointError: a pickle would run code.
        MissingDependencyError: an adapter needs peft, or a name huggingface_hub.
        ParityError: a graph does not reproduce the model; nothing is published.
        StorageError: the bundle could not be written; nothing is left behind.
    """
    return export(_original(source, tokenizer), output, options)


def _original(source: str | Path | Place, tokenizer: Path | None) -> Original:
    loaded = load_source(source, tokenizer)
    graphs, whisper, text = build(loaded.model), loaded.whisper, loaded.tokenizer.to_str()
    described = {
        "family": "whisper",
        "tokens": SpecialTokens(bos=whisper.start, pad=loaded.pad, eos=loaded.eos, unk=loaded.eos),
        "features": FeatureConfig(graphs.feature_bins, loaded.sample_rate_hz, ("log_mel",)),
        "text": TextConfig(tokenizer=TOKENIZER),
        "whisper": whisper,
        "source": loaded.origin,
    }

    def write_files(directory: Path) -> None:
        (directory / TOKENIZER).write_text(text, "utf-8")

    return Original(graphs, Reference(loaded.model), described, write_files, parity_cases(graphs))
