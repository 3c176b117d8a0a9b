#!/usr/bin/env bash
# One seed of the experiment: hand the whole stage graph to SLURM and return in seconds, or run it here. Options: --help
set -euo pipefail
checkout="$(CDPATH='' builtin cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && builtin pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"
mono_s2s run "$@"
