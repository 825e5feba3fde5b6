#!/usr/bin/env bash
# Makes a TPU slice, installs the project on all of its hosts, and starts a run.
#
#   experiments/launch/tpu_vm.sh create|install|start|logs|delete
set -euo pipefail

NAME=memagent
ZONE=us-east5-a
TYPE=v5p-64
VERSION=v2-alpha-tpuv5
REPOSITORY=https://github.com/OWNER/memagent_jax
RUN=qwen2p5_7b_hotpotqa
MESH=v5p_64
# A bucket that every host sees, mounted with gcsfuse.
BUCKET=my-bucket
SHARED=/mnt/shared

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

case "${1:-}" in
  create)
    gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" \
      --accelerator-type="$TYPE" --version="$VERSION"
    ;;
  install)
    on_all_hosts "git clone $REPOSITORY memagent_jax || git -C memagent_jax pull
      sudo mkdir -p $SHARED && sudo chown \$USER $SHARED
      mountpoint -q $SHARED || gcsfuse --implicit-dirs $BUCKET $SHARED
      cd memagent_jax && python3.11 -m venv .venv && .venv/bin/pip install -e '.[train,tpu]'
      ln -sfn $SHARED/models models && ln -sfn $SHARED/data data"
    ;;
  start)
    on_all_hosts "cd memagent_jax && nohup .venv/bin/python -m experiments.train \
      --gin_file=gin_configs/train/$RUN.gin --gin_file=gin_configs/meshes/$MESH.gin \
      --workdir=$SHARED/runs/$RUN --distributed > train.log 2>&1 &"
    ;;
  logs)
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=0 \
      --command='tail -f memagent_jax/train.log'
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE"
    ;;
  *)
    echo 'usage: tpu_vm.sh create|install|start|logs|delete' >&2
    exit 2
    ;;
esac
