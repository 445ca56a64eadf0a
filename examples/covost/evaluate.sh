#!/bin/sh
# Export, quantize and evaluate the two shipped models on the shipped clips, PyTorch beside OpenVINO
# beside INT8. 50 of the 100 clips calibrate, 8 choose SmoothQuant's alpha, the others are the gate's;
# all 100 are evaluated.
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

# quantize NAME FLAG...: $work/NAME to $work/NAME-int8
quantize() {
    name=$1
    shift
    fairseq-openvino quantize "$work/$name" --output "$work/$name-int8" --overwrite \
        --calibration "$clips" --config-yaml "$s2t/config_st_en_de.yaml" --alphas=-1,0.5 \
        --inference-precision "${INT8_INFERENCE_PRECISION:-bf16}" "$@"
}

fairseq-openvino export --path "$s2t/checkpoint.pt" --data "$s2t" \
    --config-yaml config_st_en_de.yaml --output "$work/s2t" --overwrite
fairseq-openvino export --whisper "$whisper" --output "$work/whisper" --overwrite
quantize s2t
quantize whisper --text-column src_text --language en
engines=pytorch,openvino,openvino-bf16,openvino-int8
evaluate s2t --engines "$engines" --checkpoint "$s2t/checkpoint.pt" --bundle "$work/s2t" \
    --int8-bundle "$work/s2t-int8" --name "shipped S2T"
for context in full auto; do
    evaluate "whisper-$context" --engines "$engines" --checkpoint "$whisper" \
        --bundle "$work/whisper" --int8-bundle "$work/whisper-int8" --name micro-Whisper \
        --text-column src_text --language en --audio-context "$context"
done
