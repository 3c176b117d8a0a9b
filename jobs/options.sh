# shellcheck shell=bash
# What a wrapper is told, where its log goes, and which interpreter it uses. Sourced by jobs/common.sh.
# shellcheck disable=SC2034,SC2154 # set or read there

usage() {
    cat <<END
$2: run stage $1 of the experiment, as a job (sbatch, from any directory) or here (bash).
  --seed N         training seed (default 42)
  --settings FILE  frozen settings of a run (default: configs/experiment_config.py and MONO_S2S_ variables)
  --python PATH    interpreter with the packages (default: the active environment, or .venv in the checkout)
  --shards N       this is a task of a job array 0-(N-1) whose tasks share the stage (default: do all of it)
  --force          run the stage from scratch: its earlier progress is removed, once (a requeue resumes)
  --help
SLURM's own options go before the wrapper: sbatch --time=6:00:00 jobs/$2. Exit codes: those of the stage.
END
}

bad_usage() {
    [[ -z "$batch_job" ]] || open_log # a job's own output may go to /dev/null
    printf '%s: %s (see --help)\n' "$script" "$*" >&2
    exit 2
}

log_opened=''
# A wrapper submitted alone says /dev/null in its header: a relative path would kill the job without a word
# wherever there is no such directory. The log opens here.
open_log() {
    local logs="$checkout/logs" name="${script%.sh}_$batch_job"
    [[ -z "$log_opened" ]] || return 0
    log_opened=1
    if [[ "$(readlink "/proc/$$/fd/1")" == /dev/null ]]; then
        mkdir -p -- "$logs" 2>/dev/null || true
        for logs in "$logs" "${SLURM_SUBMIT_DIR:-$PWD}" "${HOME:-}" /tmp; do [[ ! -w "$logs" ]] || break; done
        [[ ! -w "$logs" ]] || exec >>"$logs/$name.out" 2>>"$logs/$name.err"
    fi
    log "host $HOSTNAME" >&2 # what is above belongs to an earlier attempt: diagnosis must not judge it
}

# The interpreter. A job makes no environment of its own: it would install packages on a GPU node, or fail to.
find_python() {
    if [[ -z "$python" && -z "$batch_job" ]]; then
        python="$(packages_python)" || exit 2
    elif [[ -z "$python" ]]; then
        python="$(chosen_python)"
        [[ -n "$python" ]] || bad_usage "no environment is active in this job and the checkout has no .venv (sbatch" \
            "--export=NONE hides what your shell had). Give --python PATH, or make .venv first: scripts/environment.sh"
    fi
    command -v -- "$python" >/dev/null || bad_usage "the interpreter $python does not exist: was its environment deleted?"
}

# One rule for seeds, here as everywhere (utils/core/seeds.py).
check_seeds() {
    local python problem
    python="$(plain_python)" || exit 2
    problem="$("$python" "$checkout/scripts/mono_s2s.py" check-seeds "$@" 2>&1)" || bad_usage "${problem#check-seeds: }"
}

parse_options() {
    local number="$1" shards=''
    shift
    seed=42 settings='' python='' force='' shard='' payload='' caught='' requeued='' status=0
    while (($#)); do
        [[ "$1" != --[sp]*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}" # all but --force take a value
        case "$1" in
            --seed | --settings | --python | --shards)
                (($# > 1)) || bad_usage "$1 needs a value"
                printf -v "${1#--}" '%s' "$2"
                shift
                ;;
            --force) force=1 ;;
            --help | -h) usage "$number" "$script" && exit 0 ;;
            *) bad_usage "unknown option $1" ;;
        esac
        shift
    done
    # Variables of an array are believed only with --shards: sbatch hands on those of a task that it was called from.
    if [[ -n "$shards" && -n "$batch_job" && -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
        batch_job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
        shard="$SLURM_ARRAY_TASK_ID/$shards"
    fi
    [[ -z "$batch_job" ]] || open_log
    [[ -z "$batch_job" || -z "${SLURM_ARRAY_TASK_ID:-}" || -n "$shard" ]] ||
        log "array variables without --shards N: taken for those of another job, so this one does the whole stage"
    [[ -n "$batch_job" ]] || check_seeds "$seed" # in a job job-facts does: a typed one must not make .venv before
    [[ -z "$settings" || -f "$settings" ]] || bad_usage "--settings $settings: no such file"
    [[ -z "$shards" || "$shards" =~ ^[1-9][0-9]*$ ]] || bad_usage "--shards $shards: expected a number from 1"
    find_python
}
