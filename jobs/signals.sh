# shellcheck shell=bash
# The stage as a child of the wrapper: signals reach it, and a job that was stopped before its end goes back to the queue.
# Sourced by jobs/common.sh, whose variables it uses.
# shellcheck disable=SC2034,SC2154 # they are set and read there

# The trap only notes and passes on; `wait` returns at once when a signal comes, and is called again.
on_signal() {
    caught="$1"
    log "got SIG$1"
    if [[ "$1" == USR1 && "$resumable" == 0 ]]; then
        log "the time limit is near; this stage cannot stop half-way and continues"
    elif [[ -n "$payload" ]]; then
        kill -s "${1/HUP/TERM}" "$payload" 2>/dev/null || true # a closed terminal asks to stop, as TERM does
    fi
}

run_payload() {
    local name before
    for name in USR1 TERM INT HUP; do
        # shellcheck disable=SC2064 # the name is meant now
        trap "on_signal $name" "$name"
    done
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

# How often SLURM has restarted this very job. SLURM_RESTART_COUNT is not set at a job's first start, so it may be that
# of a job from whose shell this one was submitted.
restarts() {
    local count
    count="$(scontrol show job "$batch_job" 2>/dev/null | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p;T;q')" || true
    printf '%s\n' "${count:-${SLURM_RESTART_COUNT:-0}}"
}

# After the time-limit warning, or a preemption that leaves the job running for its grace time, the job goes back to the
# queue. A job that SLURM itself is ending or requeueing (scancel, node failure) is left to it.
requeue_if_stopped() {
    local count why='the time limit is near' state
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
    count="$(restarts)"
    if ((count >= max_requeues)); then
        log "not requeued: $why, but it was $count times already (SLURM_MAX_REQUEUES). ./run_all.sh resumes from here."
        return 0
    fi
    log "requeue $((count + 1)) of $max_requeues: $why. Progress is saved."
    if scontrol requeue "$batch_job"; then
        requeued=1
    else
        log "SLURM refused to requeue. ./run_all.sh resumes from here."
    fi
}
