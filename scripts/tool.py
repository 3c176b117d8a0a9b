"""Entry point of the shell commands: tool.py NAME [OPTIONS] runs main() of one torch-free module of utils/."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TOOLS = {
    "packages": "utils.core.packages",
    "job-facts": "utils.slurm.job_facts",
    "submit": "utils.slurm.submission",
    "multi-seed": "utils.slurm.multi_seed_submission",
    "status": "utils.operations.status",
    "diagnose": "utils.operations.diagnosis",
    "validate": "utils.operations.validation",
    "clean": "utils.operations.cleanup",
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TOOLS:
        print(f"tool.py: give one of {', '.join(TOOLS)}. The shell commands of the checkout call it.", file=sys.stderr)
        sys.exit(2)
    module = importlib.import_module(TOOLS[sys.argv[1]])
    sys.exit((module.command if hasattr(module, "command") else module.main)(sys.argv[2:]))
