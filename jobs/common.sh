# shellcheck shell=bash
# What all job wrappers do: find the interpreter, open the log, run the stage, pass signals on to it, requeue the job.
# A wrapper sources this and calls: run_stage NUMBER "$@"

unset CDPATH     # cd prints where it went if this is set, and may go elsewhere
trap '' PIPE     # a reader of our output that is gone (| head) must not end the job
jobs_directory="$(builtin cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && builtin pwd)"
checkout="$(dirname -- "$jobs_directory")"
# Inside a batch job SLURM runs a copy of the wrapper; started by hand in an allocation it must not requeue that.
batch_job=''
if [[ ! "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[1]}")")" -ef "$jobs_directory" ]]; then
    batch_job="${SLURM_JOB_ID:-}"
    # What the submitting shell set for its own queries: filters, formats, other clusters than the one that runs this.
    unset SLURM_CLUSTERS "${!SQUEUE_@}" "${!SCONTROL_@}"
fi
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"
# shellcheck source=jobs/options.sh
source "$checkout/jobs/options.sh"
# shellcheck source=jobs/signals.sh
source "$checkout/jobs/signals.sh"

# A log that cannot be written (full disk, quota, closed terminal) must not end the job: `set -e` is on.
log() { printf '%s job %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "${batch_job:-here}" "$*" 2>/dev/null || true; }

log_head() {
    log "host $HOSTNAME, $("$python" --version 2>&1 || true), $python"
    log "checkout $checkout${code:+, code $code}"
    [[ -z "$batch_job" ]] || env | grep '^SLURM_' | sort 2>/dev/null || true
    log "command: ${command[*]}"
}

run_stage() {
    local number="$1" started=$SECONDS facts
    shift
    script="$(basename -- "$(echo "$checkout"/jobs/job_"$number"_*.sh)")"
    parse_options "$number" "$@"
    [[ -z "$settings" ]] || export MONO_S2S_SETTINGS_FILE="$settings"
    facts="$("$python" "$checkout/scripts/mono_s2s.py" job-facts "$number" "$seed")" ||
        bad_usage "the seed or the settings are wrong, see above"
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
    if [[ -n "$batch_job" ]]; then
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
        SLURM_RESTART_COUNT="$(restarts)" && export SLURM_RESTART_COUNT # what result files record
    fi
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
