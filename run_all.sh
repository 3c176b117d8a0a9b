#!/usr/bin/env bash
# One seed of the experiment: hand the whole stage graph to SLURM and come back in seconds, or run it here.
set -euo pipefail
checkout="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"

usage() {
    cat <<'END'
./run_all.sh [SEED] [OPTIONS]: run the experiment of one seed (default 42). Stages that are done are skipped; the
others run, and it says why. With SLURM all their jobs are queued at once: you can log out.

  --demo          the small experiment: own corpus and model, minutes on a CPU, runs here unless --slurm
  --local         run the stages here, one after the other
  --slurm         hand them to SLURM (this is what happens unless --local or --demo)
  --dry-run       print what would run, why, and the exact sbatch lines; touch nothing
  --stage N       start at stage N (0-7)
  --stop-stage N  stop after stage N
  --force         run these stages even if they are done
  --cancel        cancel the jobs that this seed's runs have in the queue, and no others
  --help          this text

Stages: 0 setup, 1 prepare_data, 2 train_baseline, 3 train_monotonic, 4 evaluate, 5 uat_attacks, 6 hotflip_attacks,
7 aggregate. Settings: configs/experiment_config.py, or MONO_S2S_X=value ./run_all.sh for any constant X.
Exit codes: 0 done or submitted, 1 failed, 2 wrong usage, 3 inputs missing or stale.
END
}

bad_usage() {
    printf 'run_all.sh: %s (see --help)\n' "$*" >&2
    exit 2
}

seed='' executor='' demo='' dry_run='' cancel='' first=0 last=7
options=()
while (($#)); do
    case "$1" in
        --demo) demo=1 ;;
        --local | --slurm)
            [[ -z "$executor" || "$executor" == "${1#--}" ]] || bad_usage "--local and --slurm exclude each other"
            executor="${1#--}"
            ;;
        --dry-run) dry_run=1 options+=("$1") ;;
        --cancel) cancel=1 options+=("$1") ;;
        --force) options+=("$1") ;;
        --stage | --stop-stage)
            [[ "${2:-}" =~ ^[0-7]$ ]] || bad_usage "$1 ${2:-}: expected a stage number from 0 to 7"
            if [[ "$1" == --stage ]]; then first="$2"; else last="$2"; fi
            shift
            ;;
        --help | -h) usage && exit 0 ;;
        -*) bad_usage "unknown option $1" ;;
        *)
            [[ -z "$seed" ]] || bad_usage "one seed at a time, got $seed and $1; run_multi_seed.sh takes several"
            [[ "$1" =~ ^[0-9]{1,10}$ ]] || bad_usage "seed $1: expected a whole number"
            seed="$((10#$1))"
            ((seed < 2147483648)) || bad_usage "seed $1: expected a number below 2147483648"
            ;;
    esac
    shift
done
((first <= last)) || bad_usage "--stage $first lies behind --stop-stage $last"
if [[ -n "$demo" ]]; then
    [[ "${MONO_S2S_PROFILE:-demo}" == demo ]] || bad_usage "--demo, but MONO_S2S_PROFILE=$MONO_S2S_PROFILE"
    export MONO_S2S_PROFILE=demo
fi
[[ -n "$executor" ]] || executor="${demo:+local}"
[[ -n "$executor" ]] || executor=slurm
if [[ "$executor" == slurm && -z "$dry_run" ]] && ! command -v sbatch >/dev/null; then
    bad_usage "no SLURM here (sbatch is not found): --local runs the stages on this machine, --demo a small experiment"
fi

stages=(submit --seed "${seed:-42}" --executor "$executor" --stage "$first" --stop-stage "$last")
stages+=(${options[@]+"${options[@]}"})
tool_python="$(plain_python)"
if [[ -n "$dry_run$cancel" ]]; then
    export PYTHONDONTWRITEBYTECODE=1
    exec "$tool_python" "$checkout/scripts/tool.py" "${stages[@]}" --python "$(chosen_python)"
fi
# A wrong setting is said now, not after the minutes that an environment takes.
PYTHONDONTWRITEBYTECODE=1 "$tool_python" "$checkout/scripts/tool.py" "${stages[@]}" --dry-run >/dev/null
if [[ "$executor" == slurm && -z "$demo" && -z "$(chosen_python)" ]]; then
    bad_usage "no environment: activate one that has the packages, or make .venv by scripts/environment.sh"
fi
python="$(packages_python)"
exec "$python" "$checkout/scripts/tool.py" "${stages[@]}" --python "$python"
