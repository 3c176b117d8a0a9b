#!/usr/bin/env bash
# Many seeds of the experiment, then their aggregate: everything is queued at once, or run here.
set -euo pipefail
checkout="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"

usage() {
    cat <<'END'
./run_multi_seed.sh SEED SEED... [OPTIONS]: run the experiment for several training seeds (at least two), and aggregate
them. Setup and data are made once for all; MAX_PARALLEL_SEEDS of them (a setting) are in work side by side; the aggregate
runs after all of them, however they ended, and names the seeds that are missing. The same command again adds only what
is missing.

  --demo     the small experiment: own corpus and model, runs here unless --slurm
  --local    run the seeds here, one after the other
  --slurm    hand them to SLURM (this is what happens unless --local or --demo)
  --dry-run  print what would run; touch nothing
  --force    run the stages even if they are done
  --cancel   cancel the jobs that these seeds and their aggregate have in the queue, and no others
  --help     this text

Exit codes: 0 done or submitted, 1 failed, 2 wrong usage, 3 inputs (or seeds) missing or stale.
END
}

bad_usage() {
    printf 'run_multi_seed.sh: %s (see --help)\n' "$*" >&2
    exit 2
}

executor='' demo='' touches=1
seeds=() options=()
while (($#)); do
    case "$1" in
        --demo) demo=1 ;;
        --local | --slurm)
            [[ -z "$executor" || "$executor" == "${1#--}" ]] || bad_usage "--local and --slurm exclude each other"
            executor="${1#--}"
            ;;
        --dry-run | --cancel) touches='' options+=("$1") ;;
        --force) options+=("$1") ;;
        --help | -h) usage && exit 0 ;;
        -*) bad_usage "unknown option $1" ;;
        *)
            [[ "$1" =~ ^[0-9]{1,10}$ ]] || bad_usage "seed $1: expected a whole number"
            ((10#$1 < 2147483648)) || bad_usage "seed $1: expected a number below 2147483648"
            [[ " ${seeds[*]-} " != *" $((10#$1)) "* ]] || bad_usage "seed $1 is given twice: it would be one run counted twice"
            seeds+=("$((10#$1))")
            ;;
    esac
    shift
done
((${#seeds[@]} > 1)) || bad_usage "at least two seeds, got ${#seeds[@]}; run_all.sh runs one"
if [[ -n "$demo" ]]; then
    [[ "${MONO_S2S_PROFILE:-demo}" == demo ]] || bad_usage "--demo, but MONO_S2S_PROFILE=$MONO_S2S_PROFILE"
    export MONO_S2S_PROFILE=demo
fi
[[ -n "$executor" ]] || executor="${demo:+local}"
[[ -n "$executor" ]] || executor=slurm
if [[ "$executor" == slurm && -n "$touches" ]] && ! command -v sbatch >/dev/null; then
    bad_usage "no SLURM here (sbatch is not found): --local runs the seeds on this machine, --demo a small experiment"
fi

tool_python="$(plain_python)"
words=(multi-seed "${seeds[@]}" --executor "$executor" ${options[@]+"${options[@]}"})
if [[ -z "$touches" ]]; then
    export PYTHONDONTWRITEBYTECODE=1
    exec "$tool_python" "$checkout/scripts/tool.py" "${words[@]}" --python "$(chosen_python)"
fi
# A wrong setting is said now, not after the minutes that an environment takes.
PYTHONDONTWRITEBYTECODE=1 "$tool_python" "$checkout/scripts/tool.py" "${words[@]}" --dry-run >/dev/null
if [[ "$executor" == slurm && -z "$demo" && -z "$(chosen_python)" ]]; then
    bad_usage "no environment: activate one that has the packages, or make .venv by scripts/environment.sh"
fi
python="$(packages_python)"
exec "$python" "$checkout/scripts/tool.py" "${words[@]}" --python "$python"
