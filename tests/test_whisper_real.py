"""OpenAI's own weights on real speech; both are the user's, named by two variables.

FAIRSEQ_OPENVINO_WHISPER   directory with Hugging Face directories of any Whisper checkpoints
FAIRSEQ_OPENVINO_SPEECH    TSV with the columns path, seconds, language, transcript
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_table
from test_whisper_silence import non_speech, rhythmic
from whisper_models import openai_model

from fairseq_openvino import load_model
from fairseq_openvino.metrics import bootstrap_difference, whisper_normalizer
from fairseq_openvino.model import Clip
from fairseq_openvino.quantize.faults import Faults
from fairseq_openvino.quantize.options import INT8, MAX_DROP, MIXED, Options
from fairseq_openvino.quantize.procedure import quantize_bundle
from fairseq_openvino.speech.audio import read_audio

WEIGHTS = os.environ.get("FAIRSEQ_OPENVINO_WHISPER", "")
SPEECH = os.environ.get("FAIRSEQ_OPENVINO_SPEECH", "")
SOURCES = sorted(Path(WEIGHTS).glob("*/model.safetensors")) if WEIGHTS else []
MAX_LOSS = {"tiny.en": 0.7, "base": 0.3}
"""Points of WER that audio_context="auto" may cost; others as base."""

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not (WEIGHTS and SPEECH), reason="no weights or no speech named"),
]


class Real:
    """A checkpoint, its bundle and the clips its language allows."""

    def __init__(self, source: Path, bundle: Path) -> None:
        from fairseq_openvino.export.whisper import export_whisper

        self.source, (self.bundle, self.report) = source, export_whisper(source, bundle)
        self.model: Any = load_model(self.bundle)
        self.many = bool(self.model.family.config.languages)
        with open(SPEECH, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        self.rows = [
            row
            for row in rows
            if float(row["seconds"]) <= 30
            and (self.many or row["language"] == "en")
            and not row["path"].endswith(".m4a")
        ]
        self.clips: list[Clip] = [
            self.model.read(Path(SPEECH).parent / row["path"]) for row in self.rows
        ]


@pytest.fixture(scope="module", params=SOURCES, ids=lambda path: path.parent.name)
def real(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Real]:
    yield Real(request.param.parent, tmp_path_factory.mktemp("real") / "bundle")


def test_the_gate_passes(real: Real) -> None:
    assert real.report.passed
    print(real.report.table())


@pytest.mark.parametrize("beam", [1, 5])
def test_tokens_equal_transformers(real: Real, beam: int) -> None:
    import torch

    from fairseq_openvino.compat.transformers import transformers

    original: Any = transformers.WhisperForConditionalGeneration.from_pretrained(
        real.source, dtype=torch.float32
    ).eval()
    end, found = real.model.manifest.tokens.eos, []
    for start in range(0, len(real.clips), 8):
        found += real.model.transcribe_clips(
            real.clips[start : start + 8], beam=beam, no_speech_threshold=None, skip_silence=False
        )
    for row, clip, transcript in zip(real.rows, real.clips, found, strict=True):
        named = {"language": transcript.language, "task": "transcribe"} if real.many else {}
        with torch.inference_mode():
            features = torch.from_numpy(clip.features.T[None])
            expected = original.generate(features, num_beams=beam, do_sample=False, **named)[0]
        tokens = [int(t) for t in transcript.hypotheses[0][1].tokens if t != end]
        config = real.model.family.config
        special = set(named and original.generation_config.lang_to_id.values()) | {
            config.start, config.no_timestamps, *config.tasks.values(), end,
        }  # fmt: skip
        assert tokens == [t for t in expected.tolist() if t not in special], row["path"]


def test_auto_costs_next_to_nothing(real: Real) -> None:
    english = [i for i, row in enumerate(real.rows) if row["language"] == "en"]
    references = [real.rows[i]["transcript"] for i in english]
    texts: dict[str, list[str]] = {}
    for context in ("full", "auto"):
        found = [
            real.model.transcribe_clips(
                [real.clips[i]], beam=1, language="en", audio_context=context
            )[0]
            for i in english
        ]
        texts[context] = [each.text for each in found]
        assert all(len(each.hypotheses[0][1].tokens) < 200 for each in found), "a loop"
    normalizer = whisper_normalizer("en")
    change = bootstrap_difference(
        references, texts["full"], texts["auto"], "wer", normalizer=normalizer
    )
    words = sum(len(normalizer(reference).split()) for reference in references)
    print(f"auto: {change.difference:+.2f} [{change.low:+.2f}, {change.high:+.2f}], {words} words")
    assert words < 1500 or change.difference <= MAX_LOSS.get(real.source.name, 0.3)


def speaker(row: dict[str, str]) -> str:
    """The reader of a LibriSpeech clip (`<reader>-<chapter>-<number>`), else what its name begins with."""
    name = Path(row["path"]).stem
    found = re.search(r"(\d+)-\d+-\d+$", name)
    return found[1] if found else name[:8]


def test_int8_holds_for_people_it_has_not_heard(real: Real, tmp_path: Path) -> None:
    """Calibrated on one half of the speakers and judged by the other, both ways."""
    english = [row for row in real.rows if row["language"] == "en"]
    said = Counter(speaker(row) for row in english)
    people = sorted(said, key=lambda who: (-said[who], who))  # so that the halves are about equal
    halves = []
    for name in ("even", "odd"):
        chosen = people[len(halves) :: 2]
        rows = [
            (str(Path(SPEECH).parent / row["path"]), row["transcript"], "en", speaker(row))
            for row in english
            if speaker(row) in chosen
        ]
        header = ("path", "text", "language", "speaker")
        halves.append(write_table(tmp_path / f"{name}.tsv", header, *rows))
    lost = words = 0.0
    for fit, rest in (halves, halves[::-1]):
        options = Options(
            MIXED,
            calibration_size=24,
            held_out_size=4,
            validation=rest,
            alphas=(0.5,),
            max_drop=100,
        )
        result = quantize_bundle(real.bundle.directory, fit, tmp_path / fit.stem, options)
        judged, (trial,) = result.bundle.manifest.quantization["gate"], result.trials
        assert trial.encoder.kind == INT8 and judged["disjoint_by"] == "speaker"
        assert not trial.faults.beyond(Faults(**judged["original"]["faults"]))
        lost, words = lost + trial.loss.points * judged["words"], words + judged["words"]
        print(result.table)
    print(f"int8: {lost / words:+.2f} points of {words:.0f} words")
    assert words < 1500 or lost / words <= MAX_DROP["wer"]


def test_nothing_is_said_behind_the_audio(real: Real) -> None:
    """Clips with silence behind them: segments within the audio, text as of the clip alone."""
    for clip in real.clips[:12]:
        found = real.model.transcribe_clips([clip], beam=1, timestamps=True)[0]
        assert found.segments and all(
            0 <= each.start <= each.end <= clip.seconds + 1e-6 for each in found.segments
        )
        assert np.all(np.diff([each.start for each in found.segments]) >= 0)


CLIPS = 24


def openai_file(source: Path, target: Path) -> Path:
    """A `.pt` in the layout and precision of openai-whisper's own files."""
    import torch
    import whisper
    from safetensors.torch import load_file

    from fairseq_openvino.export.whisper.openai import rename

    config = json.loads((source / "config.json").read_text())
    width, heads = config["d_model"], config["encoder_attention_heads"]
    dims = whisper.model.ModelDimensions(
        config["num_mel_bins"], config["max_source_positions"], width, heads,
        config["encoder_layers"], config["vocab_size"], config["max_target_positions"], width,
        config["decoder_attention_heads"], config["decoder_layers"],
    )  # fmt: skip
    weights = load_file(source / "model.safetensors")
    names = {
        name: next(iter(rename({name: 0}))) for name in whisper.model.Whisper(dims).state_dict()
    }  # type: ignore[dict-item]
    state = {name: weights[renamed].half() for name, renamed in names.items()}
    torch.save({"dims": vars(dims), "model_state_dict": state}, target / f"{source.name}.pt")
    return target / f"{source.name}.pt"


