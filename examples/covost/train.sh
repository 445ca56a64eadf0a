#!/bin/sh
# The whole miniature recipe, from speech synthesis to packed models: about two hours on two cores.
#   sh examples/covost/train.sh ROOT
# fills ROOT/en (corpus), ROOT/run (checkpoints) and ROOT/models. A step whose output exists is
# skipped, an interrupted training goes on where it was. ROOT/minutes.txt has what each step took.
set -euf
root=${1:?usage: sh train.sh ROOT}
here=$(cd "$(dirname "$0")" && pwd)
data=$root/en
run=$root/run
models=$root/models
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
export OMP_WAIT_POLICY=PASSIVE # threads that spin lose most of their time on a shared machine
# Fairseq reads its own checkpoints with torch.load's defaults of before torch 2.6.
export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1

fail() {
    echo "Training the CoVoST models failed in $1: expected $2, got $3. $4." >&2
    exit 5
}

need() {
    command -v "$1" > /dev/null || fail PATH "$1" "no such program" "$2"
}

# step OUTPUT COMMAND...: run the command unless the output exists; it must exist then.
step() {
    output=$1
    shift
    if [ -e "$output" ]; then
        echo "$output exists: skipped"
        return
    fi
    started=$(date +%s)
    "$@"
    [ -e "$output" ] || fail "$1" "$output" "no such file" "Read the messages above"
    echo "$(((($(date +%s) - started) * 10 / 60 + 5) / 10)) min  ${output#"$root/"}" |
        tee -a "$root/minutes.txt"
}

# average NAME OUTPUT [FLAG...]: the last five epochs of RUN/NAME, without the optimizer
average() {
    name=$1
    averaged=$2
    shift 2
    fairseq-openvino average-checkpoints --inputs "$run/$name" --num-epoch-checkpoints 5 \
        --strip-paths --output "$averaged" "$@"
}

# train NAME EPOCHS DATA FLAG...: Fairseq resumes from RUN/NAME/checkpoint_last.pt by itself.
train() {
    name=$1
    epochs=$2
    binary=$3
    shift 3
    fairseq-train "$binary" --save-dir "$run/$name" --max-epoch "$epochs" \
        --label-smoothing 0.1 --report-accuracy --dropout 0.1 \
        --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 5.0 \
        --lr 2e-3 --lr-scheduler inverse_sqrt --warmup-updates 500 --max-tokens 2000 \
        --required-batch-size-multiple 1 --seed 1 --cpu --num-workers 1 \
        --log-interval 100 --no-progress-bar --keep-last-epochs 5 "$@"
}

# speech NAME EPOCHS TASK FLAG...: a speech_to_text model of config_TASK.yaml
speech() {
    name=$1
    epochs=$2
    task=$3
    shift 3
    train "$name" "$epochs" "$data" --task speech_to_text --config-yaml "config_$task.yaml" \
        --train-subset "train_$task" --valid-subset "dev_$task" "$@"
    average "$name" "$run/$name.pt"
}

# Architectures ------------------------------------------------------------------------------------

decoder="--decoder-layers 2 --decoder-embed-dim 128 --decoder-ffn-embed-dim 512
    --decoder-attention-heads 4"
encoder="--encoder-layers 4 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512
    --encoder-attention-heads 4"
transformer="--arch s2t_transformer_xs --share-decoder-input-output-embed --attention-dropout 0
    --activation-dropout 0 --conv-channels 256 $encoder $decoder"
conformer="--arch s2t_conformer --attn-type espnet --pos-enc-type rel_pos
    --share-decoder-input-output-embed --conv-channels 256 --depthwise-conv-kernel-size 15
    $encoder $decoder --encoder-ffn-embed-dim 256"
berard="--arch s2t_berard --input-layers [128,128] --conv-layers [(16,3,2),(16,3,2),(16,3,2)]
    --num-blstm-layers 2 --lstm-size 96 --decoder-embed-dim 128 --decoder-num-layers 2
    --decoder-hidden-dim 192 --attention-dim 128 --output-layer-dim 128"
text="--arch transformer --share-all-embeddings $encoder $decoder --encoder-layers 2"
plain="--criterion label_smoothed_cross_entropy"
# CTC teaches an encoder fast: in the model, or for the architectures without a head beside it.
ctc="--criterion label_smoothed_cross_entropy_with_ctc --ctc-weight 1.0"
ctc_head="--user-dir $here/ctc_head --criterion label_smoothed_cross_entropy_with_ctc_head"

