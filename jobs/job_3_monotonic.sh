#!/bin/bash
#SBATCH --job-name=mono_s2s_3_train_monotonic
#SBATCH --account=ucb-general
#SBATCH --partition=aa100
#SBATCH --qos=gpu-normal
#SBATCH --gres=gpu:a100_80gb:1
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/dev/null
#SBATCH --error=/dev/null
# Stage 3_train_monotonic: fine-tune under W = softplus(V).
# run_all.sh submits this with the settings of its run; alone it takes the values above, and logs to logs/ as well.
set -euo pipefail

jobs="$(dirname -- "${BASH_SOURCE[0]}")"
if [[ ! -f "$jobs/common.sh" ]]; then # SLURM runs a copy of this file elsewhere: ask where the original is
    jobs="$(scontrol show job "${SLURM_JOB_ID:-}" | sed -n 's|^ *Command=\(.*/jobs\)/job_.*|\1|p;T;q')" || true # an array's id names many jobs
    [[ -f "$jobs/common.sh" ]] || jobs="$PWD/jobs"
fi
# shellcheck source=jobs/common.sh
source "$jobs/common.sh"
run_stage 3 "$@"
