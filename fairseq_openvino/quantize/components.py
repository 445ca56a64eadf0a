"""Encoder and decoder in every form that was asked for, each made once."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import openvino as ov

from fairseq_openvino.bundle import DECODER_IR, ENCODER_IR, Bundle, write_manifest
from fairseq_openvino.quantize import compress
from fairseq_openvino.quantize.divergence import divergence
from fairseq_openvino.quantize.options import INT4_WEIGHTS, INT8, INT8_WEIGHTS, MIXED, Options
from fairseq_openvino.quantize.progress import Progress
from fairseq_openvino.quantize.samples import DecoderSamples, EncoderSamples, Samples
from fairseq_openvino.runtime.graphs import read_graph, read_verified, save_graph
from fairseq_openvino.runtime.model import CompiledModel
from fairseq_openvino.runtime.options import EngineOptions
from fairseq_openvino.tensors import is_recurrent

ENCODER, DECODER = "encoder", "decoder"
IR = {ENCODER: ENCODER_IR, DECODER: DECODER_IR}
BITS = {INT8_WEIGHTS: 8, INT4_WEIGHTS: 4}
INT8_SHARE = 0.9
"""Of an encoder's products, at least: otherwise it is not called int8."""
RANKING_UTTERANCES = 4
"""Held-out utterances on which every quantizer is judged."""


@dataclass(frozen=True)
class Form:
    """What becomes of one graph."""

    kind: str
    """int8, int8-weights or int4-weights."""
    excluded_share: float = 0.0
    """Share of the quantizers of activations, worst first, whose layers stay in f32."""


@dataclass(frozen=True)
class Component:
    """A graph in one form."""

    name: str
    """encoder or decoder."""
    form: Form
    directory: Path
    """Holds its two files."""
    alpha: float | None = None
    """SmoothQuant's, chosen by divergence."""
    curve: dict[float, float] = field(default_factory=dict)
    """Divergence on the held-out utterances, in nats a token, of each alpha."""
    excluded: tuple[str, ...] = ()
    """Layers that stay in f32."""
    products: tuple[int, int] = (0, 0)
    """Matrix products and convolutions: those of 8-bit activations, and all."""

    @property
    def kind(self) -> str:
        """The form's, but `mixed` for an int8 encoder of which too little is in 8 bits."""
        eight, every = self.products
        mixed = self.name == ENCODER and self.form.kind == INT8 and eight < INT8_SHARE * every
        return MIXED if mixed else self.form.kind

    def to_json(self) -> dict[str, Any]:
        """For the manifest; a divergence that is not a number becomes null."""
        if self.form.kind != INT8:
            return {"kind": self.kind}
        curve = {f"{a:g}": kl if math.isfinite(kl) else None for a, kl in self.curve.items()}
        return {
            "kind": self.kind,
            "products_in_8_bits": list(self.products),
            "smooth_quant_alpha": self.alpha,
            "divergence_by_alpha": curve,
            "layers_in_f32": list(self.excluded),
        }


