"""What plain Fairseq and the shims make of a small corpus: the child processes of `test_compat.py`.

Every probe returns something JSON can hold; an exception is its name.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import soundfile

from fairseq_openvino.compat import shims as compat

RATE_HZ = 16_000
LETTERS = "abcdefghij"
FORMATS = ("wav", "flac", "ogg", "mp3")
GENERATE = shlex.split(
    "--config-yaml audio.yaml --gen-subset test --task speech_to_text --max-tokens 2000 --beam 2 "
    "--max-len-b 5 --num-workers 0 --cpu --scoring wer --results-path out"
)


def write_corpus(root: Path) -> None:
    """Features for training, audio in four formats for testing; 11 test rows, no multiple of 8."""
    rng = np.random.default_rng(0)
    (root / "audio").mkdir()
    (root / "dict.txt").write_text("".join(f"{letter} 1\n" for letter in LETTERS))
    shared = "vocab_filename: dict.txt\nfeature_transforms:\n  '*': [utterance_cmvn]\n"
    (root / "features.yaml").write_text(f"audio_root: {root}/audio\n{shared}")
    (root / "audio.yaml").write_text(f"audio_root: audio\nsample_rate: {RATE_HZ}\n{shared}")
    (root / "wrong_rate.yaml").write_text(f"audio_root: audio\nsample_rate: 48000\n{shared}")
    for split, count in (("train", 8), ("dev", 8), ("test", 11)):
        rows = ["id\taudio\tn_frames\ttgt_text"]
        for i in range(count):
            frames = 40 + 5 * i
            name = f"{split}{i}.npy"
            if split == "test":
                name = f"{split}{i}.{FORMATS[i % len(FORMATS)]}"
                noise = 0.1 * rng.standard_normal(RATE_HZ // 100 * (frames + 2))
                soundfile.write(root / "audio" / name, noise, RATE_HZ)
            else:
                np.save(root / "audio" / name, rng.standard_normal((frames, 80), np.float32))
            rows.append(f"{split}{i}\t{name}\t{frames}\t{' '.join(rng.choice(list(LETTERS), 4))}")
        (root / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    with zipfile.ZipFile(root / "audio.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.write(root / "audio" / "test3.mp3", "test3.mp3")
    (root / "audio" / "broken.wav").write_bytes(b"RIFF\0\0\0\0WAVEjunk")
    soundfile.write(root / "audio" / "short.wav", np.zeros(100), RATE_HZ)
    stereo = np.stack([np.full(8000, 0.5), np.full(8000, 0.25)], axis=1)
    soundfile.write(root / "stereo.wav", stereo, 8000, subtype="FLOAT")


def _task(root: Path, config: str = "audio.yaml"):
    from fairseq import tasks

    return tasks.setup_task(
        Namespace(
            task="speech_to_text", data=str(root), config_yaml=config, seed=1,
            max_source_positions=6000, max_target_positions=1024,
        )
    )  # fmt: skip


def probe_checkpoint(root: Path):
    import torch
    from fairseq import checkpoint_utils

    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(root / "checkpoints" / "checkpoint_last.pt")]
    )
    assert torch.load is torch.serialization.load
    return sum(weight.numel() for weight in models[0].parameters()) > 0


def probe_unsafe_checkpoint(root: Path):
    import torch
    from fairseq import checkpoint_utils

    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(root / f"canary-{os.getpid()}"),)

    path = root / f"evil-{os.getpid()}.pt"
    torch.save({"model": Canary()}, path)
    try:
        return checkpoint_utils.load_checkpoint_to_cpu(str(path))
    finally:
        assert not list(root.glob("canary-*"))


def probe_literal_options(root: Path):
    from fairseq.utils import eval_str_list

    eval_str_list(f"__import__('os').rmdir({str(root / 'missing')!r})")


def probe_audio_formats(root: Path):
    from fairseq.data.audio import speech_to_text_dataset
    from fairseq.tasks import speech_to_text

    readers = (speech_to_text_dataset, speech_to_text)  # modules that import by value
    return [
        list(readers[i % 2].get_features_or_waveform(str(root / "audio" / f"test{i}.{kind}")).shape)
        for i, kind in enumerate(FORMATS)
    ]


def probe_audio_in_zip(root: Path):
    from fairseq.data.audio.audio_utils import get_features_or_waveform

    size = (root / "audio" / "test3.mp3").stat().st_size
    row = f"{root}/audio.zip:{30 + len('test3.mp3')}:{size}"
    stored = get_features_or_waveform(row)
    plain = get_features_or_waveform(str(root / "audio" / "test3.mp3"))
    return bool(np.array_equal(stored, plain))


def probe_waveform(root: Path):
    from fairseq.data.audio.audio_utils import get_waveform

    waveform, rate = get_waveform(
        str(root / "stereo.wav"), output_sample_rate=16000, always_2d=False
    )
    scaled, _ = get_waveform(str(root / "stereo.wav"), normalization=False, mono=False)
    loud, _ = get_waveform(str(root / "stereo.wav"), normalize_volume=True)
    middle = float(waveform[8000])
    return [rate, len(waveform), round(middle, 3), scaled[:, 5].tolist(), float(loud.max())]


def probe_broken_audio(root: Path):
    from fairseq.data.audio.audio_utils import get_features_or_waveform

    messages = []
    for name in ("broken.wav", "short.wav", "absent.flac", "absent.npy"):
        path = str(root / "audio" / name)
        try:
            get_features_or_waveform(path)
        except Exception as error:
            messages.append([type(error).__name__, repr(path) in str(error)])
    return messages


def probe_audio_root(root: Path):
    task = _task(root)
    task.load_dataset("test")
    return Path(task.datasets["test"].audio_paths[0]).is_file()


def probe_moved_data(root: Path):
    from fairseq.data.audio.data_cfg import S2TDataConfig

    moved = root / "moved"
    moved.mkdir(exist_ok=True)
    for name in ("spm.model", "cmvn.npz"):
        (moved / name).touch()
    yaml = moved / "config.yaml"
    yaml.write_text(
        "bpe_tokenizer: {bpe: sentencepiece, sentencepiece_model: /gone/spm.model}\n"
        "global_cmvn: {stats_npz_path: /gone/cmvn.npz}\n"
    )
    config = S2TDataConfig(yaml)
    spm = config.bpe_tokenizer["sentencepiece_model"]
    stats = config.get_feature_transforms("test", False)["global_cmvn"]["stats_npz_path"]
    return [Path(spm) == moved / "spm.model", Path(stats) == moved / "cmvn.npz"]


def probe_right_rate(root: Path):
    task = _task(root)
    task.load_dataset("test")
    return len(task.datasets["test"][0].source) > 0


def probe_wrong_rate(root: Path):
    task = _task(root, "wrong_rate.yaml")
    task.load_dataset("test")
    return len(task.datasets["test"][0].source) > 0


def probe_features_have_no_rate(root: Path):
    task = _task(root, "wrong_rate.yaml")
    task.load_dataset("dev")
    return len(task.datasets["dev"][0].source)


def probe_hub(root: Path):
    import torch
    from fairseq.models.speech_to_text.hub_interface import S2THubInterface

    task = _task(root)
    path = str(root / "audio" / "test0.wav")
    samples, _ = soundfile.read(path, dtype="float32")
    shapes, sources = [], []
    for input_type in ("fbank80", "fbank80_w_utt_cmvn"):
        task.data_cfg.config["hub"] = {"input_type": input_type}
        for audio in (path, torch.from_numpy(samples)[None]):
            net_input = S2THubInterface.get_model_input(task, audio)["net_input"]
            sources.append(net_input["src_tokens"])
            shapes.append([*sources[-1].shape, int(net_input["src_lengths"])])
    same = all(torch.allclose(sources[0], other, atol=1e-4) for other in sources[1:])
    return [shapes[0], same, bool(sources[0].mean().abs() < 1e-3)]


def probe_examples(root: Path):
    os.chdir(root)
    (root / "examples" / "covost").mkdir(parents=True, exist_ok=True)
    (root / "examples" / "covost" / "mine.py").write_text("OWNER = 'user'\n")
    sys.path.insert(0, str(root))
    from examples.speech_to_speech.unity import sequence_generator_multi_decoder as alias
    from fairseq.examples.speech_to_speech.unity import sequence_generator_multi_decoder as real

    from examples.covost import mine

    return [mine.OWNER, alias is real, real.__spec__.name.split(".")[0]]


def probe_freeze_regex(root: Path):
    from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config
    from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig, Wav2VecEncoder
    from fairseq.tasks.audio_pretraining import AudioPretrainingConfig
    from omegaconf import OmegaConf

    model = OmegaConf.structured(
        Wav2Vec2Config(
            encoder_layers=1, encoder_embed_dim=16, encoder_ffn_embed_dim=16,
            encoder_attention_heads=2, conv_feature_layers="[(16, 10, 5)]", conv_pos=4,
            conv_pos_groups=2,
        )
    )  # fmt: skip
    task = OmegaConf.structured(AudioPretrainingConfig(data=str(root)))
    OmegaConf.set_struct(model, False)
    OmegaConf.set_struct(task, False)
    model = {**OmegaConf.to_container(model, enum_to_str=True), "_name": "wav2vec2"}
    task = {**OmegaConf.to_container(task, enum_to_str=True), "_name": "audio_pretraining"}
    options = OmegaConf.to_container(OmegaConf.structured(Wav2Vec2CtcConfig()), enum_to_str=True)
    del options["freeze_regex"]
    for config in (model, task, options):
        for key, value in config.items():
            if isinstance(value, str) and "${" in value:  # refers to another part of a full config
                config[key] = 1 if key == "seed" else False
    options |= {
        "w2v_args": OmegaConf.create({"model": model, "task": task, "criterion": None}),
        "data": str(root),
        "normalize": False,
    }
    return Wav2VecEncoder(Namespace(**options)).w2v_model is not None


def probe_joint_model(root: Path):
    from collections import namedtuple

    from fairseq.models.speech_to_text.s2t_transformer import S2TTransformerEncoder

    options = {  # as s2t_dualinputtransformer.py:build_spch_encoder states them
        "input_feat_per_channel": 80, "input_channels": 1, "conv_kernel_sizes": "5,5",
        "conv_channels": 16, "encoder_embed_dim": 16, "encoder_layers": 0, "dropout": 0.0,
        "max_source_positions": 90, "no_scale_embedding": False, "encoder_freezing_updates": 0,
        "encoder_normalize_before": True,
    }  # fmt: skip
    arguments = namedtuple("args", options)(**options)  # noqa: PYI024
    return S2TTransformerEncoder(arguments).conv_version == "s2t_transformer"


def probe_batches(root: Path):
    task = _task(root, "features.yaml")
    found = []
    for split, training in (("test", False), ("test", True), ("test,dev", False)):
        task.load_dataset(split)
        dataset = task.datasets[split]
        for part in getattr(dataset, "datasets", [dataset]):
            part.is_train_split = training
        batches = dataset.batch_by_size(
            dataset.ordered_indices(), max_sentences=8, required_batch_size_multiple=8
        )
        found.append([[int(index) for index in batch] for batch in batches])
    return found


def probe_wer(root: Path):
    from fairseq.scoring.wer import WerScorer, WerScorerConfig

    scorer = WerScorer(WerScorerConfig())
    scorer.add_string("the cat sat down", "the bat sat")
    scorer.add_string("a b", "a b c")
    return scorer.score()


def probe_generate(root: Path):
    from fairseq_cli import generate

    os.chdir(root)
    checkpoint = str(root / "checkpoints" / "checkpoint_last.pt")
    sys.argv = ["fairseq-generate", str(root), "--path", checkpoint, *GENERATE]
    generate.cli_main()
    lines = (root / "out" / "generate-test.txt").read_text().splitlines()
    return [sum(line.startswith("H-") for line in lines), "WER" in lines[-1]]


def run_probes(mode: str, root: Path) -> None:
    """Entry point of the child processes: print one JSON object."""
    found: dict[str, object] = {}
    if mode != "plain":
        found["shims"] = [[shim.name, shim.active, shim.reason] for shim in compat.apply_shims()]
    for name, probe in list(globals().items()):
        if name.startswith("probe_"):
            try:
                found[name] = probe(root)
            except BaseException as error:
                found[name] = f"{type(error).__name__}: {error}"
    (root / f"{mode}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run_probes(sys.argv[1], Path(sys.argv[2]))
