"""Measured engines: the same features, languages and texts; clips they cannot decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MINI, TINY, tone, write_checkpoint, write_data

from fairseq_openvino.errors import (
    AudioError,
    CheckpointError,
    OptionError,
    UtteranceTooLongError,
)
from fairseq_openvino.export.fairseq import export_checkpoint
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.measure.child import Child
from fairseq_openvino.measure.engines import Decoded, EngineSpec, Output, Search
from fairseq_openvino.measure.engines.fairseq import FairseqEngine
from fairseq_openvino.measure.engines.ours import BundleEngine
from fairseq_openvino.measure.engines.transformers import WhisperEngine
from fairseq_openvino.measure.evaluation import batches
from fairseq_openvino.measure.plan import fairseq_batches
from fairseq_openvino.model import Clip
from fairseq_openvino.speech.corpus import Utterance
from fairseq_openvino.speech.stored import frames

CLIPS = sorted(str(path) for path in (MINI / "clips").glob("*.mp3"))


def spec(kind: str, **models: Any) -> EngineSpec:
    return EngineSpec(kind, "", kind, **{name: str(value) for name, value in models.items()})


def texts(
    engine: Any, clips: Sequence[Clip], language: str | None = None, **search: Any
) -> list[str]:
    found = engine.generate(clips, Search(**search), language, None)
    return [output.text for output in found.outputs]


def test_features_of_both_engines_are_the_same(mini_bundle: Path, tmp_path: Path) -> None:
    ours = BundleEngine(spec("ours", bundle=mini_bundle))
    model = {"checkpoint": MINI / "checkpoint.pt", "data": MINI}
    eager = FairseqEngine(spec("fairseq", **model, config_yaml="config_st_en_de.yaml"))
    stored = tmp_path / "a.npy"
    np.save(stored, frames(CLIPS[0], 16000, 80).values)
    for path in (CLIPS[0], str(stored)):
        one, other = ours.read(path), eager.read(path)
        np.testing.assert_allclose(one.features, other.features, atol=1e-6)
        assert one.seconds == pytest.approx(other.seconds)
    long = tmp_path / "long.npy"
    np.save(long, np.zeros((6001, 80), np.float32))
    with pytest.raises(UtteranceTooLongError, match="at most 6000 frames"):
        eager.read(str(long))
    # a batch of other lengths, in the order given
    clips = [eager.read(path) for path in CLIPS[:3]]
    assert texts(eager, clips) == [texts(eager, [clip])[0] for clip in clips]


def test_fairseq_measures_what_it_reports(tiny: Path) -> None:
    engine = FairseqEngine(spec("fairseq", checkpoint=tiny / "checkpoint.pt", data=tiny))
    paths = sorted((tiny / "features").glob("*.npy"))[:3]
    clips = [engine.read(str(path)) for path in paths]
    found = engine.generate(clips, Search(beam=2), None, 8)
    assert [output.tokens for output in found.outputs] == [8, 8, 8]
    assert found.figures["steps"] == 9  # eos included
    assert 0 < found.figures["encode_seconds"] < found.figures["generation_seconds"]
    assert len({output.text for output in found.outputs}) > 1


def test_batches_are_fairseqs() -> None:
    from fairseq.data import data_utils

    random = np.random.default_rng(0)
    for count, most in ((1, 500), (40, 500), (40, 1000), (40, 50_000)):
        lengths = random.integers(20, 400, count)
        order = np.lexsort([np.arange(count), -lengths])
        expected = data_utils.batch_by_size(order, lengths.__getitem__, None, max_tokens=most)
        found = fairseq_batches([int(length) for length in lengths], most)
        assert found == [list(batch) for batch in expected]


def test_languages_of_the_corpus_reach_a_multilingual_model(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, "s2t_transformer_s", vocabulary=60, **TINY)
    symbols = (tmp_path / "dict.txt").read_text().splitlines()
    symbols[-2:] = ["<lang:de> 1", "<lang:fr> 1"]
    (tmp_path / "dict.txt").write_text("\n".join(symbols) + "\n")
    with open(tmp_path / "config.yaml", "a") as file:
        file.write("prepend_tgt_lang_tag: true\n")
    write_data(tmp_path, utterances=3, frames=(40, 120))
    paths = sorted((tmp_path / "features").glob("*.npy"))
    bundle = tmp_path / "bundle"
    export_checkpoint(checkpoint, DataDirectory(tmp_path), bundle)
    engines = [
        BundleEngine(spec("ours", bundle=bundle)),
        FairseqEngine(spec("fairseq", checkpoint=checkpoint, data=tmp_path)),
    ]
    search = {"beam": 3, "max_len_b": 12}
    clips = [[engine.read(str(path)) for path in paths] for engine in engines]
    found = [
        [[texts(engine, [clip], code, **search)[0] for clip in own] for code in ("de", "fr")]
        for engine, own in zip(engines, clips, strict=True)
    ]
    assert found[0] == found[1] and found[0][0] != found[0][1]
    for engine, own in zip(engines, clips, strict=True):
        with pytest.raises(OptionError, match="language"):
            texts(engine, own, None, **search)
    same = [Utterance(str(i), "", "x", code) for i, code in enumerate(("de", "de", "fr", "fr"))]
    assert [len(batch) for batch in batches(iter(same), 3)] == [2, 2]


class _Fragile:
    """An engine that cannot decode some clips."""

    load_seconds, summary = 0.0, ""

    def read(self, path: str) -> Clip:
        return Clip(path, np.zeros((9, 80), np.float32), 0.1)

    def generate(
        self, clips: Sequence[Clip], search: Search, language: str | None, tokens: int | None
    ) -> Decoded:
        if any(clip.path == "bad" for clip in clips):
            raise RuntimeError("broken\nmore")
        return Decoded([Output(clip.path, 1, -1.0) for clip in clips])

    def precision(self) -> dict[str, str]:
        return {}


def test_a_clip_an_engine_cannot_decode_is_found_in_its_batch() -> None:
    child, search = Child(asdict(spec("ours"))), asdict(Search())
    child.engine = _Fragile()
    child.read(["a", "bad", "c", "d", "bad"])
    with pytest.raises(RuntimeError, match="broken"):  # it may be the engine that is at fault
        child.generate([0, 1, 2], search)
    assert [each["text"] for each in child.generate([0, 2], search)["outputs"]] == ["a", "c"]
    found = child.generate([0, 1, 2, 3, 4], search)
    assert found == {"problems": [[1, "RuntimeError: broken"], [4, "RuntimeError: broken"]]}


def test_whisper_in_pytorch_is_generate(whisper: Path, tmp_path: Path) -> None:
    import torch

    engine = WhisperEngine(spec("transformers", checkpoint=whisper))
    clips = [engine.read(path) for path in CLIPS[:2]]
    assert clips[0].features.shape == (800, 80)
    found = texts(engine, clips, "en", beam=2)
    features = torch.from_numpy(np.stack([clip.features.T for clip in clips]))
    expected = engine.model.generate(features, num_beams=2, language="en", task="transcribe")
    decoded = engine.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert found == [text.strip() for text in decoded] and found[0]
    assert engine.generate([clips[0]], Search(), "de-DE", None).outputs[0].tokens > 1
    long = tone(tmp_path / "long.wav", seconds=9)
    assert engine.read(str(long)).features.shape == (900, 80)
    np.save(tmp_path / "a.npy", np.zeros((10, 80), np.float32))
    with pytest.raises(AudioError, match="Whisper has its own features"):
        engine.read(str(tmp_path / "a.npy"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="Hugging Face Whisper directory"):
        WhisperEngine(spec("transformers", checkpoint=tmp_path / "empty"))


def test_features_can_be_part_of_the_time(whisper: Path) -> None:
    before = WhisperEngine(spec("transformers", checkpoint=whisper))
    within = WhisperEngine(
        EngineSpec("x", "", "transformers", checkpoint=str(whisper), from_samples=True)
    )
    clips = [[engine.read(path) for path in CLIPS[:2]] for engine in (before, within)]
    assert clips[1][0].features.ndim == 1 and clips[1][0].seconds == clips[0][0].seconds
    assert texts(before, clips[0], "en") == texts(within, clips[1], "en")
