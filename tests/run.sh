#!/usr/bin/env bash
# Every test of the project, and its gates: shellcheck, ruff, mypy, pytest. Makes .venv where no environment is active.
set -euo pipefail
checkout="$(CDPATH='' builtin cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && builtin pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"

usage() {
    cat <<'END'
tests/run.sh [--quick] [PYTEST OPTIONS]: shellcheck, ruff, mypy and every test; about ten minutes on two cores. Works
from any directory.
  --quick    only what takes seconds: no SLURM, no whole experiment; about a minute on two cores
  -k WORD    only tests with WORD in their name; other options of pytest, and files, work as well
  --help     this text
All tests run in TEST_WORKERS processes (3, as those on SLURM mostly wait; --quick: 2), anything else in one.
The tests on a real SLURM start their own (slurmctld, slurmd and munge; Debian: apt-get install slurmctld slurmd
slurm-client munge) and are skipped, with the reason, where it is not installed. TEST_SLURM=required makes that an error.
END
}

words=() workers=(-n "${TEST_WORKERS:-3}" --dist loadfile) started=$SECONDS
for word in "$@"; do
    case "$word" in
        --help | -h) usage && exit 0 ;;
        --quick) words+=(-m "not slurm and not slow") workers=(-n "${TEST_WORKERS:-2}" --dist loadfile) ;;
        *) words+=("$word") workers=() ;; # a file or a word: what starts at once, and a debugger can stop
    esac
done

python="$(packages_python "$checkout/requirements-dev.txt")"
tools="$(dirname -- "$python")"
cd -- "$checkout"
export PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" # as jobs/common.sh
# Models of the tests are so small that a second thread costs more than it does: a whole experiment 98 s instead of 41.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
mapfile -d '' shell_files < <(find . -name '*.sh' -not -path './.venv/*' -not -path './demo_run/*' -print0 | sort -z)

failed=0 # every gate runs, whatever the others found
say "shellcheck: ${#shell_files[@]} files"
"$tools/shellcheck" --external-sources "${shell_files[@]}" .ci/run || failed=1
say "ruff"
"$tools/ruff" check --quiet . || failed=1
"$tools/ruff" format --check --quiet . || failed=1
say "mypy (beside the tests), pytest"
mypy_says="$(mktemp)"
trap 'rm -f -- "$mypy_says"' EXIT
"$tools/mypy" >"$mypy_says" 2>&1 & # half a minute of one core the first time; .mypy_cache (MYPY_CACHE_DIR) remembers
mypy_job=$!
"$python" -m pytest -p no:cacheprovider -q --durations=15 ${workers[@]+"${workers[@]}"} ${words[@]+"${words[@]}"} || failed=$?
if ! wait "$mypy_job"; then
    say "mypy"
    cat -- "$mypy_says" >&2
    failed=1
fi
((failed == 0)) || say "failed: see above"
say "tests took $((SECONDS - started)) s"
exit "$failed"
