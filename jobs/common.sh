# shellcheck shell=bash
# What all job wrappers do: find the interpreter, open the log, run the stage, pass signals on to it, requeue the job.
# A wrapper sources this and calls: run_stage NUMBER "$@"

unset CDPATH     # cd prints where it went if this is set, and may go elsewhere
trap '' PIPE     # a reader of our output that is gone (| head) must not end the job
jobs_directory="$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
checkout="$(dirname -- "$jobs_directory")"
# Inside a batch job SLURM runs a copy of the wrapper; started by hand in an allocation it must not requeue that.
batch_job=''
if [[ ! "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[1]}")")" -ef "$jobs_directory" ]]; then
    batch_job="${SLURM_JOB_ID:-}"
fi
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"
# shellcheck source=jobs/signals.sh
source "$checkout/jobs/signals.sh"

# A log that cannot be written (full disk, quota, closed terminal) must not end the job: `set -e` is on.
log() { printf '%s job %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "${batch_job:-here}" "$*" 2>/dev/null || true; }

usage() {
    cat <<END
$2: run stage $1 of the experiment, as a job (sbatch, from any directory) or here (bash).
  --seed N         training seed (default 42)
  --settings FILE  frozen settings of a run (default: configs/experiment_config.py and MONO_S2S_ variables)
  --python PATH    interpreter with the packages (default: the active environment, or .venv in the checkout)
  --shards N       this is a task of a job array 0-(N-1) whose tasks share the stage (default: do all of it)
  --force          make the stage anew: its earlier progress is removed, once (a requeue resumes)
  --help
SLURM's own options go before the wrapper: sbatch --time=6:00:00 jobs/$2. Exit codes: those of the stage.
END
}

bad_usage() {
    printf '%s: %s (see --help)\n' "$script" "$*" >&2
    exit 2
}

# A wrapper submitted alone says /dev/null in its header: a relative path would kill the job without a word
# wherever there is no such directory. The log opens here.
open_log() {
    local logs="$checkout/logs" name="${script%.sh}_$batch_job"
    if [[ "$(readlink "/proc/$$/fd/1")" == /dev/null ]]; then
        mkdir -p -- "$logs" 2>/dev/null || true
        [[ -w "$logs" ]] || logs="${SLURM_SUBMIT_DIR:-$PWD}"
        [[ ! -w "$logs" ]] || exec >>"$logs/$name.out" 2>>"$logs/$name.err"
    fi
    log "host $HOSTNAME" >&2 # what is above belongs to an earlier attempt: diagnosis must not judge it
}

log_head() {
    log "host $HOSTNAME, $("$python" --version 2>&1 || true), $python"
    log "checkout $checkout${code:+, code $code}"
    [[ -z "$batch_job" ]] || env | grep '^SLURM_' | sort 2>/dev/null || true
    log "command: ${command[*]}"
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

run_stage() {
    local number="$1" started=$SECONDS facts
    shift
    script="$(basename -- "$(echo "$checkout"/jobs/job_"$number"_*.sh)")"
    parse_options "$number" "$@"
    [[ -z "$settings" ]] || export MONO_S2S_SETTINGS_FILE="$settings"
    facts="$("$python" "$checkout/scripts/mono_s2s.py" job-facts "$number")" || exit 2
    { read -r setup_line; read -r max_requeues; read -r resumable; read -r code; } <<<"$facts"
    if [[ -n "$setup_line" ]]; then
        trap 'log "JOB_SETUP failed: $setup_line"; exit 1' EXIT
        set +u # module and conda scripts are not written for it
        eval "$setup_line"
        set -u
        trap - EXIT
    fi
    # Threads that wait sleep instead of spinning: on cores that others use too, spinning costs a factor of ten.
    export PYTHONUNBUFFERED=1 OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
    [[ -z "$batch_job" ]] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    command=("$python" "$checkout"/scripts/stage_"$number"_*.py --seed "$seed")
    [[ -z "$settings" ]] || command+=(--settings "$settings")
    [[ -z "$shard" ]] || command+=(--shard "$shard")
    [[ -z "$force" ]] || command+=(--force)
    [[ -z "$force" || -z "$batch_job" ]] || command+=(--forced-by "job ${batch_job%%_*} of ${SLURM_CLUSTER_NAME:-SLURM}")
    log_head
    run_payload
    requeue_if_stopped
    log "stage $number: exit status $status after $((SECONDS - started)) s"
    if [[ -n "$requeued" ]]; then # SLURM ends the job now; an exit of ours could come first, and count as its failure
        trap - TERM
        sleep 300
    fi
    exit "$status"
}

parse_options() {
    local number="$1" shards=''
    shift
    seed=42 settings='' python='' force='' shard='' payload='' caught='' requeued='' status=0
    while (($#)); do
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
    [[ "$seed" =~ ^[0-9]+$ ]] || bad_usage "seed $seed: expected a whole number"
    [[ -z "$settings" || -f "$settings" ]] || bad_usage "--settings $settings: no such file"
    [[ -z "$shards" || "$shards" =~ ^[1-9][0-9]*$ ]] || bad_usage "--shards $shards: expected a number from 1"
    find_python
}