# Steps --------------------------------------------------------------------------------------------

prepare() {
    python "$here/prep_covost.py" --data-root "$root" -s en --vocab-type bpe --specaugment none "$@"
}

parallel_text() {
    python "$here/prep_text.py" --data-root "$root" -s en -t de --vocab-type bpe --vocab-size 600
    text_data=$data/mt_en_de
    rm -rf "$text_data/data-bin.partial"
    fairseq-preprocess -s en -t de --trainpref "$text_data/spm.train" \
        --validpref "$text_data/spm.valid" --testpref "$text_data/spm.test" \
        --joined-dictionary --srcdict "$text_data/spm_bpe600_mt_en_de.txt" \
        --destdir "$text_data/data-bin.partial"
    mv "$text_data/data-bin.partial" "$text_data/data-bin"
}

translation() {
    train mt_en_de "$1" "$data/mt_en_de/data-bin" --task translation -s en -t de $text $plain
    average mt_en_de "$run/mt_en_de.pt"
}

pack() {
    name=$1
    checkpoint=$2
    shift 2
    rm -rf "$models/$name.partial"
    python "$here/pack_model.py" --data "$data" --checkpoint "$run/$checkpoint.pt" \
        --output "$models/$name.partial" "$@"
    mv "$models/$name.partial" "$models/$name"
}

mkdir -p "$run" "$models"
need espeak-ng "Run apt-get install espeak-ng"
need fairseq-train "Run make setup and put .venv/bin first in PATH"
free=$(df -Pk "$root" | awk 'NR == 2 {print int($4 / 1024)}')
[ "$free" -ge 2000 ] || fail "$root" "2,000 MB of free space" "$free MB" "Choose another ROOT"

step "$data/covost_v2.en_ca.tsv" \
    python "$here/synthesize.py" --output "$root" --train 4000 --dev 100 --test 100 --seed 1
step "$data/config_asr_en.yaml" prepare --vocab-size 400
step "$data/config_st_en_de.yaml" prepare --vocab-size 450 -t de
step "$data/config_st_en_deca.yaml" prepare --vocab-size 600 -t de ca
step "$data/mt_en_de/data-bin" parallel_text

# shellcheck disable=SC2086 # flags are several words
{
    step "$run/asr_en.pt" speech asr_en 14 asr_en $transformer $ctc
    step "$run/asr_encoder.pt" average asr_en "$run/asr_encoder.pt" --drop-ctc
    pretrained="--load-pretrained-encoder-from $run/asr_encoder.pt"
    step "$run/st_en_de.pt" speech st_en_de 20 st_en_de $transformer $plain $pretrained
    step "$run/st_en_deca.pt" speech st_en_deca 10 st_en_deca $transformer $plain $pretrained \
        --train-subset train_st_en_de,train_st_en_ca --valid-subset dev_st_en_de,dev_st_en_ca \
        --ignore-prefix-size 1

    step "$run/asr_conformer.pt" speech asr_conformer 4 asr_en $conformer $ctc_head \
        --ctc-input-dim 128
    step "$run/st_en_de_conformer.pt" speech st_en_de_conformer 8 st_en_de $conformer $plain \
        --load-pretrained-encoder-from "$run/asr_conformer/checkpoint_last.pt"
    step "$run/asr_berard.pt" speech asr_berard 8 asr_en $berard $ctc_head \
        --ctc-input-dim 192 --max-tokens 4000
    step "$run/st_en_de_berard.pt" speech st_en_de_berard 20 st_en_de $berard $plain \
        --max-tokens 4000 --load-pretrained-encoder-from "$run/asr_berard/checkpoint_last.pt"

    step "$run/mt_en_de.pt" translation 30
}

step "$models/mini" pack mini st_en_de -t de
set -- --half --clips "$models/mini"
step "$models/asr_en" pack asr_en asr_en "$@"
step "$models/st_en_de_conformer" pack st_en_de_conformer st_en_de_conformer -t de "$@"
step "$models/st_en_de_berard" pack st_en_de_berard st_en_de_berard -t de "$@"
step "$models/st_en_deca" pack st_en_deca st_en_deca -t de ca "$@"
step "$models/mt_en_de" pack mt_en_de mt_en_de -t de --text --half
