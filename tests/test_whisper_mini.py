"""The shipped micro-Whisper: real speech, against transformers and against the references."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from conftest import MICRO_WHISPER as MINI
from conftest import child_environment

from fairseq_openvino import load_model
from fairseq_openvino.model import Clip

SECONDS = 8.0


def rows(language: str, kind: str = "single") -> list[dict[str, str]]:
    """Lines of test.tsv."""
    with open(MINI / "test.tsv", encoding="utf-8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row in table if row["language"] == language and row["kind"] == kind]


def transcribed(model: Any, wanted: list[dict[str, str]], **options: Any) -> list[str]:
    found = model.transcribe_batch([MINI / row["path"] for row in wanted], **options)
    return [each.text for each in found]


def wer(wanted: list[dict[str, str]], texts: list[str]) -> float:
    """Word error rate in percent, lower-cased and without punctuation."""
    plain = jiwer.Compose(
        [
            jiwer.ToLowerCase(),
            jiwer.RemovePunctuation(),
            jiwer.Strip(),
            jiwer.ReduceToListOfListOfWords(),
        ]
    )
    references = [row["text"] for row in wanted]
    return 100 * float(
        jiwer.wer(references, texts, reference_transform=plain, hypothesis_transform=plain)
    )


@pytest.fixture(scope="module")
def model(micro_whisper: Path) -> Any:
    return load_model(micro_whisper)


@pytest.fixture(scope="module")
def original() -> Any:
    import torch

    from fairseq_openvino.compat.transformers import transformers

    return transformers.WhisperForConditionalGeneration.from_pretrained(
        MINI, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize(
    ("language", "kind"),
    [("en", "single"), pytest.param("de", "single", marks=pytest.mark.soak)],
)
@pytest.mark.parametrize(
    ("beam", "timestamps"),
    [
        (1, False),
        (5, True),
        *(pytest.param(*each, marks=pytest.mark.soak) for each in ((1, True), (5, False))),
    ],
)
def test_tokens_and_segments_equal_transformers(
    model: Any, original: Any, beam: int, timestamps: bool, language: str, kind: str
) -> None:
    import torch

    clips: list[Clip] = [model.read(MINI / row["path"]) for row in rows(language, kind)[:24]]
    features = torch.from_numpy(np.stack([clip.features for clip in clips])).transpose(1, 2)
    with torch.no_grad():
        expected = original.generate(
            features, num_beams=beam, return_timestamps=timestamps, language=language,
            task="transcribe", return_segments=True,
        )  # fmt: skip
    found = model.transcribe_clips(
        clips, beam=beam, timestamps=timestamps, language=language, no_speech_threshold=None,
        skip_silence=False,
    )  # fmt: skip
    end = model.manifest.tokens.eos
    for transcript, sequence, segments in zip(
        found, expected["sequences"], expected["segments"], strict=True
    ):
        tokens = [token for token in transcript.hypotheses[0][1].tokens if token != end]
        assert tokens == [token for token in sequence.tolist() if token != end]
        if timestamps:
            times = [  # transformers does not ask where the audio ends
                (float(s["start"]), min(float(s["end"]), transcript.seconds)) for s in segments
            ]
            np.testing.assert_allclose(
                [(s.start, s.end) for s in transcript.segments], times, atol=0.01
            )


@pytest.fixture(scope="module")
def english(model: Any) -> list[str]:
    """What the model makes of the English sentences."""
    return transcribed(model, rows("en"), language="en")


def test_held_out_sentences_are_understood(english: list[str]) -> None:
    assert len(english) == 100
    assert wer(rows("en"), english) < 10


def test_languages_are_detected(model: Any) -> None:
    wanted = rows("en")[:20] + rows("de")[:20]
    found = model.transcribe_batch([MINI / row["path"] for row in wanted], beam=1)
    right = sum(each.language == row["language"] for each, row in zip(found, wanted, strict=True))
    assert right >= 38
    for each in found:
        assert sum(each.language_probabilities.values()) == pytest.approx(1, abs=1e-4)


def test_timestamps_are_where_the_speech_is(model: Any) -> None:
    import json

    wanted = rows("en")[:40]
    found = model.transcribe_batch(
        [MINI / row["path"] for row in wanted], language="en", timestamps=True
    )
    errors = []
    for each, row in zip(found, wanted, strict=True):
        start, end, _ = json.loads(row["segments"])[0]
        errors.append(abs(each.segments[0].start - start) + abs(each.segments[-1].end - end))
        assert all(0 <= s.start <= s.end <= SECONDS for s in each.segments)
    assert np.median(errors) < 0.5


@pytest.mark.parametrize("precision", ["bf16", "int8", "fast"])
def test_low_precision_keeps_the_texts(
    english: list[str], micro_whisper: Path, precision: str
) -> None:
    wanted = rows("en")[:50]
    found = transcribed(load_model(micro_whisper, precision=precision), wanted, language="en")
    assert abs(wer(wanted, found) - wer(wanted, english[:50])) < 1.0


def test_silence_is_not_speech(model: Any) -> None:
    """The model alone gives a text with a high no-speech probability; by default there is none."""
    random = np.random.default_rng(0)
    silence = model.clip(np.zeros(48000, np.float32), 16000)
    noise = model.clip(random.normal(0, 0.003, 48000).astype(np.float32), 16000)
    speech = model.read(MINI / rows("en")[0]["path"])
    clips, options = [silence, noise, speech], {"beam": 1, "language": "en"}
    quiet, hiss, spoken = model.transcribe_clips(
        clips, skip_silence=False, no_speech_threshold=None, **options
    )
    assert spoken.no_speech_probability < 0.2
    assert quiet.no_speech_probability > 0.5 and hiss.no_speech_probability > 0.5
    assert quiet.text and hiss.text
    found = model.transcribe_clips(clips, **options)
    assert [each.text for each in found] == ["", "", spoken.text]


TRANSCRIBE = """
import sys
from fairseq_openvino import load_model
bundle, cache, clip, precision = sys.argv[1:]
print(load_model(bundle, precision=precision, cache_dir=cache).transcribe(clip, beam=1).text)
"""


def test_precisions_share_a_directory_for_compiled_models(
    micro_whisper: Path, tmp_path: Path
) -> None:
    """OpenVINO itself crashes at bf16 on a cache that holds the encoder at f32."""
    clip = str(MINI / rows("en")[0]["path"])
    texts = []
    for precision in ("f32", "bf16", "f32"):
        done = subprocess.run(
            [sys.executable, "-c", TRANSCRIBE, str(micro_whisper), str(tmp_path), clip, precision],
            capture_output=True, text=True, env=child_environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert len(set(texts)) == 1 and texts[0].strip()
    assert {path.name for path in tmp_path.iterdir()} == {"f32", "bf16"}
