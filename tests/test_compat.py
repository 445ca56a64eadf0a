"""Each shim against the installed Fairseq: broken without it, working with it.

Shims change a whole process, so the probes run in three child processes: plain Fairseq, all shims, and
all but two.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from shim_probes import RATE_HZ, write_corpus

from fairseq_openvino.compat import shims as compat
from fairseq_openvino.compat.literals import literal
from fairseq_openvino.errors import OptionError, UnsafeCheckpointError

pytest.importorskip("fairseq")

ROOT = Path(__file__).resolve().parents[1]
PROBES = Path(__file__).with_name("shim_probes.py")
TRAIN = shlex.split(
    "--config-yaml features.yaml --train-subset train --valid-subset dev --task speech_to_text "
    "--criterion label_smoothed_cross_entropy --arch s2t_transformer_xs --encoder-layers 1 "
    "--decoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 "
    "--decoder-ffn-embed-dim 16 --encoder-attention-heads 2 --decoder-attention-heads 2 "
    "--conv-channels 16 --optimizer adam --lr 1e-3 --max-tokens 2000 --max-update 1 "
    "--num-workers 0 --cpu"
)


def _start(arguments: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict]:
    """Results of every probe, by mode."""
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root)
    arguments = [str(root), *TRAIN, "--save-dir", str(root / "checkpoints")]
    _finish(_start(["-m", "fairseq_cli.train", *arguments], root))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    modes = {"plain": "", "repaired": "", "partial": "sample_rate_guard, last_batch"}
    children = [
        _start([str(PROBES), mode, str(root)], elsewhere, **{compat.DISABLE_VARIABLE: disabled})
        for mode, disabled in modes.items()
    ]
    for child in children:
        _finish(child)
    return {mode: json.loads((root / f"{mode}.json").read_text()) for mode in modes}


@pytest.fixture(scope="module")
def plain(outcomes):
    return outcomes["plain"]


@pytest.fixture(scope="module")
def repaired(outcomes):
    return outcomes["repaired"]


def test_every_shim_is_needed_by_the_installed_fairseq(repaired):
    assert [name for name, active, _ in repaired["shims"] if not active] == []
    assert all(reason for _, _, reason in repaired["shims"])


def test_shims_can_be_switched_off(outcomes):
    inactive = [row for row in outcomes["partial"]["shims"] if not row[1]]
    assert [row[0] for row in inactive] == ["sample_rate_guard", "last_batch"]
    assert all(compat.DISABLE_VARIABLE in row[2] for row in inactive)


def test_unknown_shim_names_are_refused(monkeypatch):
    monkeypatch.setenv(compat.DISABLE_VARIABLE, "last_batch,lst_batch")
    with pytest.raises(OptionError, match="lst_batch"):
        compat._disabled_names()


def test_checkpoint_loads_only_with_the_shim(plain, repaired):
    assert plain["probe_checkpoint"].startswith("UnpicklingError")
    assert repaired["probe_checkpoint"] is True


def test_code_in_a_checkpoint_is_refused_with_its_name(repaired):
    message = repaired["probe_unsafe_checkpoint"]
    assert message.startswith("UnsafeCheckpointError")
    assert "posix.mkdir" in message


def test_code_in_an_option_of_a_checkpoint_is_not_run(plain, repaired):
    assert plain["probe_literal_options"].startswith("FileNotFoundError")
    assert repaired["probe_literal_options"].startswith("UnsafeCheckpointError")


@pytest.mark.parametrize(
    "text",
    [
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] * 2", "(0.9, 0.98)", " [[64, 3]] * 2 ",
        "{'a': [1, -2.5], 'b': None}", "2 * [True]", "1e-8", "'a' + 'b'",
    ],
)  # fmt: skip
def test_options_mean_what_eval_makes_of_them(text):
    assert literal(text) == eval(text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "print()", "a", "(1).real", "[x for x in ()]", "lambda: 1", "f'{1}'", "9 ** 9", "[0] * 10 ** 9",
        "[0] * 1000000000", "3 * (2 * ('x' * 99999))", "[1] * [1]", "", "(" * 500, "-" * 5000 + "1",
        "1+" * 5000 + "1", "\0",
    ],
    ids=repr,
)  # fmt: skip
def test_options_that_are_more_than_literals_are_refused(text):
    with pytest.raises(UnsafeCheckpointError, match="Reading an option of Fairseq") as raised:
        literal(text)
    assert len(str(raised.value)) < 500


def test_audio_formats_are_read_only_with_the_shim(plain, repaired):
    assert "torchaudio" in plain["probe_audio_formats"]
    assert repaired["probe_audio_formats"] == [[40 + 5 * i, 80] for i in range(4)]


def test_mp3_inside_a_zip_is_read(plain, repaired):
    assert "Unknown file format" in plain["probe_audio_in_zip"]
    assert repaired["probe_audio_in_zip"] is True


def test_waveforms_are_mixed_resampled_and_scaled(plain, repaired):
    assert "torchaudio" in plain["probe_waveform"]
    rate, samples, middle, scaled, peak = repaired["probe_waveform"]
    assert (rate, samples) == (16000, 16000)
    assert middle == pytest.approx(0.375, abs=0.01)
    assert scaled == [0.5 * 2**15, 0.25 * 2**15]
    assert peak == pytest.approx(1.0)


def test_unreadable_audio_is_an_error_with_the_file_name(plain, repaired):
    assert not any(kind == "AudioError" for kind, _ in plain["probe_broken_audio"])
    assert repaired["probe_broken_audio"] == [["AudioError", True]] * 4


def test_relative_audio_root_resolves_beside_the_yaml(plain, repaired):
    assert plain["probe_audio_root"] is False
    assert repaired["probe_audio_root"] is True


def test_moved_tokenizer_and_statistics_are_found(plain, repaired):
    assert plain["probe_moved_data"] == [False, False]
    assert repaired["probe_moved_data"] == [True, True]


def test_wrong_sample_rate_is_an_error_only_with_the_guard(outcomes, repaired):
    assert outcomes["partial"]["probe_wrong_rate"] is True
    message = repaired["probe_wrong_rate"]
    assert message.startswith("AudioError")
    assert "test0.wav" in message
    assert "48000 Hz" in message
    assert "16000 Hz" in message
    assert repaired["probe_right_rate"] is True
    assert repaired["probe_features_have_no_rate"] == 40


def test_hub_interface_takes_files_and_tensors(plain, repaired):
    assert plain["probe_hub"].startswith("ValueError")
    assert repaired["probe_hub"] == [[1, 40, 80, 40], True, True]


def test_examples_of_fairseq_and_of_the_user_coexist(plain, repaired):
    assert plain["probe_examples"].startswith("ModuleNotFoundError")
    assert repaired["probe_examples"] == ["user", True, "fairseq"]


def test_namespace_without_freeze_regex_builds(plain, repaired):
    assert "freeze_regex" in plain["probe_freeze_regex"]
    assert repaired["probe_freeze_regex"] is True


def test_joint_model_builds(plain, repaired):
    assert "conv_version" in plain["probe_joint_model"]
    assert repaired["probe_joint_model"] is True


def test_last_batch_is_kept_for_evaluation_only(outcomes, plain, repaired):
    expected = plain["probe_batches"]
    evaluation, training, joined = repaired["probe_batches"]
    assert len(expected[0]) == 1
    assert evaluation == [*expected[0], [2, 1, 0]]
    assert training == expected[1] == expected[0]
    assert joined[: len(expected[2])] == expected[2]
    assert sorted(sum(joined, [])) == list(range(19))
    assert outcomes["partial"]["probe_batches"] == expected


def test_word_error_rate_needs_no_editdistance(plain, repaired):
    assert "editdistance" in plain["probe_wer"]
    assert repaired["probe_wer"] == pytest.approx(100 * 3 / 6)


def test_generate_runs_from_audio_to_word_error_rate(plain, repaired):
    assert isinstance(plain["probe_generate"], str)
    assert repaired["probe_generate"] == [11, True]


@pytest.mark.parametrize("seed", range(5))
def test_levenshtein_equals_rapidfuzz(seed):
    reference = pytest.importorskip("rapidfuzz.distance").Levenshtein
    rng = np.random.default_rng(seed)
    for _ in range(50):
        left, right = (rng.choice(list("abc"), rng.integers(0, 12)).tolist() for _ in range(2))
        assert compat.levenshtein(left, right) == reference.distance(left, right)


def test_shims_do_not_import_fairseq_before_they_are_applied():
    code = (
        "import sys, fairseq_openvino.compat.shims; "
        "sys.exit(any(name.split('.')[0] == 'fairseq' for name in sys.modules))"
    )
    process = _start(["-c", code], ROOT)
    _finish(process)


def test_convert_waveform_normalises_before_it_mixes_like_sox():
    import torch

    from fairseq_openvino.compat.speech import convert_waveform

    stereo = np.stack([np.full(800, 0.5), np.full(800, -0.25)]).astype(np.float32)
    mixed, rate_hz = convert_waveform(stereo, 8000, normalize_volume=True, to_mono=True)
    assert rate_hz == 8000
    np.testing.assert_allclose(mixed, np.full((1, 800), 0.25), atol=1e-6)
    tensor, rate_hz = convert_waveform(torch.from_numpy(stereo), 8000, to_sample_rate=16000)
    assert isinstance(tensor, torch.Tensor)
    assert (tuple(tensor.shape), rate_hz) == ((2, 1600), 16000)
    silent, _ = convert_waveform(np.zeros((1, 9), np.float32), 8000, normalize_volume=True)
    assert not silent.any()


def test_mp3_is_recognised_with_and_without_a_tag():
    from fairseq_openvino.compat.speech import is_sf_audio_data

    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(4000), RATE_HZ, format="MP3")
    assert is_sf_audio_data(b"\xff\xfb\x90")
    assert is_sf_audio_data(b"ID3\x04")
    assert is_sf_audio_data(buffer.getvalue())
    assert not is_sf_audio_data(b"\x93NUMPY")
    assert not is_sf_audio_data(b"")
