"""Speech2Text checkpoints of transformers (`facebook/s2t-*`): Fairseq's `s2t_transformer`, converted.

The modules are Fairseq's under almost the same names, so the graphs are too.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

from fairseq_openvino.atomic import sha256
from fairseq_openvino.bundle import (
    Bundle,
    FeatureConfig,
    Generation,
    SpecialTokens,
    TextConfig,
)
from fairseq_openvino.checkpoint import load_object
from fairseq_openvino.compat.transformers import transformers
from fairseq_openvino.errors import ModelError, failure
from fairseq_openvino.export.fairseq.s2t_transformer import graphs
from fairseq_openvino.export.forced import Forced
from fairseq_openvino.export.options import ExportOptions
from fairseq_openvino.export.parity import Report, at_nodes
from fairseq_openvino.export.procedure import Original, export
from fairseq_openvino.export.sources import SPEECH2TEXT, SPEECH2TEXT_TYPE, joined, weight_files
from fairseq_openvino.s2t.options import S2TOptions
from fairseq_openvino.s2t.vocabulary import (
    BOS,
    EOS,
    LANGUAGE_TAG,
    PAD,
    SPECIAL_SYMBOLS,
    UNK,
    load_dictionary,
)

DICTIONARY, SENTENCEPIECE = "dict.txt", "spm.model"
TIED, COMPUTED = "lm_head.weight", "embed_positions.weights"
NEUTRAL = {
    "repetition_penalty": (None, 1.0), "no_repeat_ngram_size": (None, 0), "length_penalty": (None, 1.0),
    "suppress_tokens": (None, []), "begin_suppress_tokens": (None, []), "bad_words_ids": (None,),
    "forced_eos_token_id": (None,), "min_length": (None, 0), "do_sample": (None, False),
    "diversity_penalty": (None, 0.0), "num_beam_groups": (None, 1), "early_stopping": (None, False, True),
}  # fmt: skip
"""What a generation configuration may say: more is not part of the search."""

_fail = partial(
    failure, ModelError, "Loading a Speech2Text checkpoint",
    advice="Use the files of the checkpoint as it was published",
)  # fmt: skip


def export_speech2text(
    source: str | Path, output: Path, options: ExportOptions | None = None
) -> tuple[Bundle, Report]:
    """Export one checkpoint.

    Args:
        source: a directory with config, weights (safetensors, or pickles by safe loading),
            `vocab.json`, `sentencepiece.bpe.model` and the two preprocessor files.
        output: the bundle directory to create.
        options: what to write.

    Returns:
        The verified bundle, of the family "s2t", and the parity report.

    Raises:
        UnsafeCheckpointError: a pickle would run code.
        ModelError: a file is missing, damaged or does not fit the others.
        ParityError: a graph does not reproduce the model; nothing is published.
        StorageError: the bundle could not be written; nothing is left behind.
    """
    return export(_original(Path(source)), output, options)


def _original(path: Path) -> Original:
    model, weights = _load(path)
    config = model.config
    tokenizer = _part(path, "tokenizer", transformers.Speech2TextTokenizer)
    symbols, text = _text(path, tokenizer, config.vocab_size)
    described = {
        "family": "s2t",
        "tokens": SpecialTokens(BOS, PAD, EOS, UNK),
        "features": _features(path, config),
        "text": text,
        "generation": _generation(path),
        "source": {"directory": path.name, "weights": {p.name: sha256(p) for p in weights}},
    }

    def write_files(directory: Path) -> None:
        lines = (f"{symbol} 1\n" for symbol in symbols[len(SPECIAL_SYMBOLS) :])
        (directory / DICTIONARY).write_text("".join(lines), "utf-8")
        if load_dictionary(directory / DICTIONARY) != symbols:
            raise _fail(path / "vocab.json", "symbols without line breaks", "some with them")
        shutil.copyfile(tokenizer.spm_file, directory / SENTENCEPIECE)

    bins = config.input_feat_per_channel * config.input_channels
    wrapped = graphs(_as_fairseq(model), bins, config.max_source_positions)
    return Original(wrapped, Reference(model), described, write_files)


def _load(path: Path) -> tuple[Any, tuple[Path, ...]]:
    """The model in eval mode, float32, and the files of its weights."""
    files = weight_files(path, SPEECH2TEXT)
    if not files:
        found = ", ".join(sorted(each.name for each in path.glob("*"))) or "nothing"
        raise _fail(path, "model.safetensors or pytorch_model.bin", found)
    try:
        config = _config(path)
        weights = joined((file, _weights(file)) for file in files)
        model = transformers.Speech2TextForConditionalGeneration._from_config(
            config, attn_implementation="eager"
        )
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except ModelError:
        raise
    except Exception as error:  # transformers, safetensors and torch raise many kinds
        raise _fail(path, "a complete checkpoint", _reason(error)) from error
    lacking = sorted({*missing} - ({TIED} if config.tie_word_embeddings else set()))
    if lacking or unexpected:
        got = f"none for {lacking[:3]}, and others as {unexpected[:3]}"
        advice = "Copy or download it again"
        raise _fail(path, "the weights of the model in config.json", got, advice=advice)
    model.tie_weights()
    return model.float().eval(), files


def _config(path: Path) -> Any:
    stated, _ = transformers.Speech2TextConfig.get_config_dict(path)
    kind = stated.get("model_type")
    if kind != SPEECH2TEXT_TYPE:
        raise _fail(path / "config.json", f"model_type {SPEECH2TEXT_TYPE!r}", repr(kind))
    config = transformers.Speech2TextConfig.from_dict(stated)
    if (config.pad_token_id, config.eos_token_id) != (PAD, EOS):
        got = f"{config.pad_token_id} and {config.eos_token_id}"
        raise _fail(path / "config.json", f"pad_token_id {PAD} and eos_token_id {EOS}", got)
    return config


def _weights(file: Path) -> dict[str, torch.Tensor]:
    """By name, without the position tables that older versions stored."""
    found = load_file(file) if file.suffix == ".safetensors" else load_object(file)
    return {name: value for name, value in found.items() if not name.endswith(COMPUTED)}


def _reason(error: Exception) -> str:
    """The first line of what a library says."""
    return repr((str(error).strip().splitlines() or [type(error).__name__])[0])


def _part(path: Path, name: str, kind: Any) -> Any:
    """Tokenizer or feature extractor of a directory."""
    try:
        return kind.from_pretrained(path)
    except Exception as error:  # transformers raises many kinds
        raise _fail(path, f"the files of a {name}", _reason(error)) from error


def _features(path: Path, config: Any) -> FeatureConfig:
    """Kaldi filter banks, as both libraries make them."""
    front = _part(path, "feature extractor", transformers.Speech2TextFeatureExtractor)
    found = front.num_mel_bins, front.feature_size, config.input_channels
    if found != (config.input_feat_per_channel, config.input_feat_per_channel, 1) or front.dither:
        expected = f"{config.input_feat_per_channel} bins in one channel, without dither"
        got = f"num_mel_bins, feature_size, input_channels {found}, dither {front.dither}"
        raise _fail(path, expected, got)
    return FeatureConfig(
        bins=front.num_mel_bins,
        sample_rate_hz=front.sampling_rate,
        transforms=("two_pass_cmvn",) if front.do_ceptral_normalize else (),
        norm_means=bool(front.normalize_means),
        norm_vars=bool(front.normalize_vars),
    )


def _text(path: Path, tokenizer: Any, size: int) -> tuple[tuple[str, ...], TextConfig]:
    """Symbols in id order, and how they become text."""
    symbols = tuple(sorted(tokenizer.encoder, key=tokenizer.encoder.__getitem__))
    ids = sorted(tokenizer.encoder.values())
    if ids != list(range(size)) or symbols[: len(SPECIAL_SYMBOLS)] != SPECIAL_SYMBOLS:
        expected = f"{size} tokens that begin with {' '.join(SPECIAL_SYMBOLS)}"
        raise _fail(path / "vocab.json", expected, f"{len(ids)}: {' '.join(symbols[:4])} ...")
    others = {str(each) for each in tokenizer.all_special_tokens} - {*SPECIAL_SYMBOLS}
    unknown = sorted(each for each in others if not LANGUAGE_TAG.fullmatch(each))
    if unknown or tokenizer.clean_up_tokenization_spaces:
        got = ", ".join(unknown) or "clean_up_tokenization_spaces"
        raise _fail(path, "a tokenizer with no special tokens but languages, and no clean-up", got)
    return symbols, TextConfig(
        dictionary=DICTIONARY,
        bpe="sentencepiece",
        sentencepiece=SENTENCEPIECE,
        prepend_language_tag=bool(tokenizer.lang_code_to_id),
        skip_unknown=True,
        upper_case=bool(tokenizer.do_upper_case),
    )


def _generation(path: Path) -> Generation:
    """The search of a checkpoint; of older ones it stands in `config.json`."""
    file = path / "generation_config.json"
    file = file if file.is_file() else path / "config.json"
    try:
        stated = transformers.GenerationConfig.from_pretrained(path, file.name)
    except Exception as error:  # its checks raise many kinds
        raise _fail(file, "the options of a search", _reason(error)) from error
    odd = {name: getattr(stated, name, None) for name in NEUTRAL}
    odd = {name: value for name, value in odd.items() if value not in NEUTRAL[name]}
    start = getattr(stated, "decoder_start_token_id", None)
    if start not in (None, EOS):
        odd["decoder_start_token_id"] = start
    if odd:
        expected = f"a search without {', '.join(odd)}"
        raise _fail(file, expected, odd, advice="Take them out")
    first = getattr(stated, "forced_bos_token_id", None)
    length = getattr(stated, "max_length", None) or S2TOptions.max_len_b
    return Generation(length, bool(stated.early_stopping), first)


def _as_fairseq(model: Any) -> Any:
    """The modules under the names they have in Fairseq."""
    encoder, decoder, config = model.model.encoder, model.model.decoder, model.config
    for layer in (*encoder.layers, *decoder.layers):
        layer.normalize_before = True
    return SimpleNamespace(
        encoder=SimpleNamespace(
            subsample=encoder.conv,
            embed_scale=encoder.embed_scale,
            padding_idx=encoder.padding_idx,
            embed_positions=encoder.embed_positions,
            transformer_layers=encoder.layers,
            layer_norm=encoder.layer_norm,
        ),
        decoder=SimpleNamespace(
            embed_tokens=decoder.embed_tokens,
            embed_scale=decoder.embed_scale,
            embed_dim=config.d_model,
            padding_idx=decoder.padding_idx,
            embed_positions=decoder.embed_positions,
            project_in_dim=None,
            project_out_dim=None,
            layernorm_embedding=None,
            layers=decoder.layers,
            layer_norm=decoder.layer_norm,
            output_projection=model.lm_head,
            max_positions=lambda: config.max_target_positions,
        ),
    )


class Reference:
    """The transformers model itself; see `parity.Reference`."""

    name = "transformers"

    def __init__(self, model: Any) -> None:
        self.model = model

    def logits(self, batch: Forced) -> torch.Tensor:
        """See `parity.Reference`."""
        inner, paths = self.model.model, torch.from_numpy(batch.paths)
        features, lengths = torch.from_numpy(batch.features), torch.from_numpy(batch.lengths)
        mask = (torch.arange(features.shape[1]) < lengths[:, None]).long()  # (N, T)
        states = inner.encoder(features, attention_mask=mask).last_hidden_state
        heard = inner._get_feature_vector_attention_mask(states.shape[1], mask)  # (N, S)
        rows = torch.from_numpy(batch.utterances)
        hidden = inner.decoder(
            input_ids=paths, encoder_hidden_states=states[rows],
            encoder_attention_mask=heard[rows], use_cache=False,
        ).last_hidden_state  # (Q, steps, D)  # fmt: skip
        logits: torch.Tensor = self.model.lm_head(at_nodes(hidden, batch))
        return logits
