"""Measure the speed of training, generation and attacks on this machine, beside what a user would otherwise have.

Every case runs our path and transformers in turn, and checks that they compute the same. Times are of the wall clock:
measure on a machine that does nothing else, on CPUs with OMP_NUM_THREADS=N for N threads.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CASES = ("training", "generation", "attacks")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("case", nargs="+", choices=(*CASES, "all"), help="what to measure; all: everything")
    sizes = ("tiny", "small", "t5-small")
    parser.add_argument("--size", choices=sizes, help="shapes; default: t5-small on a GPU, else small")
    devices = ("auto", "cpu", "cuda")
    parser.add_argument("--device", choices=devices, default="auto", help="default: a GPU if there is one")
    parser.add_argument("--rounds", type=int, metavar="N", help="repetitions of everything; default: 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: must be at least 1")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: {options.json.parent} is not a directory")

    from utils.core.errors import StageError

    try:
        measure(options)
    except StageError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure(options: argparse.Namespace) -> None:
    """Run the cases that were asked for; print each when it is done, and write the JSON anew."""
    import dataclasses
    import importlib

    from utils.benchmarks import report
    from utils.benchmarks.synthetic import SIZES
    from utils.core.files import write_json
    from utils.modeling.models import choose_device
    from utils.modeling.tokenizer import quiet_transformers

    device = choose_device(options.device)
    quiet_transformers()
    size = SIZES[options.size or ("t5-small" if device == "cuda" else "small")]
    if device == "cuda" and size.name != "tiny":  # a few seconds of work there
        size = dataclasses.replace(size, training_steps=120, summaries=512, attacked=32)
    size = dataclasses.replace(size, rounds=options.rounds or size.rounds)
    facts = report.circumstances(device, size.name)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    facts["cases"] = {}
    for name in CASES if "all" in options.case else dict.fromkeys(options.case):
        comparisons = importlib.import_module(f"utils.benchmarks.{name}").case(size, device)
        for comparison in comparisons:
            print("\n" + report.as_text(comparison), flush=True)
        facts["cases"][name] = [report.as_json(comparison) for comparison in comparisons]
        if options.json is not None:
            write_json(options.json, facts)


if __name__ == "__main__":
    sys.exit(main())
