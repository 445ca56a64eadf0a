"""Checkpoints of multitask training: what takes no part in generation is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY, Shared, assert_identical, generate, write_checkpoint, write_data

from fairseq_openvino.errors import ArchitectureError
from fairseq_openvino.export.fairseq import ARCHITECTURES
from fairseq_openvino.export.fairseq.checkpoint import load
from fairseq_openvino.export.fairseq.data import DataDirectory

AUXILIARY = ("asr_decoder.proj.weight", "asr_decoder.proj.bias", "target_letter_decoder.version")
"""Of a CTC decoder and of a transformer, by the names that `XMTransformerModel` gives them."""


@pytest.fixture(scope="module")
def multitask(shared: Shared) -> Path:
    """A model with a CTC head; `checkpoint.pt` has auxiliary decoders too, `plain.pt` has not."""

    def make(directory: Path) -> None:
        plain = write_checkpoint(directory, "s2t_transformer_s", "plain.pt", ctc_weight=0.3, **TINY)
        state = torch.load(plain, weights_only=False)
        state["model"] |= {name: torch.ones(3) for name in AUXILIARY}
        torch.save(state, directory / "checkpoint.pt")
        write_data(directory, utterances=5, frames=(30, 120))
        (directory / "multitask.yaml").write_text(
            f"asr: {{decoder_type: ctc, dict: {directory}/dict.txt, data: {directory}}}\n"
        )

    return shared("multitask", make)


@pytest.mark.soak
def test_engine_needs_no_auxiliary_decoder(
    multitask: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor the YAML that says what they were; the CTC head inside the encoder stays unused too."""
    eager = generate(multitask, "--max-len-b", "10", path=str(multitask / "plain.pt"))
    flags = ("--max-len-b", "10", "--ov-engine", "--ov-cache-dir", str(cache_dir))
    assert_identical(eager, generate(multitask, *flags))
    assert "auxiliary decoders of training are left out: asr, target_letter" in caplog.text
    assert_identical(
        eager, generate(multitask, *flags, "--multitask-config-yaml", "multitask.yaml")
    )


def test_first_pass_models_are_refused_with_the_reason(tmp_path: Path, multitask: Path) -> None:
    state = torch.load(multitask / "plain.pt", weights_only=False)
    state["args"].arch = "xm_transformer_t2"
    torch.save(state, tmp_path / "unity.pt")
    with pytest.raises(ArchitectureError, match="'xm_transformer_t2', whose second decoder reads"):
        load(tmp_path / "unity.pt", DataDirectory(multitask), {}, ARCHITECTURES)
