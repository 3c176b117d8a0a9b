#!/bin/bash
#SBATCH --job-name=mono_s2s_multi_seed
#SBATCH --account=ucb-general
#SBATCH --partition=acpu
#SBATCH --qos=cpu-normal
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=8G
#SBATCH --time=00:30:00
#SBATCH --open-mode=append
#SBATCH --output=/dev/null
#SBATCH --error=/dev/null
# After all seeds, however they ended: aggregate those that are complete; a missing one is named, and nothing is written.
# run_multi_seed.sh submits this; alone: sbatch jobs/job_multi_seed_aggregate.sh --seeds 42,1337,2024
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
script=job_multi_seed_aggregate.sh

usage() {
    cat <<END
$script: aggregate the seeds of an experiment, as a job (sbatch, from any directory) or here (bash).
  --seeds N,N,...  the training seeds, at least two
  --variants A,B   instead, the page about these experiments
  --settings FILE  frozen settings of a run (default: configs/experiment_config.py and MONO_S2S_ variables)
  --python PATH    interpreter with the packages (default: the active environment, or .venv in the checkout)
  --help
Exit codes: 0 done, 1 failed, 2 wrong usage or seeds that do not belong together, 3 seeds missing.
END
}

seeds='' variants='' settings='' python=''
while (($#)); do
    [[ "$1" != --[spv]*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
    case "$1" in
        --seeds | --variants | --settings | --python)
            (($# > 1)) || bad_usage "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        --help | -h) usage && exit 0 ;;
        *) bad_usage "unknown option $1" ;;
    esac
    shift
done
IFS=, read -r -a numbers <<<"$seeds"
((${#numbers[@]} > 1)) || bad_usage "--seeds $seeds: expected at least two, as in 42,1337"
check_seeds "${numbers[@]}"
[[ -z "$settings" || -f "$settings" ]] || bad_usage "--settings $settings: no such file"
[[ -z "$batch_job" ]] || open_log
find_python
[[ -z "$settings" ]] || export MONO_S2S_SETTINGS_FILE="$settings"
command=("$python" "$checkout/scripts/aggregate_multi_seed.py")
[[ -z "$variants" ]] || command=("$python" "$checkout/scripts/compare_variants.py" --variants "$variants")
command+=("${numbers[@]}")
code=''
log_head
status=0
"${command[@]}" || status=$?
log "multi-seed aggregate: exit status $status after $SECONDS s"
exit "$status"
