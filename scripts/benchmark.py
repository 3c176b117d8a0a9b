"""Measure the speed of training, generation, scoring and attacks beside what a user would otherwise have.

Every case runs our path and its references in turn, and checks beside each timing that they agree.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CASES = ("training", "generation", "hotflip", "uat", "rouge", "bootstrap", "startup")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("case", nargs="+", choices=(*CASES, "all"), help="what to measure; all: everything")
    parser.add_argument(
        "--size",
        choices=("tiny", "small", "t5-small"),
        help="shapes; default: t5-small on a GPU, else small",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="repetitions of everything; default: 3")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch on a CPU; default: one per core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: must be at least 1")
    if options.threads is not None and options.threads < 1:
        parser.error("--threads: must be at least 1")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: {options.json.parent} is not a directory")
    return measure(options)


def measure(options: argparse.Namespace) -> int:
    import dataclasses
    import importlib

    import torch

    from utils.benchmarks import report
    from utils.benchmarks.synthetic import SIZES, on_gpu
    from utils.core.errors import StageError
    from utils.core.files import write_json
    from utils.modeling.models import choose_device, quiet_transformers

    try:
        device = choose_device(options.device)
    except StageError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return error.exit_code
    if options.threads:
        torch.set_num_threads(options.threads)
    quiet_transformers()
    size = SIZES[options.size or ("t5-small" if device == "cuda" else "small")]
    if device == "cuda" and size.name != "tiny":
        size = on_gpu(size)
    if options.rounds:
        size = dataclasses.replace(size, rounds=options.rounds)
    facts = report.circumstances(device, size.name)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    results = {}
    for name in CASES if "all" in options.case else dict.fromkeys(options.case):
        results[name] = importlib.import_module(f"utils.benchmarks.{name}").case(size, device)
        for found in results[name]:
            print("\n" + report.as_text(found), flush=True)
        if options.json is not None:
            write_json(options.json, report.as_json(facts, results))
    missed = [line for comparisons in results.values() for found in comparisons for line in report.missed(found)]
    print("\n" + ("Targets missed:\n  " + "\n  ".join(missed) if missed else "All targets reached."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
