"""Word error rate and time of Whisper checkpoints: the original libraries beside ours, as a table.

Each engine transcribes every clip alone, greedily and without timestamps. `full` and `auto` of one
precision of ours take turns, clip by clip, so that their times compare. faster-whisper runs in
`.venv-peers` (`make peers`). Every text is kept, so `--score-only` makes the table again.

    python scripts/whisper_wer.py tiny.en=DIR base=DIR --corpus clips.tsv --output WORK
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENGINES = (
    "transformers", "openai-whisper", "faster-whisper f32", "faster-whisper int8", "ours f32",
    "ours bf16", "ours int8", "ours fast",
)  # fmt: skip
BASELINE = "openai-whisper"
PEERS = Path(__file__).parent.parent / ".venv-peers" / "bin" / "python"
SHORT_SECONDS = 10.0
LONGEST_SECONDS = 30.0
TOKEN_LIMIT = 440
"""An output of so many tokens did not end by itself; of 448 positions some are the prompt's."""
RATE_HZ = 16_000
WAVEFORMS = "waveforms.npz"
Transcribe = Callable[[Any], tuple[str, int]]
"""A waveform at 16 kHz to its text and number of tokens."""


def main() -> int:
    """Run what has not been run yet, then print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR", help="Hugging Face directories")
    parser.add_argument(
        "--corpus", type=Path, required=True, help="TSV: path, transcript, language"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="WORK")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score-only", action="store_true", help="of the texts in WORK")
    parser.add_argument("--child", help="run one engine in this process")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.child:
        return _run(options)
    if not options.score_only:
        _waveforms(options)
    for model in options.models:
        for engine in options.engines.split(","):
            if not options.score_only and not _file(options.output, model, engine).exists():
                python = str(PEERS) if engine.startswith("faster") else sys.executable
                words = [
                    python,
                    __file__,
                    model,
                    "--child",
                    engine,
                    "--corpus",
                    str(options.corpus),
                ]
                words += ["--output", str(options.output), "--threads", str(options.threads)]
                print(f"{model}: {engine}", file=sys.stderr)
                subprocess.run(words, check=True)
        print(_table(model, options), flush=True)
    return 0


def _file(work: Path, model: str, engine: str) -> Path:
    return work / f"{model.partition('=')[0]}.{engine.replace(' ', '-')}.jsonl"


def _rows(corpus: Path) -> list[dict[str, str]]:
    """English clips of up to one window that libsndfile reads."""
    import soundfile

    with open(corpus, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    readable = []
    for row in rows:
        try:
            seconds = soundfile.info(str(corpus.parent / row["path"])).duration
        except soundfile.LibsndfileError:
            continue
        if seconds <= LONGEST_SECONDS and row.get("language", "en") == "en":
            readable.append(row | {"seconds": str(seconds)})
    return readable


def _waveforms(options: Namespace) -> None:
    """All clips at 16 kHz, mono, in one file that needs numpy only."""
    import numpy as np
    import soundfile
    import soxr

    found = {}
    for row in _rows(options.corpus):
        path = options.corpus.parent / row["path"]
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        found[row["path"]] = soxr.resample(samples.mean(axis=1), rate_hz, RATE_HZ)
    arrays: dict[str, Any] = {name: each.astype(np.float32) for name, each in found.items()}
    np.savez(options.output / WAVEFORMS, **arrays)


def _run(options: Namespace) -> int:
    """All clips through one engine; a JSON line for each clip and context."""
    import numpy as np

    (model,) = options.models
    engine, _, precision = options.child.partition(" ")
    loaders = {
        "transformers": _transformers,
        BASELINE: _openai,
        "faster-whisper": _faster,
        "ours": _ours,
    }
    contexts = loaders[engine](Path(model.partition("=")[2]), precision, options)
    waveforms = np.load(options.output / WAVEFORMS)
    lines = []
    for path in [waveforms.files[0], *waveforms.files]:  # the first once more: warm
        waveform = waveforms[path]
        for context, transcribe in contexts.items():
            started = time.perf_counter()
            text, tokens = transcribe(waveform)
            seconds = time.perf_counter() - started
            line = {"path": path, "context": context, "text": text, "tokens": tokens}
            lines.append(json.dumps(line | {"seconds": round(seconds, 4)}, ensure_ascii=False))
    partial = _file(options.output, model, options.child).with_suffix(".partial")
    partial.write_text("\n".join(lines[len(contexts) :]) + "\n", encoding="utf-8")
    partial.rename(_file(options.output, model, options.child))
    return 0


def _transformers(source: Path, _: str, options: Namespace) -> dict[str, Transcribe]:
    import torch

    from fairseq_openvino.compat.transformers import transformers

    torch.set_num_threads(options.threads)
    processor = transformers.WhisperProcessor.from_pretrained(source)
    kind: Any = transformers.WhisperForConditionalGeneration
    model = kind.from_pretrained(source, dtype=torch.float32).eval()
    many = model.generation_config.is_multilingual
    named = {"language": "en", "task": "transcribe"} if many else {}

    def transcribe(waveform: Any) -> tuple[str, int]:
        found = processor(waveform, sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(found.input_features, num_beams=1, do_sample=False, **named)
        return processor.tokenizer.decode(tokens[0], skip_special_tokens=True).strip(), len(
            tokens[0]
        )

    return {"full": transcribe}


def _openai(source: Path, _: str, options: Namespace) -> dict[str, Transcribe]:
    import torch
    import whisper
    from safetensors.torch import load_file

    from fairseq_openvino.export.whisper.openai import rename

    torch.set_num_threads(options.threads)
    config = json.loads((source / "config.json").read_text("utf-8"))
    width, heads = config["d_model"], config["encoder_attention_heads"]
    dims = whisper.model.ModelDimensions(
        config["num_mel_bins"], 1500, width, heads, config["encoder_layers"],
        config["vocab_size"], 448, width, config["decoder_attention_heads"], config["decoder_layers"],
    )  # fmt: skip
    model, weights = whisper.model.Whisper(dims), load_file(source / "model.safetensors")
    names = {
        original: next(iter(rename({original: value})))
        for original, value in model.state_dict().items()
    }
    model.load_state_dict({original: weights[name].float() for original, name in names.items()})
    wanted = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)

    def transcribe(waveform: Any) -> tuple[str, int]:
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(waveform), dims.n_mels)
        found = whisper.decode(model.eval(), mel, wanted)
        return found.text, len(found.tokens)

    return {"full": transcribe}


def _faster(source: Path, precision: str, options: Namespace) -> dict[str, Transcribe]:
    from faster_whisper import WhisperModel

    kind = "float32" if precision == "f32" else precision
    model = WhisperModel(
        f"{source}.ct2", device="cpu", compute_type=kind, cpu_threads=options.threads
    )

    def transcribe(waveform: Any) -> tuple[str, int]:
        segments, _ = model.transcribe(
            waveform, language="en", beam_size=1, temperature=0.0, condition_on_previous_text=False
        )  # with its timestamps: without them it drops ends of clips
        found = list(segments)
        return "".join(s.text for s in found).strip(), sum(len(s.tokens) for s in found)

    return {"full": transcribe}


def _ours(source: Path, precision: str, options: Namespace) -> dict[str, Transcribe]:
    from fairseq_openvino import load_model
    from fairseq_openvino.export.whisper import export_whisper

    bundle = options.output / "bundles" / source.name
    if not bundle.exists():
        export_whisper(source, bundle)
    model: Any = load_model(bundle, precision=precision, threads=options.threads)

    def with_context(context: str) -> Transcribe:
        def transcribe(waveform: Any) -> tuple[str, int]:
            clip = model.clip(waveform, RATE_HZ)
            found = model.transcribe_clips([clip], beam=1, language="en", audio_context=context)[0]
            return found.text, len(found.hypotheses[0][1].tokens)

        return transcribe

    return {context: with_context(context) for context in ("full", "auto")}


def _table(model: str, options: Namespace) -> str:
    """WER of every engine, and the difference of each to its own `full` or to the baseline."""
    from fairseq_openvino.evaluate import accuracy

    from fairseq_openvino.machine import provenance

    rows = {row["path"]: row for row in _rows(options.corpus)}
    normalizer = accuracy.whisper_normalizer("en")
    references = [row["transcript"] for row in rows.values()]
    words = sum(len(normalizer(reference).split()) for reference in references)
    found = {
        (engine, context): lines
        for engine in options.engines.split(",")
        for context, lines in _contexts(_file(options.output, model, engine))
    }
    lines = [
        f"{model.partition('=')[0]}: {len(rows)} clips, {words} words, greedy, {normalizer.name}\n",
        "| engine | context | WER, % | difference, 95 % interval | at the token limit | "
        f"clips < {SHORT_SECONDS:.0f} s, s |",
        "|---|---|---|---|---|---|",
    ]
    for (engine, context), each in found.items():
        texts = [each[path]["text"] for path in rows]
        value = accuracy.score(references, texts, "wer", normalizer).value
        base = (BASELINE, "full") if context == "full" else (engine, "full")
        cell = ""
        if base in found and base != (engine, context):
            before = [found[base][path]["text"] for path in rows]
            change = accuracy.bootstrap_difference(
                references, before, texts, "wer", normalizer=normalizer
            )
            cell = f"{change.difference:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
        limited = sum(each[path]["tokens"] >= TOKEN_LIMIT for path in rows)
        seconds = _seconds(each, rows)
        ratio = (
            ""
            if context == "full"
            else f" ({_seconds(found[engine, 'full'], rows) / seconds:.2f}x)"
        )
        lines.append(
            f"| {engine} | {context} | {value:.2f} | {cell} | {limited} | {seconds:.1f}{ratio} |"
        )
    origin = "; ".join(f"{name} {value}" for name, value in provenance().items())
    return "\n".join([*lines, "", f"{origin}; {options.threads} threads"]) + "\n"


def _contexts(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for context in dict.fromkeys(line["context"] for line in lines):
        yield context, {line["path"]: line for line in lines if line["context"] == context}


def _seconds(lines: dict[str, Any], rows: dict[str, dict[str, str]]) -> float:
    """Time of all short clips together."""
    short = [path for path, row in rows.items() if float(row["seconds"]) < SHORT_SECONDS]
    return float(sum(lines[path]["seconds"] for path in short))


if __name__ == "__main__":
    sys.exit(main())
