# shellcheck shell=bash
# What all job wrappers do: find the interpreter, open the log, run the stage, pass signals on to it, requeue the job.
# A wrapper sources this and calls: run_stage NUMBER "$@"

checkout="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
wrapper="$(basename -- "${BASH_SOURCE[1]:-job}")"
# Inside a batch job SLURM runs a copy of the wrapper; started by hand in an allocation it must not requeue that.
batch_job=''
if [[ -n "${SLURM_JOB_ID:-}" && ! "${BASH_SOURCE[1]}" -ef "$checkout/jobs/$wrapper" ]]; then
    batch_job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
fi
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"

log() { printf '%s job %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "${batch_job:-here}" "$*"; }

usage() {
    cat <<END
$2: run stage $1 of the experiment, as a job (sbatch, from any directory) or here (bash).
  --seed N         training seed (default 42)
  --settings FILE  frozen settings of a run (default: configs/experiment_config.py and MONO_S2S_ variables)
  --python PATH    interpreter with the packages (default: the active environment, or .venv in the checkout)
  --shards N       number of tasks of the job array that share the stage (default: the array's own)
  --force          run even if the stage is done
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
    [[ "$(readlink "/proc/$$/fd/1")" == /dev/null ]] || return 0
    mkdir -p -- "$checkout/logs"
    exec >>"$checkout/logs/${script%.sh}_$batch_job.out" 2>>"$checkout/logs/${script%.sh}_$batch_job.err"
}

log_head() {
    log "host $HOSTNAME, $("$python" --version), $python"
    log "code $(git -C "$checkout" rev-parse HEAD 2>/dev/null || echo unknown) in $checkout"
    [[ -z "$batch_job" ]] || env | grep '^SLURM_' | sort
    log "command: ${command[*]}"
}

# The trap only notes and passes on; `wait` returns at once when a signal comes, and is called again.
on_signal() {
    caught="$1"
    log "got SIG$1"
    if [[ "$1" == USR1 && "$resumable" == 0 ]]; then
        log "the time limit is near; this stage cannot stop half-way and goes on"
    elif [[ -n "$payload" ]]; then
        kill -s "${1/HUP/TERM}" "$payload" 2>/dev/null || true # a closed terminal asks to stop, as TERM does
    fi
}

run_payload() {
    local before
    set -m # a process group of its own: Ctrl-C reaches the stage once, through the trap
    "${command[@]}" &
    payload=$!
    set +m
    [[ -z "$caught" ]] || on_signal "$caught"
    while :; do
        before="$caught"
        wait "$payload" && status=0 || status=$?
        [[ "$caught" != "$before" ]] || break
    done
}

# After the time-limit warning, or a preemption that leaves the job running for its grace time, the job goes back to the
# queue. A job that SLURM itself is ending or requeueing (scancel, node failure) is left to it.
requeue_if_stopped() {
    local count="${SLURM_RESTART_COUNT:-0}" why='the time limit is near' state
    [[ "$status" != 0 && -n "$batch_job" ]] || return 0
    case "$caught" in
        USR1) [[ "$resumable" == 1 ]] || return 0 ;;
        TERM)
            state="$(squeue --noheader --jobs="$batch_job" --format=%T 2>/dev/null || true)"
            if [[ "$state" != RUNNING ]]; then
                log "not requeued here: SLURM is ending this job (${state:-state unknown})"
                return 0
            fi
            why='preempted'
            ;;
        *) return 0 ;;
    esac
    if ((count >= max_requeues)); then
        log "not requeued: $why, but it was $count times already (SLURM_MAX_REQUEUES). ./run_all.sh goes on from here."
        return 0
    fi
    log "requeue $((count + 1)) of $max_requeues: $why. What is done is saved."
    if scontrol requeue "$batch_job"; then
        requeued=1
    else
        log "SLURM refused to requeue. ./run_all.sh goes on from here."
    fi
}

run_stage() {
    local number="$1" started=$SECONDS facts
    shift
    script="$(basename -- "$(echo "$checkout"/jobs/job_"$number"_*.sh)")"
    parse_options "$number" "$@"
    [[ -z "$batch_job" ]] || open_log
    [[ -n "$python" ]] || python="$(packages_python)" || exit 2
    [[ -z "$settings" ]] || export MONO_S2S_SETTINGS_FILE="$settings"
    facts="$("$python" "$checkout/scripts/mono_s2s.py" job-facts "$number")" || exit 2
    { read -r setup_line; read -r max_requeues; read -r resumable; } <<<"$facts"
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
    log_head
    for name in USR1 TERM INT HUP; do
        # shellcheck disable=SC2064 # the name is meant now
        trap "on_signal $name" "$name"
    done
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
    [[ "$seed" =~ ^[0-9]+$ ]] || bad_usage "seed $seed: expected a whole number"
    [[ -z "$settings" || -f "$settings" ]] || bad_usage "--settings $settings: no such file"
    [[ -n "${SLURM_ARRAY_TASK_ID:-}" && -n "$batch_job" ]] || return 0
    # shellcheck disable=SC2153 # SLURM sets them
    if [[ -z "$shards" && "0-$((SLURM_ARRAY_TASK_COUNT - 1))" == "$SLURM_ARRAY_TASK_MIN-$SLURM_ARRAY_TASK_MAX" ]]; then
        shards="$SLURM_ARRAY_TASK_COUNT"
    fi
    [[ "$shards" =~ ^[1-9][0-9]*$ ]] || bad_usage "an array of some tasks alone needs --shards N, the number of all"
    shard="$SLURM_ARRAY_TASK_ID/$shards"
}
