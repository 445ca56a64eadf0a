"""Every architecture: random checkpoints of it, and what the engine and eager Fairseq make of them.

`ROWS` is the table. A hypothesis of the engine that is not eager Fairseq's is a near-tie if the model in
float64 scores the two, in their batch, within MARGIN; anything else is a difference.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fairseq_openvino.export.float64 import Float64
from fairseq_openvino.measure.material.corpora import (
    LABELS,
    SOURCE_LANGUAGE,
    TARGET_LANGUAGE,
    write_data,
)
from fairseq_openvino.measure.material.s2t import SAMPLES, TASKS, write_checkpoint

PACKAGE = Path(__file__).parent.parent / "fairseq_openvino"
MARGIN = 1e-5
"""Of two length-normalised log-probabilities, base e, in float64."""
UTTERANCES = {1: 4, 3: 6, 8: 16, 32: 32}
"""How many are decoded, by the size of the batch."""
BEAMS = {1: 1, 5: 5}
"""n-best by beam."""
FRAMES, SMALL_FRAMES = (100, 400), (30, 260)
VOCABULARY, SMALL_VOCABULARY = 1000, 60
LONGEST = 20
"""Tokens of a hypothesis."""
CHECKPOINT = "checkpoint.pt"

TRANSFORMER = {
    "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_layers": 2, "decoder_attention_heads": 2,
}  # fmt: skip
CONFORMER = TRANSFORMER | {"conv_channels": 32, "depthwise_conv_kernel_size": 7}
WAV2VEC = {
    "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_layers": 2,
    "encoder_attention_heads": 2, "conv_pos": 16, "conv_pos_groups": 4,
    "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
}  # fmt: skip
DECODER = {
    "decoder_embed_dim": 32, "decoder_ffn_embed_dim": 64, "decoder_layers": 2,
    "decoder_attention_heads": 2,
}  # fmt: skip
SEQ2SEQ = {"decoder_embed_dim": 512}
"""Fairseq's decoder layers of `wav2vec_seq2seq` attend to 512 values, whatever the arguments say."""
BERARD = {
    "input_layers": "[32, 16]", "conv_layers": "[(4, 3, 2), (4, 3, 2)]", "num_blstm_layers": 2,
    "lstm_size": 16, "decoder_embed_dim": 16, "decoder_num_layers": 2, "decoder_hidden_dim": 32,
    "attention_dim": 24, "output_layer_dim": 20,
}  # fmt: skip
MBART = {
    "share_decoder_input_output_embed": True, "layernorm_embedding": True,
    "decoder_learned_pos": True, "no_scale_embedding": True, "decoder_normalize_before": True,
}  # fmt: skip
LARGE = {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True}
"""What differs in the large wav2vec 2.0."""
WIDTHS = {"decoder_embed_dim": 48, "decoder_attention_heads": 3}
POST_NORM = {"encoder_normalize_before": False, "decoder_normalize_before": False}
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
CONV2D = {"conv_version": "convtransformer", "conv_out_channels": 16}


@dataclass(frozen=True)
class Row:
    """An architecture."""

    name: str
    archs: tuple[str, ...]
    """Of true size, in Fairseq's registry; all sizes of the row are made from the first."""
    tiny: dict[str, Any]
    """Arguments that make it small."""
    odd: tuple[dict[str, Any], ...] = ()
    """Options that few checkpoints have, on top of `tiny`."""
    true: dict[str, Any] = field(default_factory=dict)
    """Arguments of true size that are not the architecture's defaults."""

    @property
    def sizes(self) -> tuple[str, ...]:
        """All that `checkpoint` makes."""
        return ("tiny", *(f"odd-{i}" for i in range(len(self.odd))), "true", *self.archs[1:])

    @property
    def model(self) -> str:
        """Fairseq's name, as in `export.fairseq.ARCHITECTURES`."""
        from fairseq.models import ARCH_MODEL_NAME_REGISTRY

        return ARCH_MODEL_NAME_REGISTRY[self.archs[0]]

    @property
    def task(self) -> str:
        """Fairseq's."""
        return TASKS.get(self.model, "speech_to_text")

    @property
    def generates(self) -> bool:
        """Whether `fairseq-generate --ov-engine` runs its task."""
        return self.task != "audio_finetuning"

    @property
    def flags(self) -> list[str]:
        """Of `fairseq-generate`, for its task."""
        languages = ["--source-lang", SOURCE_LANGUAGE, "--target-lang", TARGET_LANGUAGE]
        own = {
            "speech_to_text": ["--config-yaml", "config.yaml"],
            "translation": languages,
            "audio_finetuning": ["--labels", LABELS, "--normalize", "--autoregressive"],
        }
        longest = ["--max-source-positions", str(SAMPLES)] if "w2v" in self.tiny else []
        return ["--task", self.task, *own[self.task], *longest * (self.task == "speech_to_text")]

    def checkpoint(
        self, directory: Path, size: str = "tiny", batches: Sequence[int] = tuple(UTTERANCES)
    ) -> Path:
        """Random weights, and a subset `testN` for batches of N; returns the checkpoint."""
        small = size == "tiny" or size.startswith("odd-")
        arch = self.archs[0] if small or size == "true" else size
        options = self.tiny if small else self.true
        if size.startswith("odd-"):
            options = merged(self.tiny, self.odd[int(size.removeprefix("odd-"))])
        vocabulary = SMALL_VOCABULARY if small else VOCABULARY
        path = write_checkpoint(directory, arch, CHECKPOINT, vocabulary=vocabulary, **options)
        for batch in batches:
            write_data(
                directory, UTTERANCES[batch], SMALL_FRAMES if small else FRAMES, f"test{batch}"
            )
        return path


