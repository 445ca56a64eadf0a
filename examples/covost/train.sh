#!/bin/sh
# Train a small s2t_transformer on the prepared miniature corpus, the way CoVoST's recipe does:
# first speech recognition (with a CTC loss, which teaches the encoder fast), then translation
# starting from that encoder.
#   sh examples/covost/train.sh ROOT/en RUN
set -eu
data=$1
run=$2
here=$(dirname "$0")
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
export OMP_WAIT_POLICY=PASSIVE # threads that spin lose most of their time on a shared machine
# Fairseq reads its own checkpoints with torch.load's defaults of before torch 2.6.
export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1

train() {
    task=$1
    shift
    fairseq-train "$data" --task speech_to_text --config-yaml "config_$task.yaml" \
        --train-subset "train_$task" --valid-subset "dev_$task" --save-dir "$run/$task" \
        --arch s2t_transformer_xs --share-decoder-input-output-embed --dropout 0.1 \
        --attention-dropout 0 --activation-dropout 0 \
        --encoder-layers 4 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 \
        --encoder-attention-heads 4 --conv-channels 256 \
        --decoder-layers 2 --decoder-embed-dim 128 --decoder-ffn-embed-dim 512 \
        --decoder-attention-heads 4 --label-smoothing 0.1 --report-accuracy \
        --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 5.0 \
        --lr 2e-3 --lr-scheduler inverse_sqrt --warmup-updates 500 \
        --max-tokens 2000 --required-batch-size-multiple 1 --seed 1 \
        --cpu --num-workers 1 --log-interval 100 --no-progress-bar --keep-last-epochs 5 "$@"
}

train asr_en --max-epoch "${ASR_EPOCHS:-3}" \
    --criterion label_smoothed_cross_entropy_with_ctc --ctc-weight 1.0
python "$here/strip_checkpoint.py" --drop-ctc --output "$run/asr_encoder.pt" \
    "$run/asr_en/checkpoint_last.pt"
train st_en_de --max-epoch "${ST_EPOCHS:-20}" \
    --criterion label_smoothed_cross_entropy --load-pretrained-encoder-from "$run/asr_encoder.pt"
