"""Times of words against openai-whisper's, with OpenAI's weights on real speech; see `test_whisper_real`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_whisper_real import Real, openai, pytestmark, real  # noqa: F401  fixtures

from fairseq_openvino import load_model
from fairseq_openvino.whisper.alignment import Aligner
from fairseq_openvino.whisper.questions import Alignment

MIN_SHARE = {"f32": 0.999, "fast": 0.98}
"""Of words within a position of 20 ms; `fast` encodes in 16 or 8 bits."""


@pytest.mark.parametrize("precision", MIN_SHARE)
def test_words_equal_openai_whisper_s(real: Real, openai: Any, precision: str) -> None:  # noqa: F811
    """On the same tokens and features."""
    import torch
    import whisper.timing
    from whisper.tokenizer import get_tokenizer

    model: Any = load_model(real.bundle, precision=precision)
    aligner = Aligner(model.manifest, model.family.vocabulary)
    heads = torch.zeros(openai.dims.n_text_layer, openai.dims.n_text_head, dtype=torch.bool)
    heads[tuple(torch.tensor(aligner.head.attention).T)] = True
    openai.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    errors = []
    for clip in real.clips:
        (found,) = real.model.transcribe_clips([clip], beam=1)
        tokens = tuple(int(t) for t in found.hypotheses[0][1].tokens if t < aligner.eos)
        question = Alignment(0, min(int(100 * clip.seconds), model.family.window), tokens)
        memory = model.model.encode(clip.features[None], np.array([len(clip.features)]))
        (words,) = aligner.align(model.model, memory, [question], [found.language], "transcribe")
        tokenizer = get_tokenizer(
            real.many, num_languages=openai.num_languages, language=found.language,
            task="transcribe",
        )  # fmt: skip
        mel = torch.from_numpy(clip.features.T.copy())
        expected = whisper.timing.find_alignment(
            openai, tokenizer, list(tokens), mel, question.frames
        )[: len(words)]
        assert [each.word for each in words] == [each.word for each in expected]
        errors += [
            max(abs(a.start - b.start), abs(a.end - b.end))
            for a, b in zip(words, expected, strict=True)
        ]
    share = np.mean(np.array(errors) < 0.0201)
    print(
        f"{real.source.name} | {precision} | {len(errors)} words | {np.sum(np.array(errors) > 1e-3)} "
        f"moved | {100 * share:.2f} % within 0.02 s | largest {max(errors):.2f} s"
    )
    assert share >= MIN_SHARE[precision]
