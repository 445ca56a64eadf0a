"""Options of a pre-trained wav2vec 2.0, which a checkpoint may state in many ways."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from fairseq_openvino.errors import CheckpointError
from fairseq_openvino.export.fairseq.pretrained import wav2vec2_arguments

omegaconf = pytest.importorskip("omegaconf")


def doubling(steps: int) -> dict[str, str]:
    """The last is 2^steps characters long, once it is looked at."""
    return {"a0": "x"} | {f"a{i}": 2 * f"${{a{i - 1}}}" for i in range(1, steps)}


def shared(levels: int) -> list[Any]:
    """2^levels values in a few lists."""
    found: list[Any] = [1]
    for _ in range(levels):
        found = [found, found]
    return found


@pytest.mark.parametrize(
    "options",
    [
        doubling(40),
        {"nested": [doubling(40)]},
        {"by name": "${a.${b}}"},
        omegaconf.OmegaConf.create(doubling(40)),
        {"inner": omegaconf.OmegaConf.create(doubling(40))},
        {"node": omegaconf.StringNode("${a}${a}")},
        {"list": shared(40)},
    ],
    ids=lambda options: f"{type(options).__name__} {[*options][0]}",
)
def test_options_that_would_grow_without_end_are_refused(options: Any) -> None:
    with pytest.raises(CheckpointError, match="at most 10000 values, and texts with one reference"):
        wav2vec2_arguments(Namespace(w2v_args={"model": options}))


def test_an_option_that_stands_for_another_one_is_kept() -> None:
    stated = {"model": {"encoder_layers": 3, "encoder_ffn_embed_dim": "${model.encoder_layers}"}}
    found = wav2vec2_arguments(Namespace(w2v_args=stated)).w2v_args.model
    assert found.encoder_ffn_embed_dim == found.encoder_layers == 3