def ctranslate2(source: Path, target: Path, kind: str, *files: str) -> Path:
    """As `ct2-transformers-converter` writes it."""
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(source), copy_files=[*files])
    converter.convert(str(target / "model"), quantization=kind)
    return target / "model"


def pickled(source: Path, target: Path) -> Path:
    """The format before safetensors."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(source, target / "model")
    torch.save(load_file(source / "model.safetensors"), target / "model" / "pytorch_model.bin")
    (target / "model" / "model.safetensors").unlink()
    return target / "model"


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "pytorch_model.bin": pickled,
    "OpenAI .pt alone": openai_file,
    "CTranslate2 float16": lambda s, t: ctranslate2(s, t, "float16", "tokenizer.json"),
    "CTranslate2 float16, no tokenizer": lambda s, t: ctranslate2(s, t, "float16"),
    "CTranslate2 int8": lambda s, t: ctranslate2(s, t, "int8", "tokenizer.json"),
}
DIFFERING = {"CTranslate2 int8": 0.35}
"""Share of texts that may differ, where the weights do."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.parent.name)
def test_every_form_holds_the_same_model(path: Path, form: str, tmp_path: Path) -> None:
    """Weights bit for bit, and rules that only the Hugging Face directory states."""
    import torch

    from fairseq_openvino.export.whisper.openai import ALIGNMENT_HEADS
    from fairseq_openvino.export.whisper.source import load_source

    original, found = load_source(path.parent), load_source(FORMS[form](path.parent, tmp_path))
    known = "OpenAI" not in form or path.parent.name in ALIGNMENT_HEADS
    heads = original.whisper.alignment_heads if known else ()
    assert found.whisper == replace(original.whisper, alignment_heads=heads)
    assert (found.eos, found.pad) == (original.eos, original.pad)
    for text in ("Hello, it's 3 o'clock!", " für Ælfred 平凡 ♪♪ (2)", "สวัสดี\n\n  é"):
        tokens = [
            each.tokenizer.encode(text, add_special_tokens=False) for each in (original, found)
        ]
        assert tokens[0].ids == tokens[1].ids
    if form not in DIFFERING:
        pairs = zip(original.model.parameters(), found.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_texts(real: Real, form: str, tmp_path: Path) -> None:
    model: Any = load_model(FORMS[form](real.source, tmp_path), cache_dir=tmp_path / "cache")
    texts = [
        [each.text for each in recognizer.transcribe_clips(real.clips[:CLIPS], beam=1)]
        for recognizer in (real.model, model)
    ]
    equal = sum(a == b for a, b in zip(*texts, strict=True))
    print(f"{real.source.name} | {form} | loads | {equal} of {len(texts[0])} texts equal")
    assert equal >= (1 - DIFFERING.get(form, 0)) * len(texts[0])


def test_adapters_give_the_texts_of_the_merged_model(real: Real, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    from fairseq_openvino.compat.transformers import transformers

    def original() -> Any:
        return transformers.WhisperForConditionalGeneration.from_pretrained(
            real.source, dtype=torch.float32
        )

    torch.manual_seed(0)
    changed = get_peft_model(original(), LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    for name, weights in changed.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.01)
    changed.save_pretrained(tmp_path / "adapter")
    model: Any = load_model(tmp_path / "adapter", cache_dir=tmp_path / "cache")
    merged = PeftModel.from_pretrained(original(), str(tmp_path / "adapter")).eval()
    clips = real.clips[:CLIPS]
    found = model.transcribe_clips(clips, beam=1)
    plain = real.model.transcribe_clips(clips, beam=1)
    differing = 0
    for clip, transcript, before in zip(clips, found, plain, strict=True):
        named = {"language": transcript.language, "task": "transcribe"} if real.many else {}
        features = torch.from_numpy(clip.features.T[None])
        with torch.inference_mode():
            tokens = merged.generate(input_features=features, num_beams=1, **named)[0]
        assert transcript.text == model.family.vocabulary.text(tokens.tolist()), clip.path
        differing += transcript.text != before.text
    print(f"{real.source.name} | LoRA adapter | loads | {len(clips)} of {len(clips)} texts equal")
    assert differing  # the adapter does something


@pytest.fixture(scope="module")
def openai(real: Real) -> Any:
    """openai-whisper's own model with the same weights."""
    import torch

    from fairseq_openvino.compat.transformers import transformers

    return openai_model(
        transformers.WhisperForConditionalGeneration.from_pretrained(
            real.source, dtype=torch.float32
        )
    )


@pytest.mark.parametrize("timestamps", [False, True])
def test_windows_equal_openai_whisper(real: Real, openai: Any, timestamps: bool) -> None:
    """On the same features: texts, and how sure the model is."""
    import whisper

    options = whisper.DecodingOptions(
        "transcribe", "en", without_timestamps=not timestamps, fp16=False
    )
    english = [i for i, row in enumerate(real.rows) if row["language"] == "en"][:30]
    for i in english:
        clip = real.clips[i]
        expected = whisper.decode(openai, torch_features(clip), options)
        found = real.model.transcribe_clips(
            [clip], beam=1, language="en", timestamps=timestamps, max_tokens=224,
            no_speech_threshold=None, skip_silence=False,
        )[0]  # fmt: skip
        assert found.no_speech_probability == pytest.approx(expected.no_speech_prob, abs=1e-3)
        if timestamps:
            first = found.segments[0]
            for name in ("avg_logprob", "compression_ratio", "no_speech_prob"):
                assert getattr(first, name) == pytest.approx(getattr(expected, name), abs=1e-3)
        else:
            average = found.hypotheses[0][1].average_log_probability
            assert found.text == expected.text
            assert average == pytest.approx(expected.avg_logprob, abs=1e-3)


def test_texts_with_the_rules_equal_openai_whisper(real: Real, openai: Any) -> None:
    """Of its `transcribe`, which pads a window's log-mel values with 0.0 instead of the audio with
    silence: given the same, texts are the same.
    """
    english = [i for i, row in enumerate(real.rows) if row["language"] == "en"][:40]
    changed = 0
    for i in english:
        clip, path = real.clips[i], Path(SPEECH).parent / real.rows[i]["path"]
        waveform, _ = read_audio(path, 16_000)
        expected = openai.transcribe(
            waveform, language="en", temperature=0.0, condition_on_previous_text=False, fp16=False
        )
        features = clip.features.copy()
        features[len(waveform) // 160 :] = 0.0
        clips = [replace(clip, features=features), clip]
        same, ours = real.model.transcribe_clips(clips, beam=1, language="en", timestamps=True)
        assert same.text == expected["text"].strip(), path
        changed += ours.text != same.text
        for segment, theirs in zip(same.segments, expected["segments"], strict=True):
            for name in ("avg_logprob", "compression_ratio", "no_speech_prob", "temperature"):
                assert getattr(segment, name) == pytest.approx(theirs[name], abs=1e-3), path
    print(f"padded with silence, {changed} of {len(english)} texts differ")


def test_languages_equal_openai_whisper(real: Real, openai: Any) -> None:
    if not real.many:
        pytest.skip("English only")
    for row, clip in [*zip(real.rows, real.clips, strict=True)][-12:]:
        _, expected = openai.detect_language(torch_features(clip))
        found = real.model.detect_language(Path(SPEECH).parent / row["path"])
        assert found == pytest.approx(expected, abs=1e-4), row["path"]


def torch_features(clip: Clip) -> Any:
    """Shape (F, T), as openai-whisper has them."""
    import torch

    return torch.from_numpy(clip.features.T.copy())


def test_rules_lose_no_speech_and_invent_little(real: Real) -> None:
    """Of real clips nothing is left out; noise that swells as speech does is left to the model."""
    options: dict[str, Any] = {"beam": 1, "language": "en"}
    for start in range(0, len(real.clips), 8):
        for each in real.model.transcribe_clips(real.clips[start : start + 8], **options):
            assert each.skipped is None and each.text, each.path
    for name, wave in non_speech(10.0):
        assert real.model.transcribe(wave, **options).text == "", name
    for name, wave in rhythmic(10.0):
        print(f"{name}: {real.model.transcribe(wave, **options).text[:60]!r}")


def test_nothing_is_said_in_silence_in_front(real: Real) -> None:
    """10 s of it: no more words than of the clip alone, which the model may hear differently."""
    english = [
        clip for row, clip in zip(real.rows, real.clips, strict=True)
        if row["language"] == "en" and clip.seconds < 15
    ][:20]  # fmt: skip
    normalizer, pairs = whisper_normalizer("en"), []
    for clip in english:
        waveform, rate_hz = read_audio(clip.path, 16_000)
        late = np.concatenate([np.zeros(10 * rate_hz, np.float32), waveform])
        alone = real.model.transcribe(clip.path, beam=1, language="en", timestamps=True)
        found = real.model.transcribe(late, beam=1, language="en", timestamps=True)
        assert all(each.end <= len(late) / rate_hz + 1e-6 for each in found.segments)
        pairs.append((normalizer(alone.text), normalizer(found.text)))
    same = sum(alone == found for alone, found in pairs)
    print(f"behind 10 s of silence: {same} of {len(pairs)} texts the same")
    assert all(len(found.split()) <= len(alone.split()) + 2 for alone, found in pairs)