class Components:
    """Makes forms of the graphs of one bundle.

    Args:
        bundle: the original.
        calibration: recordings for the ranges.
        held_out: recordings for alpha and for the ranking of layers.
        options: of the quantization.
        scratch: directory for graphs.
        announce: receives a line about each decision.
        progress: of the whole quantization.
    """

    def __init__(
        self,
        bundle: Bundle,
        calibration: Sequence[Path],
        held_out: Sequence[Path],
        options: Options,
        scratch: Path,
        announce: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._bundle, self._options, self._announce = bundle, options, announce
        self._progress = progress
        self._calibration, self._held_out, self._scratch = calibration, held_out, scratch
        self._reference = CompiledModel(bundle, EngineOptions(threads=options.threads))
        self._made: dict[tuple[str, Form], Component] = {}
        self._ranking: list[tuple[float, tuple[str, ...]]] | None = None

    def make(self, name: str, form: Form) -> Component:
        """A graph in a form; in place of int8 a recurrent decoder has 8-bit weights.

        A calibration gives it one token a call and knows none of the states behind the first.
        """
        if name == DECODER and form.kind == INT8 and is_recurrent(self._bundle.manifest.state):
            form = Form(INT8_WEIGHTS)
        key = (name, form)
        if key not in self._made:
            if form.kind in BITS:
                found = self._save(
                    compress.compress(self._graph(name), BITS[form.kind]), name, form
                )
            elif form.excluded_share:
                found = self._with_exclusions(name, form)
            else:
                found = self._with_best_alpha(name, form)
            self._made[key] = found
        return self._made[key]

    def bundle_with(self, *components: Component) -> Bundle:
        """The original with these graphs in place of its own, as a directory in scratch."""
        directory = self._scratch / "candidate"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        replaced = {component.name: component.directory for component in components}
        for name in self._bundle.manifest.files:
            if ".onnx" not in name:  # those are the graphs before quantization
                source = replaced.get(Path(name).stem, self._bundle.directory) / name
                _link(source, directory / name)
        write_manifest(directory, self._bundle.manifest)
        return Bundle(directory, self._bundle.manifest)

    def _with_best_alpha(self, name: str, form: Form) -> Component:
        samples = self._samples(name)
        curve: dict[float, float] = {}
        best: Component | None = None
        for alpha in self._options.alphas:
            with self._progress.stage(f"{name}: {_smoothing(alpha)}") as step:
                graph = compress.quantize(self._graph(name), samples, alpha, (), step)
                found = replace(self._save(graph, name, form, f"{alpha:g}"), alpha=alpha)
                curve[alpha] = divergence(self._reference, self._model(found), self._held_out, step)
            self._announce(f"{name}: {_smoothing(alpha)}: {curve[alpha]:.3g} nats a token")
            is_best = min(curve, key=lambda tried: curve[tried]) == alpha
            worse, best = (best, found) if is_best else (found, best)
            if worse is not None:
                shutil.rmtree(worse.directory)
        assert best is not None  # Options has at least one alpha
        return replace(best, curve=curve)

    def _with_exclusions(self, name: str, form: Form) -> Component:
        full = self.make(name, Form(INT8))
        if self._ranking is None:
            self._ranking = self._rank(full)
        count = max(1, round(len(self._ranking) * form.excluded_share))
        excluded = tuple(sorted({layer for _, fed in self._ranking[:count] for layer in fed}))
        self._announce(f"{name}: {len(excluded)} layers stay in f32: {', '.join(excluded)}")
        samples = self._samples(name)
        alpha = compress.NO_SMOOTHING if full.alpha is None else full.alpha
        with self._progress.stage(f"{name} without them") as step:
            graph = compress.quantize(self._graph(name), samples, alpha, excluded, step)
        found = self._save(graph, name, form, f"{form.excluded_share:g}")
        return replace(found, alpha=alpha, curve=full.curve, excluded=excluded)

    def _rank(self, full: Component) -> list[tuple[float, tuple[str, ...]]]:
        """Layers by the divergence that is left without their quantizer, worst layers first."""
        path = full.directory / IR[full.name]
        quantizers = compress.layers(read_graph(path))
        ranking = []
        ranked = self._held_out[:RANKING_UTTERANCES]
        with self._progress.stage(f"{full.name}: ranking layers") as step:
            for quantizer, fed in quantizers.items():
                graph = read_graph(path)
                compress.bypass(graph, quantizer)
                found = self._save(graph, full.name, full.form, "ranking")
                ranking.append((divergence(self._reference, self._model(found), ranked, step), fed))
        return sorted(ranking, key=lambda entry: entry[0])

    def _model(self, component: Component) -> CompiledModel:
        """The original with one graph in another form."""
        options = EngineOptions(
            precision=self._options.original_precision, threads=self._options.threads
        )
        return CompiledModel(self.bundle_with(component), options)

    def _samples(self, name: str) -> Samples:
        if name == ENCODER:
            return EncoderSamples(self._calibration)
        return DecoderSamples(self._calibration, self._reference)

    def _graph(self, name: str) -> ov.Model:
        return read_verified(self._bundle, IR[name])

    def _save(self, graph: ov.Model, name: str, form: Form, label: str = "") -> Component:
        directory = self._scratch / f"{name}-{form.kind}-{form.excluded_share:g}-{label}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        save_graph(graph, directory / IR[name])
        return Component(name, form, directory, products=compress.products_in_8_bits(graph))


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _smoothing(alpha: float) -> str:
    return "no smoothing" if alpha < 0 else f"alpha {alpha:g}"
