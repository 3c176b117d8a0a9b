#!/bin/bash
#SBATCH --job-name=mono_s2s_5_uat_attacks
#SBATCH --account=ucb-general
#SBATCH --partition=aa100
#SBATCH --qos=gpu-normal
#SBATCH --gres=gpu:a100_80gb:1
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=03:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/dev/null
#SBATCH --error=/dev/null
# Stage 5_uat_attacks: universal triggers: five types, transfer, controls.
# run_all.sh submits this with the settings of its run; alone it takes the values above, and logs to logs/ as well.
set -euo pipefail

jobs="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
if [[ ! -f "$jobs/common.sh" ]]; then # SLURM runs a copy of this file elsewhere: ask where the original is
    original="$(scontrol show job "${SLURM_JOB_ID:-}" | sed -n 's|^ *Command=||p;T;q')" || true # an array's id names many jobs
    while [[ ! -f "$original" && "$original" == *' '* ]]; do original="${original% *}"; done # its arguments follow it
    jobs="$(dirname -- "$(readlink -f -- "$original")")"
    [[ -f "$jobs/common.sh" ]] || jobs="$PWD/jobs"
    if [[ ! -f "$jobs/common.sh" ]]; then # nobody reads /dev/null
        echo "job ${SLURM_JOB_ID:-}: the checkout was not found (SLURM names ${original:-no file}). sbatch a wrapper in its jobs/." |
            tee -a "${SLURM_SUBMIT_DIR:-$PWD}/mono_s2s_${SLURM_JOB_ID:-}.err" >&2
        exit 2
    fi
fi
# shellcheck source=jobs/common.sh
source "$jobs/common.sh"
run_stage 5 "$@"
