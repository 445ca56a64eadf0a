"""Fairseq's hub interface with OpenVINO: `python examples/predict.py CLIP...` translates English speech."""

import sys
from pathlib import Path

from fairseq.models.speech_to_text import S2TTransformerModel

CHECKOUT = Path(__file__).parents[1]
MINI = str(CHECKOUT / "examples" / "covost" / "mini")
model = S2TTransformerModel.from_pretrained(
    MINI, "checkpoint.pt", MINI, "config_st_en_de.yaml",
    user_dir=str(CHECKOUT / "fairseq_openvino"), ov_engine=True,
)  # fmt: skip
for clip in sys.argv[1:]:
    print(model.predict(clip))  # a multilingual model: predict(clip, tgt_lang="de")