def merged(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`base | other`, dictionaries within merged too."""
    return base | {
        key: base.get(key, {}) | value if isinstance(value, dict) else value
        for key, value in other.items()
    }


ROWS = (
    Row(
        "s2t_transformer",
        ("s2t_transformer_s", *(f"s2t_transformer_{size}" for size in ("xs", "sp", "m", "mp", "l", "lp"))),
        TRANSFORMER | {"conv_channels": 32},
        (
            CONV2D | POST_NORM,
            {"activation_fn": "gelu", "layernorm_embedding": True, "no_scale_embedding": True},
            {"share_decoder_input_output_embed": True, "decoder_learned_pos": True},
            {"no_token_positional_embeddings": True, "conv_kernel_sizes": "3,7"},
            WIDTHS,
        ),
    ),
    *(
        Row(
            f"s2t_conformer, {position}{', espnet' if attention else ''}",
            ("s2t_conformer",),
            CONFORMER | {"attn_type": attention, "pos_enc_type": position},
            (
                CONV2D | {"depthwise_conv_kernel_size": 15},
                {"conv_kernel_sizes": "3,7", "share_decoder_input_output_embed": True},
                POST_NORM | WIDTHS | {"depthwise_conv_kernel_size": 3},
            ),
            {"attn_type": attention, "pos_enc_type": position},
        )
        for attention, position in (
            (None, "abs"), ("espnet", "abs"), ("espnet", "rope"), ("espnet", "rel_pos"),
        )
    ),
    Row(
        "convtransformer",
        ("convtransformer", "convtransformer_espnet"),
        TRANSFORMER,
        (
            PRE_NORM | {"conv_out_channels": 24},
            {"share_decoder_input_output_embed": True, "decoder_learned_pos": True},
            WIDTHS | {"no_scale_embedding": True, "activation_fn": "gelu"},
            {"no_token_positional_embeddings": True},
        ),
    ),
    Row(
        "s2t_berard",
        ("s2t_berard", "s2t_berard_256_3_3", "s2t_berard_512_3_2", "s2t_berard_512_5_3"),
        BERARD,
        (
            {"decoder_num_layers": 3, "num_blstm_layers": 1, "conv_layers": "[(4, 5, 2), (6, 3, 1)]"},
            {"decoder_num_layers": 1, "input_layers": "[24]", "dropout": 0.0},
        ),
    ),
    Row(
        "xm_transformer",
        ("xm_transformer",),
        DECODER | {"w2v": WAV2VEC},
        (
            MBART | {"w2v": LARGE},
            {"adaptor_proj": True, "adaptor_layernorm": True, "w2v": {"required_seq_len_multiple": 1}},
            {"encoder_proj": True, "adaptor_n_layers": 1, "adaptor_kernel_size": 5},
            {"adaptor_n_layers": 0, "w2v": {"pos_conv_depth": 2, "conv_pos": 15}},
        ),
        {"decoder_layers": 6, "share_decoder_input_output_embed": True},
    ),
    Row(
        "wav2vec_seq2seq",
        ("wav2vec_seq2seq",),
        DECODER | SEQ2SEQ | {"w2v": WAV2VEC},
        (
            {"share_decoder_input_output_embed": True, "decoder_learned_pos": True, "w2v": LARGE},
            {"decoder_normalize_before": True, "no_token_positional_embeddings": True},
        ),
        SEQ2SEQ,
    ),
    Row(
        "transformer",
        ("transformer_iwslt_de_en", "transformer_wmt_en_de", "transformer_wmt_en_de_big"),
        TRANSFORMER,
        (
            PRE_NORM | {"share_all_embeddings": True},
            {"encoder_learned_pos": True, "decoder_learned_pos": True, "layernorm_embedding": True},
            WIDTHS | {"no_scale_embedding": True, "activation_fn": "gelu"},
            {"share_decoder_input_output_embed": True, "no_token_positional_embeddings": True},
        ),
    ),
)  # fmt: skip


@dataclass
class Counts:
    """Of n-best lists."""

    identical: int = 0
    near_ties: int = 0
    """Lists with hypotheses that are near-ties, and otherwise identical."""
    differences: list[str] = field(default_factory=list)
    """A line for each of the others."""

    @property
    def total(self) -> int:
        """All."""
        return self.identical + self.near_ties + len(self.differences)

    def add(self, other: Counts) -> None:
        """Count on."""
        self.identical += other.identical
        self.near_ties += other.near_ties
        self.differences += other.differences

    def __str__(self) -> str:
        return f"{self.identical} identical, {self.near_ties} near-ties of {self.total}"


class Generation:
    """`fairseq-generate` in this process, as `fairseq_cli.generate` does it, up to the text."""

    def __init__(self, row: Row, data: Path, *flags: str) -> None:
        self.data, self.row = data, row
        self.words = [
            str(data), *row.flags, "--path", str(data / CHECKPOINT), "--user-dir", str(PACKAGE),
            "--num-workers", "0", "--required-batch-size-multiple", "1", "--max-len-b", str(LONGEST),
            *flags,
        ]  # fmt: skip

    @cached_property
    def loaded(self) -> tuple[Any, Any, list[Any], Any]:
        """Configuration, task, models, and the configuration they were trained with."""
        from fairseq import checkpoint_utils, options, tasks
        from fairseq.dataclass.utils import convert_namespace_to_omegaconf

        import fairseq_openvino.plugin.task  # noqa: F401  --user-dir does this

        before, sys.argv = sys.argv, ["fairseq-generate", *self.words]  # Fairseq looks there
        try:
            parser = options.get_generation_parser()
            parser.add_argument("--arch", default="wav2vec2")
            arguments = options.parse_args_and_arch(parser, input_args=self.words)
        finally:
            sys.argv = before
        config = convert_namespace_to_omegaconf(arguments)
        task = tasks.setup_task(config.task)
        models, saved = checkpoint_utils.load_model_ensemble([config.common_eval.path], task=task)
        for model in models:
            model.prepare_for_inference_(config)
        return config, task, models, saved

    def decode(self, batch: int, beam: int) -> Iterator[tuple[Any, list[list[dict[str, Any]]]]]:
        """Batches of `testN` and their n-best lists."""
        from fairseq import utils

        config, task, models, saved = self.loaded
        config.generation.beam, config.generation.nbest = beam, BEAMS[beam]
        subset = f"test{batch}"
        task.load_dataset(subset, task_cfg=saved.task)
        batches = task.get_batch_iterator(
            dataset=task.dataset(subset), max_sentences=batch, required_batch_size_multiple=1,
            max_positions=utils.resolve_max_positions(
                task.max_positions(), *[model.max_positions() for model in models]
            ),
        )  # fmt: skip
        generator = task.build_generator(models, copy.deepcopy(config.generation))
        for sample in batches.next_epoch_itr(shuffle=False):
            with torch.no_grad():
                found = task.inference_step(generator, models, sample)
            yield sample, [hypotheses[: BEAMS[beam]] for hypotheses in found]

    def score(self, sample: Any, position: int, tokens: torch.Tensor) -> float:
        """Length-normalised log-probability of a hypothesis of an utterance in its batch, in float64."""
        _, task, (model,), _ = self.loaded
        inputs = {k: v for k, v in sample["net_input"].items() if k != "prev_output_tokens"}
        previous = torch.cat([tokens.new_tensor([task.target_dictionary.eos()]), tokens[:-1]])
        with Float64(), torch.no_grad():
            encoded = model.encoder(**inputs)
            encoded = model.encoder.reorder_encoder_out(encoded, torch.tensor([position]))
            logits = model.decoder(previous.unsqueeze(0), encoder_out=encoded)[0]
            found = torch.log_softmax(logits[0].double(), -1).gather(1, tokens.unsqueeze(1))
        return float(found.mean())


def compare(
    eager: Generation,
    engine: Generation,
    batches: Sequence[int] = tuple(UTTERANCES),
    beams: Sequence[int] = tuple(BEAMS),
) -> Counts:
    """Hypotheses of the same subsets, in the same batches."""
    counts = Counts()
    for batch in batches:
        for beam in beams:
            for one, other in zip(
                eager.decode(batch, beam), engine.decode(batch, beam), strict=True
            ):
                counts.add(_compared(eager, *one, other[1]))
    return counts


def _compared(
    eager: Generation, sample: Any, expected: list[list[Any]], found: list[list[Any]]
) -> Counts:
    """The n-best lists of one batch."""
    counts = Counts()
    for position, lists in enumerate(zip(expected, found, strict=True)):
        tokens = [[each["tokens"].long() for each in hypotheses] for hypotheses in lists]
        pairs = [(a, b) for a, b in zip(*tokens, strict=True) if not torch.equal(a, b)]
        margins = [
            abs(eager.score(sample, position, a) - eager.score(sample, position, b))
            for a, b in pairs
        ]
        if not pairs:
            counts.identical += 1
        elif max(margins) <= MARGIN:
            counts.near_ties += 1
        else:
            number = int(sample["id"][position])
            counts.differences.append(
                f"batch of {len(expected)}, utterance {number}: margins "
                + ", ".join(f"{margin:.1e}" for margin in margins)
            )
    return counts
