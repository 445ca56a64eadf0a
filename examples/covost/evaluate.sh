#!/bin/sh
# Export, quantize and evaluate the two shipped models on the shipped clips, PyTorch beside OpenVINO
# beside INT8. 32 of the 100 clips calibrate, 8 choose SmoothQuant's alpha, those of other speakers are the
# gate's: too few to prove anything, hence --accept-uncertain. All 100 are evaluated.
#   sh examples/covost/evaluate.sh WORK [RESULTS]
set -eu
work=$1
here=$(dirname "$0")
results=${2:-$here/results}
s2t="$here/mini"
whisper="$here/whisper/mini"
clips="$s2t/test_st_en_de.tsv"
mkdir -p "$work" "$results"

# evaluate NAME FLAG...: into $results/evaluation-NAME.*
evaluate() {
    name=$1
    shift
    fairseq-openvino evaluate "$clips" --config-yaml config_st_en_de.yaml --data "$s2t" \
        --output "$work/evaluation-$name" "$@"
    for suffix in md json svg; do
        cp "$work/evaluation-$name/evaluation.$suffix" "$results/evaluation-$name.$suffix"
    done
}

# quantize NAME OUTPUT CORPUS FLAG...: $work/NAME to $work/OUTPUT, its table to quantization.md
quantize() {
    bundle=$work/$1
    name=$2
    corpus=$3
    shift 3
    fairseq-openvino quantize "$bundle" --output "$work/$name" --calibration "$corpus" --overwrite \
        --config-yaml "$s2t/config_st_en_de.yaml" --accept-uncertain \
        --inference-precision "${INT8_INFERENCE_PRECISION:-bf16}" "$@" > "$work/$name.txt"
    {
        printf '\n## %s\n\n' "$name"
        sed '/^$/,$d' "$work/$name.txt"
    } >> "$results/quantization.md"
}

# Twenty clips of digital silence: what calibration must not look like.
silence() {
    python - "$work/silence" << 'PYTHON'
import sys
from pathlib import Path

import numpy as np
import soundfile

directory = Path(sys.argv[1])
directory.mkdir(exist_ok=True)
rows = ["path\ttext"]
for number in range(20):
    soundfile.write(directory / f"{number}.wav", np.zeros(16_000 + 1_600 * number), 16_000)
    rows.append(f"{number}.wav\tnothing")
(directory / "silence.tsv").write_text("\n".join(rows) + "\n")
PYTHON
}

fairseq-openvino export --path "$s2t/checkpoint.pt" --data "$s2t" \
    --config-yaml config_st_en_de.yaml --output "$work/s2t" --overwrite
fairseq-openvino export --whisper "$whisper" --output "$work/whisper" --overwrite
printf '# What the quality gate did\n\nMade by `sh examples/covost/evaluate.sh WORK`; %s\n' \
    "the third calibration is broken on purpose." > "$results/quantization.md"
quantize s2t s2t-int8 "$clips"
quantize whisper whisper-int8 "$clips" --text-column src_text --language en
silence
quantize s2t s2t-int8-from-silence "$work/silence/silence.tsv" --validation "$clips" \
    --calibration-size 12 --metric bleu
engines=pytorch,openvino,openvino-bf16,openvino-int8
evaluate s2t --engines "$engines" --checkpoint "$s2t/checkpoint.pt" --bundle "$work/s2t" \
    --int8-bundle "$work/s2t-int8" --name "shipped S2T"
evaluate whisper --engines "$engines" --checkpoint "$whisper" --bundle "$work/whisper" \
    --int8-bundle "$work/whisper-int8" --name micro-Whisper --text-column src_text --language en
