#!/usr/bin/env bash
# Starts a run on a GKE cluster with XPK (https://github.com/AI-Hypercomputer/xpk).
#
# The image has the project in /app with '.[train,tpu]' installed; every host mounts
# the volume of --storage.
set -euo pipefail

CLUSTER=my-cluster
IMAGE=gcr.io/my-project/memagent_jax:latest
TYPE=v5p-64
RUN=qwen2p5_7b_hotpotqa
MESH=v5p_64
STORAGE=my-storage
SHARED=/mnt/shared

xpk workload create \
  --cluster="$CLUSTER" --workload="memagent-${RUN//_/-}" \
  --tpu-type="$TYPE" --num-slices=1 \
  --docker-image="$IMAGE" --storage="$STORAGE" --restart-on-user-code-failure \
  --command="cd /app && python -m experiments.train \
    --gin_file=gin_configs/train/$RUN.gin --gin_file=gin_configs/meshes/$MESH.gin \
    --workdir=$SHARED/runs/$RUN --distributed"
