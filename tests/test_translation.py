"""Text translation: Fairseq's `transformer` from the checkpoint to the commands."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from conftest import PACKAGE, Shared, _converted, assert_identical
from openvino import opset13 as ops

from fairseq_openvino import cli, load_model
from fairseq_openvino.errors import BatchError, ModelError, OptionError, UtteranceTooLongError
from fairseq_openvino.export.fairseq import cached_bundle, export_checkpoint
from fairseq_openvino.export.fairseq.data import DataDirectory
from fairseq_openvino.export.fairseq.text import TextDirectory
from fairseq_openvino.measure.material.corpora import binarize, random_sentences
from fairseq_openvino.measure.material.s2t import write_checkpoint
from fairseq_openvino.recognizer import Recognizer
from fairseq_openvino.runtime.bfloat import widened
from fairseq_openvino.runtime.rewrite import _best

SENTENCES = 21
TINY = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
}
ODD: tuple[dict[str, Any], ...] = (
    {"encoder_normalize_before": True, "decoder_normalize_before": True, "activation_fn": "gelu"},
    {"encoder_learned_pos": True, "decoder_learned_pos": True, "layernorm_embedding": True},
    {"share_all_embeddings": True, "no_scale_embedding": True},
    {"share_decoder_input_output_embed": True, "no_token_positional_embeddings": True},
    {"decoder_embed_dim": 48, "decoder_attention_heads": 3, "decoder_ffn_embed_dim": 40},
    {"decoder_input_dim": 24, "decoder_output_dim": 40, "max_source_positions": 140},
    {"encoder_layerdrop": 0.3, "decoder_layerdrop": 0.3, "encoder_ffn_embed_dim": 40},
)


def checkpoint(directory: Path, source: int = 50, **options: Any) -> Path:
    """A random model with binarized data of `SENTENCES` random sentences; its path."""
    size = 60 if options.get("share_all_embeddings") else source
    arch = options.pop("arch", "transformer")
    path = write_checkpoint(directory, arch, source_vocabulary=size, **options)
    random = np.random.default_rng(0)
    lines = random_sentences(random, random.integers(1, 31, 2 * SENTENCES).tolist(), directory)
    binarize(directory, lines[:SENTENCES], lines[SENTENCES:])
    return path


@pytest.fixture(scope="session")
def tiny_text(shared: Shared) -> Path:
    """Data directory with a tiny random checkpoint."""
    return shared("tiny-text", lambda directory: checkpoint(directory, **TINY))


@pytest.fixture(scope="session")
def text_bundle(tiny_text: Path, cache_dir: Path) -> Path:
    """Its bundle, exported as --ov-engine does on first use."""
    data = TextDirectory(tiny_text, "en", "de")
    return cached_bundle(tiny_text / "checkpoint.pt", data, {}, cache_dir).directory


@pytest.fixture
def translator(text_bundle: Path) -> Recognizer:
    return load_model(text_bundle)


@pytest.mark.soak
@pytest.mark.parametrize(
    "arch",
    ["transformer_iwslt_de_en", "transformer_wmt_en_de", "transformer_vaswani_wmt_en_de_big"],
)
def test_true_size_members_reproduce_fairseq(arch: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, arch=arch)
    assert export_checkpoint(path, TextDirectory(tmp_path), tmp_path / "bundle")[1].passed


@pytest.mark.soak
@pytest.mark.parametrize("options", ODD, ids=",".join)
def test_options_reproduce_fairseq(options: dict[str, Any], tmp_path: Path) -> None:
    path = checkpoint(tmp_path, **(TINY | options))
    bundle, report = export_checkpoint(path, TextDirectory(tmp_path), tmp_path / "bundle")
    assert report.passed
    assert bundle.manifest.source["languages"] == ["en", "de"]


def run(data: Path, *flags: str, typed: str | None = None) -> Any:
    """`fairseq-generate`, or `fairseq-interactive` of what is typed, in this process: a `verify.Run`."""
    import fairseq_cli.generate
    import fairseq_cli.interactive
    from fairseq import checkpoint_utils, options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    import fairseq_openvino.tasks.speech_to_text_openvino  # noqa: F401  --user-dir does this
    from fairseq_openvino.commands.verify import parse_generate

    words = [
        str(data), "--task", "translation", "--path", str(data / "checkpoint.pt"),
        "--user-dir", str(PACKAGE), "--num-workers", "0", "--no-progress-bar",
        "--max-len-b", "20", *flags,
    ]  # fmt: skip
    output, interactive = io.StringIO(), typed is not None
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.setattr(sys, "argv", ["fairseq-generate", *words])
        patch.setattr(sys, "stdin", io.StringIO(typed))
        if interactive:
            parser = options.get_interactive_generation_parser()
        else:
            parser = options.get_generation_parser()
            words += ["--scoring", "sacrebleu", "--required-batch-size-multiple", "1"]
        parser.add_argument("--arch", default="wav2vec2")
        arguments = options.parse_args_and_arch(parser, input_args=words)
        configuration = convert_namespace_to_omegaconf(arguments)
        patch.setattr(checkpoint_utils, "convert_namespace_to_omegaconf", _converted)
        if interactive:
            fairseq_cli.interactive.main(configuration)
        else:
            fairseq_cli.generate._main(configuration, output)
    return parse_generate(output.getvalue())


@pytest.mark.parametrize(
    "flags",
    [
        ("--beam", "5", "--nbest", "5", "--batch-size", "8"),
        *(
            pytest.param(("--beam", beam, "--batch-size", size), marks=pytest.mark.soak)
            for beam in ("1", "5")
            for size in ("1", "3", "8", "32")
        ),
        pytest.param(
            ("--prefix-size", "2", "--max-len-a", "1.5", "--max-len-b", "3"), marks=pytest.mark.soak
        ),
        pytest.param(("--temperature", "1.3", "--remove-bpe"), marks=pytest.mark.soak),
        pytest.param(("--sampling", "--sampling-topk", "1", "--beam", "1"), marks=pytest.mark.soak),
        pytest.param(("--score-reference",), marks=pytest.mark.soak),
    ],
    ids=" ".join,
)
def test_generate_is_identical(
    tiny_text: Path,
    cache_dir: Path,
    flags: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    eager = run(tiny_text, *flags)
    with caplog.at_level("INFO", "fairseq_openvino"):
        engine = run(tiny_text, *flags, "--ov-engine", "--ov-cache-dir", str(cache_dir))
    assert "OpenVINO engine: transformer" in caplog.text
    assert_identical(eager, engine)


@pytest.mark.soak
def test_alignment_is_refused(tiny_text: Path, cache_dir: Path) -> None:
    flags = "--ov-engine", "--ov-cache-dir", str(cache_dir), "--print-alignment", "hard"
    with pytest.raises(OptionError, match="print-alignment"):
        run(tiny_text, *flags)


@pytest.mark.soak
def test_interactive_is_identical(tiny_text: Path, cache_dir: Path) -> None:
    typed = "t1 t2 t3\nt4 <pad> unknown t5\n\nt6\n"
    flags = "--beam", "3", "--buffer-size", "4", "--batch-size", "4"
    engine = run(tiny_text, *flags, "--ov-engine", "--ov-cache-dir", str(cache_dir), typed=typed)
    assert_identical(run(tiny_text, *flags, typed=typed), engine)


def test_sentences_do_not_depend_on_their_batch(translator: Recognizer) -> None:
    texts = ["t1 t2 t3", "", "t4 t5 t6 t7 t8 t9 t10", "  ", "t11"]
    together = translator.translate(texts, beam=3, nbest=2, max_len_b=12)
    alone = [translator.translate([text], beam=3, nbest=2, max_len_b=12)[0] for text in texts]
    assert [each.text for each in together] == [each.text for each in alone]
    assert [len(each.hypotheses) for each in together] == [2, 0, 2, 0, 2]
    assert together[1].text == "" and together[0].path == texts[0]


def test_a_sentence_that_is_too_long_does_not_stop_the_others(translator: Recognizer) -> None:
    with pytest.raises(BatchError, match="1 of 2 sentences") as caught:
        translator.translate(["t1 " * 1024, "t2"], max_len_b=5)
    long, short = caught.value.results
    assert isinstance(long, UtteranceTooLongError)
    assert short.text == translator.translate(["t2"], max_len_b=5)[0].text


def test_audio_and_text_are_not_mixed_up(translator: Recognizer, tiny_bundle: Path) -> None:
    with pytest.raises(ModelError, match="Give it text"):
        translator.transcribe("a.wav")
    with pytest.raises(ModelError, match="Give it audio"):
        load_model(tiny_bundle).translate(["t1"])


def translated(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, text: str, *flags: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    capsys.readouterr()
    code = cli.main(["translate", *flags])
    return code, *capsys.readouterr()


def test_command_keeps_names_and_lines(
    text_bundle: Path,
    translator: Recognizer,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "t1 t2\n\na.mp3\t0.00\t1.00\tt3\n" + "t4 " * 1024 + "\nt5\n"
    flags = "--model", str(text_bundle), "--max-len-b", "6", "--batch-size", "3"
    code, out, err = translated(capsys, monkeypatch, text, *flags)
    one, two, three = (
        each.text for each in translator.translate(["t1 t2", "t3", "t5"], max_len_b=6)
    )
    assert out.split("\n") == [one, "", f"a.mp3\t0.00\t1.00\t{two}", "", three, ""]
    assert code == 1 and "line 4" in err and "1 of 5 lines failed" in err
    _, out, _ = translated(capsys, monkeypatch, text, *flags, "--format", "jsonl")
    found = [json.loads(line) for line in out.splitlines()]
    assert [each.get("text") for each in found] == [one, "", two, None, three]
    assert found[2]["name"] == "a.mp3\t0.00\t1.00" and "at most 1023 tokens" in found[3]["error"]


@pytest.mark.soak
def test_cascade_equals_both_models_by_hand(
    tiny: Path,
    tiny_bundle: Path,
    text_bundle: Path,
    translator: Recognizer,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [str(tiny / "features" / f"test-{i}.npy") for i in range(3)]
    cli.main(["transcribe", *files, "--model", str(tiny_bundle), "--max-len-b", "15"])
    heard = capsys.readouterr().out
    flags = "--model", str(text_bundle), "--max-len-b", "9"
    code, out, _ = translated(capsys, monkeypatch, heard, *flags)
    speech = load_model(tiny_bundle)
    texts = [each.text for each in speech.transcribe_batch(files, max_len_b=15)]
    expected = [each.text for each in translator.translate(texts, max_len_b=9)]
    assert code == 0
    assert out == "".join(f"{path}\t{text}\n" for path, text in zip(files, expected, strict=True))


def test_what_does_not_fit_is_named(tiny: Path, tiny_text: Path, tmp_path: Path) -> None:
    for data, message in (
        (TextDirectory(tiny_text, "de", "en"), "--source-lang en as in training"),
        (TextDirectory(tiny_text, bpe="sentencepiece"), "one SentencePiece model"),
        (DataDirectory(tiny), "as of translation"),
    ):
        with pytest.raises(ModelError, match=message):
            export_checkpoint(tiny_text / "checkpoint.pt", data, tmp_path / "bundle")


@pytest.mark.parametrize("vocabulary", [4096, 4100, 4099], ids=["64", "41", "prime"])
def test_best_of_a_large_vocabulary_are_those_of_topk(vocabulary: int) -> None:
    """Values with many ties, and forbidden ones."""
    scores = ops.parameter([-1, vocabulary], np.float32)
    model = ov.Model([*map(ops.result, _best(scores, 10, vocabulary))], [scores])
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    random = np.random.default_rng(0)
    given = random.integers(0, 60, (50, vocabulary)).astype(np.float32)
    given[random.random(given.shape) < 0.4] = -np.inf
    given[:25] += random.random((25, vocabulary), np.float32)
    values, tokens = (found(given)[i] for i in range(2))
    expected = -np.sort(-given, axis=1)[:, :10]
    assert np.array_equal(values, expected)
    assert np.array_equal(np.take_along_axis(given, tokens, 1), expected)
    assert all(len(set(row)) == 10 for row in tokens.tolist())


@pytest.mark.soak
def test_no_precision_rounds_tokens(tmp_path: Path) -> None:
    """bf16 has no odd number above 256."""
    path = checkpoint(tmp_path, source=5000, **TINY)
    bundle, _ = export_checkpoint(path, TextDirectory(tmp_path), tmp_path / "bundle")
    ids = np.arange(4001, 4061, 2)[None]
    given = ids, np.array([ids.size])
    exact = load_model(bundle).model.encode(*given).tensors["cross_key.0"].copy()
    for precision in ("bf16", "int8", "fast"):
        found = load_model(bundle, precision=precision).model.encode(*given).tensors["cross_key.0"]
        found = widened(found) if found.dtype == np.uint16 else found
        assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
