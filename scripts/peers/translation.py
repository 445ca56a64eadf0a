"""An engine for text in a process of its own, for `scripts/translation.py`; its last argument is a `Spec`.

The loop is that of `fairseq_openvino.measure.process`; time runs from symbols of the source to symbols
of the target, which are the same for all.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from fairseq_openvino import machine  # noqa: E402
from fairseq_openvino.measure.process import answer_requests  # noqa: E402

KINDS = {"f32": "float32", "bf16": "bfloat16", "int8": "int8"}
"""CTranslate2's names of precisions."""


@dataclass(frozen=True)
class Spec:
    """Which engine, and what it loads."""

    kind: str
    """fairseq, ctranslate2 or ours."""
    precision: str
    data: str
    """Directory with checkpoint.pt and the dictionaries."""
    work_dir: str
    """For what is made of them."""
    source: str
    target: str
    threads: int

    @property
    def made(self) -> Path:
        """The bundle, or CTranslate2's model; conversion and quantization are not timed."""
        name = f"ctranslate2-{self.precision}" if self.kind == "ctranslate2" else "bundle"
        return Path(self.work_dir) / name


class Fairseq:
    """Eager, with its own `SequenceGenerator`, on a batch as its dataset collates it."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def prepare(self) -> None:
        """Nothing."""

    def load(self) -> None:
        """The model as for fairseq-generate."""
        import torch
        from fairseq import checkpoint_utils

        from fairseq_openvino.compat.shims import apply_shims

        apply_shims()
        torch.set_num_threads(self.spec.threads)
        path = str(Path(self.spec.data) / "checkpoint.pt")
        overrides = {"data": self.spec.data}
        found = checkpoint_utils.load_model_ensemble_and_task([path], overrides)
        self.models, _, self.task = found
        for model in self.models:
            model.prepare_for_inference_(Namespace(generation=Namespace(print_alignment=None)))

    def translate(self, lines: list[str], beam: int, tokens: int | None) -> list[str]:
        """Best hypotheses, in symbols."""
        import torch
        from fairseq.data.language_pair_dataset import collate
        from fairseq.sequence_generator import SequenceGenerator

        source, target = self.task.source_dictionary, self.task.target_dictionary
        ids = [source.encode_line(line, add_if_not_exist=False).long() for line in lines]
        samples = [{"id": i, "source": each, "target": None} for i, each in enumerate(ids)]
        batch = collate(samples, source.pad(), source.eos(), input_feeding=False)
        limits = {} if tokens is None else {"min_len": tokens, "max_len_b": tokens}
        generator = SequenceGenerator(self.models, target, beam_size=beam, **limits)
        with torch.no_grad():
            found = generator.generate(self.models, batch)
        order = batch["id"].argsort().tolist()
        return [target.string(found[i][0]["tokens"]) for i in order]


class CTranslate2:
    """`FairseqConverter` and `Translator`, scores divided by the length as in Fairseq."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def prepare(self) -> None:
        """Convert, quantized if need be."""
        from ctranslate2.converters import FairseqConverter

        if self.spec.made.exists():
            return
        converter = FairseqConverter(
            str(Path(self.spec.data) / "checkpoint.pt"), self.spec.data,
            source_lang=self.spec.source, target_lang=self.spec.target,
            unsafe_deserialization=True,
        )  # fmt: skip
        kind = KINDS[self.spec.precision]
        converter.convert(str(self.spec.made), quantization=None if kind == "float32" else kind)

    def load(self) -> None:
        """The model."""
        import ctranslate2

        self.model = ctranslate2.Translator(
            str(self.spec.made), compute_type=KINDS[self.spec.precision], inter_threads=1,
            intra_threads=self.spec.threads,
        )  # fmt: skip

    def translate(self, lines: list[str], beam: int, tokens: int | None) -> list[str]:
        """Best hypotheses, in symbols."""
        longest = {"max_decoding_length": tokens or 200}
        if tokens is not None:
            longest["min_decoding_length"] = tokens
        found = self.model.translate_batch(
            [line.split() for line in lines], beam_size=beam, length_penalty=1.0, **longest
        )
        return [" ".join(each.hypotheses[0]) for each in found]


class Ours:
    """A bundle by `load_model`."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def prepare(self) -> None:
        """Export."""
        from fairseq_openvino.export.fairseq import export_checkpoint
        from fairseq_openvino.export.fairseq.text import TextDirectory

        if not self.spec.made.exists():
            data = TextDirectory(Path(self.spec.data), self.spec.source, self.spec.target)
            export_checkpoint(Path(self.spec.data) / "checkpoint.pt", data, self.spec.made)

    def load(self) -> None:
        """The model."""
        from dataclasses import replace

        from fairseq_openvino import load_model

        spec = self.spec
        self.model = load_model(spec.made, precision=spec.precision, threads=spec.threads)
        family = self.model.family
        family.sentences = replace(family.sentences, encode=lambda line: line)

    def translate(self, lines: list[str], beam: int, tokens: int | None) -> list[str]:
        """Best hypotheses, in symbols."""
        limits = {} if tokens is None else {"min_len": tokens, "max_len_b": tokens}
        found = self.model.translate(lines, len(lines), beam=beam, **limits)
        symbols = self.model.family.vocabulary.tokens
        return [" ".join(symbols(each.hypotheses[0][1].tokens)) for each in found]


ENGINES: dict[str, Any] = {"fairseq": Fairseq, "ctranslate2": CTranslate2, "ours": Ours}


class Child:
    """The requests."""

    def __init__(self, spec: Spec) -> None:
        self.engine = ENGINES[spec.kind](spec)

    def prepare(self) -> dict[str, Any]:
        """Make what it loads."""
        self.engine.prepare()
        return {}

    def load(self) -> dict[str, Any]:
        """Load it."""
        self.engine.load()
        return {}

    def translate(self, lines: list[str], beam: int, tokens: int | None) -> dict[str, Any]:
        """Decode lines together."""
        started = time.perf_counter()
        found = self.engine.translate(lines, beam, tokens)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "lines": found, "peak_mb": machine.peak_megabytes()}


if __name__ == "__main__":
    answer_requests(Child(Spec(**json.loads(sys.argv[-1]))))
