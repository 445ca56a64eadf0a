"""Unusual batches through the generator: short, lopsided, broken, interrupted."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.s2t.search import BeamSearch


@pytest.fixture(scope="module")
def engines(tiny: Path, tiny_bundle: Path) -> dict[str, Any]:
    """`generate(features of each utterance, beam, max_len)` of eager Fairseq and of the engine."""
    from fairseq import checkpoint_utils, tasks
    from fairseq.dataclass.configs import GenerationConfig
    from omegaconf import OmegaConf

    import fairseq_openvino.tasks.speech_to_text_openvino  # noqa: F401

    def engine(enabled: bool) -> Any:
        arguments = Namespace(
            task="speech_to_text", data=str(tiny), config_yaml="config.yaml", seed=1,
            max_source_positions=6000, max_target_positions=1024, ov_engine=enabled,
            ov_model=str(tiny_bundle),
        )  # fmt: skip
        task = tasks.setup_task(arguments)
        path = str(tiny / "checkpoint.pt")
        models, _ = checkpoint_utils.load_model_ensemble([path], task=task)

        def generate(utterances: list[np.ndarray], beam: int = 3, max_len: int = 12) -> Any:
            options = OmegaConf.structured(GenerationConfig)
            options.beam, options.max_len_b = beam, max_len
            generator = task.build_generator([m.eval() for m in models], options)
            found = task.inference_step(generator, models, collate(utterances))
            return [[h["tokens"].tolist() for h in best] for best in found]

        return generate

    return {"eager": engine(False), "engine": engine(True)}


def collate(utterances: list[np.ndarray]) -> dict[str, Any]:
    lengths = torch.tensor([len(x) for x in utterances])
    features = torch.zeros(len(utterances), int(lengths.max()), 80)
    for row, x in zip(features, utterances, strict=True):
        row[: len(x)] = torch.from_numpy(x)
    net_input = {"src_tokens": features, "src_lengths": lengths, "prev_output_tokens": None}
    return {"id": torch.arange(len(utterances)) + 100, "net_input": net_input}


def noise(*frames: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal((length, 80)).astype(np.float32) for length in frames]


@pytest.mark.parametrize(
    "frames",
    [(1,), (1, 1, 1), (3000, 30, 30, 30), (5999, 1), tuple(range(40, 60)), (7,) * 33],
    ids=["one-frame", "three-of-one-frame", "100x-longer", "extremes", "twenty", "thirty-three"],
)
def test_unusual_lengths_give_fairseqs_hypotheses(
    engines: dict[str, Any], frames: tuple[int, ...]
) -> None:
    utterances = noise(*frames)
    assert engines["eager"](utterances) == engines["engine"](utterances)


def test_beam_larger_than_the_vocabulary_and_max_len_reached(engines: dict[str, Any]) -> None:
    utterances = noise(50, 41)
    for options in ({"beam": 70, "max_len": 3}, {"beam": 2, "max_len": 1}):
        eager, engine = (engines[name](utterances, **options) for name in ("eager", "engine"))
        assert eager == engine
        assert max(len(tokens) for best in engine for tokens in best) == options["max_len"] + 1


def test_nan_costs_its_utterance_only(
    engines: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for count in (3, 20):  # one request, and parallel parts
        good = noise(*[40] * count)
        expected = engines["engine"](good)
        bad = [x.copy() for x in good]
        bad[2][5] = np.nan
        caplog.clear()
        assert engines["engine"](bad) == expected[:2] + expected[3:]
        assert caplog.text.count("skipping utterance") == 1
        assert "skipping utterance 102: Decoding failed" in caplog.text


def test_any_exception_costs_its_utterance_only(
    engines: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode = CompiledModel.encode
    utterances = [*noise(40, 40, 40, 40), np.full((40, 80), 7, np.float32)]
    expected = engines["engine"](utterances)

    def fails(self: Any, features: np.ndarray, *rest: Any) -> Any:
        if (features == 7).all(axis=(1, 2)).any():
            raise ZeroDivisionError("boom")
        return encode(self, features, *rest)

    monkeypatch.setattr(CompiledModel, "encode", fails)
    assert engines["engine"](utterances) == expected[:4]
    assert "skipping utterance 104: ZeroDivisionError: boom" in caplog.text


def test_an_interrupted_batch_does_not_disturb_the_next(
    engines: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = noise(60, 50, 45)
    expected = engines["engine"](utterances)
    for step in range(6):
        advance = BeamSearch._advance

        def interrupt(
            self: Any, now: int, *rest: Any, step: int = step, advance: Any = advance
        ) -> None:
            if now == step:
                raise KeyboardInterrupt
            advance(self, now, *rest)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(BeamSearch, "_advance", interrupt)
            engines["engine"](utterances)
        assert engines["engine"](utterances) == expected
