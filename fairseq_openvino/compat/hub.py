"""Shim for Fairseq's `torch.hub` interface; applied by `compat.apply_shims`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairseq_openvino.compat.speech import kaldi_fbank
from fairseq_openvino.speech.features import PCM16_SCALE
from fairseq_openvino.speech.stored import frames


def hub_interface() -> None:
    """`S2THubInterface` accepts files and waveforms for filter-bank models.

    models/speech_to_text/hub_interface.py:39 calls `unsqueeze` on an array
    (facebookresearch/fairseq#4776), its tensor path skips CMVN, and its default input type
    "fbank80" is unknown to it (#4357); that one now means the transforms of the YAML.
    Versions: all.
    """
    import torch
    from fairseq.data.audio.feature_transforms import CompositeAudioFeatureTransform
    from fairseq.data.audio.feature_transforms.utterance_cmvn import UtteranceCMVN
    from fairseq.models.speech_to_text.hub_interface import S2THubInterface

    original = S2THubInterface.get_model_input.__func__

    def get_model_input(cls: Any, task: Any, audio: Any) -> dict[str, Any]:
        input_type = task.data_cfg.hub.get("input_type", "fbank80")
        if input_type not in ("fbank80", "fbank80_w_utt_cmvn"):
            return original(cls, task, audio)
        if isinstance(audio, str):
            rate_hz, bins = (
                task.data_cfg.config.get("sample_rate"),
                task.data_cfg.input_feat_per_channel,
            )
            features = frames(audio, rate_hz, bins).values  # (T, F)
        else:
            scaled = audio.reshape(1, -1).numpy() * np.float32(PCM16_SCALE)
            features = kaldi_fbank(scaled, task.data_cfg.sample_rate)
        transforms = CompositeAudioFeatureTransform.from_config_dict(
            task.data_cfg.get_feature_transforms("hub", False)
        )
        transform = UtteranceCMVN() if input_type == "fbank80_w_utt_cmvn" else transforms
        if transform is not None:
            features = transform(features)
        source = torch.from_numpy(features).unsqueeze(0)  # (1, T, F)
        net_input = {
            "src_tokens": source,
            "src_lengths": torch.tensor([source.shape[1]]),
            "prev_output_tokens": None,
        }
        return {"net_input": net_input, "target_lengths": None, "speaker": None}

    S2THubInterface.get_model_input = classmethod(get_model_input)
