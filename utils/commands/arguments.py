"""The options of each command, with the help that describes them, and what they mean together."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap

from utils.core.errors import UsageError
from utils.core.seeds import DEFAULT_SEED, parse_seed
from utils.pipeline.stages import STAGES
from utils.slurm.options import MultiSeedOptions, RunOptions

LAST_STAGE = STAGES[-1].number
DEMO_DIRECTORY = "the demo's directory (MONO_S2S_DEMO_DIR, or demo_run/ in the checkout)"
USAGE_CODES = "Exit codes: 0 done or submitted, 1 failed, 2 wrong usage, 3 inputs {}missing or stale."


def declare_run(parser: argparse.ArgumentParser) -> None:
    parser.usage = "./run_all.sh [SEED] [OPTIONS]"
    parser.description = """\
Run the experiment of one seed. Stages that are done are skipped; the others run, and it says why. With SLURM all their
jobs are queued at once: you can log out."""
    stages = textwrap.fill("Stages: " + ", ".join(f"{stage.number} {stage.name}" for stage in STAGES) + ".", 118)
    parser.epilog = f"""\
{stages}
Settings: configs/experiment_config.py, or MONO_S2S_X=value ./run_all.sh for any constant X.
{USAGE_CODES.format("")}"""
    _seeds(parser, f"training seed (default {DEFAULT_SEED})")
    _where(parser, "the stages")
    parser.add_argument("--stage", type=_stage, default=0, metavar="N", help="start at stage N (0-7)")
    parser.add_argument("--stop-stage", type=_stage, default=LAST_STAGE, metavar="N", help="stop after stage N")
    parser.add_argument("--force", action="store_true", help="run these stages even if they are done")
    parser.add_argument(
        "--cancel", action="store_true", help="cancel the jobs that this seed's runs have in the queue, and no others"
    )


def declare_seeds(parser: argparse.ArgumentParser) -> None:
    parser.usage = "./run_multi_seed.sh SEED SEED... [OPTIONS]"
    parser.description = """\
Run the experiment for several training seeds (at least two), and aggregate them. Setup and data are made once for all;
MAX_PARALLEL_SEEDS (a setting) of them run side by side; the aggregate runs after all of them, however they ended, and
names the seeds that are missing. The same command again adds only what is missing."""
    parser.epilog = USAGE_CODES.format("(or seeds) ")
    _seeds(parser, "training seeds, each once")
    _where(parser, "the seeds")
    parser.add_argument("--force", action="store_true", help="run the stages even if they are done")
    parser.add_argument(
        "--cancel",
        action="store_true",
        help="cancel the jobs that these seeds and their aggregate have in the queue, and no others",
    )
    parser.add_argument(
        "--variants",
        default="",
        metavar="FILE",
        help='all this for each experiment of a JSON file, {"name": {"SETTING": value}}, in directories of its own, '
        "and a page of quality against robustness",
    )


def declare_status(parser: argparse.ArgumentParser) -> None:
    parser.usage = "./check_training_status.sh [SEED...] [OPTIONS]"
    parser.description = """\
One table per seed: which stages are done, running (where, how far, time left), queued or waiting (for what), failed,
timed out, out of memory, cancelled or stale, and where the log is. It asks SLURM once and changes nothing. What SLURM
does not tell is called unknown."""
    parser.epilog = "Exit codes: 0 whatever the stages' state, 2 wrong usage."
    _seeds(parser, "training seeds (default: every seed that was ever run)")
    parser.add_argument("--watch", action="store_true", help="look again every 15 seconds, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    _demo(parser, "the demo's runs")


def declare_diagnose(parser: argparse.ArgumentParser) -> None:
    parser.usage = "./diagnose_and_recover.sh [SEED] [OPTIONS]"
    parser.description = """\
Why the stages of a seed failed. For each it names the cause, quotes the line that shows it, and says what to do."""
    parser.epilog = "Exit codes: 0 nothing is broken, 1 something is (with --fix: that of the new run), 2 wrong usage."
    _seeds(parser, f"training seed (default {DEFAULT_SEED})")
    parser.add_argument(
        "--fix",
        action="store_true",
        help="do what is safe: remove incomplete temporary files, and run again from the first incomplete stage, where "
        "the last run ran. It never touches a setting, a checkpoint or a completion flag, and does nothing while jobs "
        "wait or run",
    )
    _demo(parser, "the demo's runs")


def declare_validate(parser: argparse.ArgumentParser) -> None:
    parser.usage = "./validate_setup.sh [OPTIONS]"
    parser.description = """\
Check environment and packages, settings, directories and free space, partitions, QoS, account and GPU type
(sbatch --test-only: nothing is queued), whether model and data can be had, and two training steps of a tiny model.
Each line is ok, warning or PROBLEM, with what to do. Then it says what a seed asks of the cluster."""
    parser.epilog = "Exit codes: 0 ready (warnings or not), 1 there is a PROBLEM, 2 wrong usage."
    _demo(parser, "for the demo")


def declare_clean_all(parser: argparse.ArgumentParser) -> None:
    parser.usage = "./clean_all.sh [OPTIONS]"
    parser.description = """\
Delete what runs made on scratch (checkpoints, caches, results there). It shows what will be deleted and how big it is,
and asks. It refuses while jobs of a run wait or run. Permanent results (PROJECT_DIR) are never touched, nor a download
cache that lies elsewhere, nor anything that it does not know."""
    parser.epilog = "Exit codes: 0 done, nothing to do or not agreed to; 1 failed; 2 wrong usage, or refused."
    parser.add_argument("--seed", type=parse_seed, metavar="N", help="only what seed N made")
    parser.add_argument(
        "--keep-cache", action="store_true", help="keep the model and the prepared data, which take long to get"
    )
    parser.add_argument("--force", action="store_true", help="do not ask")
    _demo(parser, DEMO_DIRECTORY)


def declare_clean_checkpoints(parser: argparse.ArgumentParser) -> None:
    parser.usage = "./clean_checkpoints.sh [SEED...] [OPTIONS]"
    parser.description = """\
Delete the checkpoints that nothing needs any more. The best model (what evaluation and attacks read) and what training
needs to resume are kept, and until stage 6 is done the weights of every epoch, which its quality curve needs (unless
QUALITY_CURVE_EXAMPLES is 0). It shows what will be deleted and how big it is, and asks; it refuses while jobs of such a
seed wait or run."""
    parser.epilog = "Exit codes: 0 done, nothing to do or not agreed to; 1 failed; 2 wrong usage, or refused."
    _seeds(parser, "training seeds (default: all)")
    parser.add_argument("--force", action="store_true", help="do not ask")
    _demo(parser, DEMO_DIRECTORY)


def declare_internal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+")


def run_options(options: argparse.Namespace) -> RunOptions:
    """UsageError where the options of run_all.sh contradict each other."""
    if options.stage > options.stop_stage:
        raise UsageError(f"--stage {options.stage} comes after --stop-stage {options.stop_stage} (see --help)")
    return RunOptions(
        seed=one_seed(options.seeds),
        executor=_executor(options, "runs the stages"),
        demo=options.demo,
        first=options.stage,
        last=options.stop_stage,
        force=options.force,
        dry_run=options.dry_run,
        cancel=options.cancel,
    )


def multi_seed_options(options: argparse.Namespace) -> MultiSeedOptions:
    """UsageError where seeds are missing or given twice."""
    seeds = options.seeds
    if len(seeds) < 2:
        raise UsageError(f"at least two seeds, got {len(seeds)}; run_all.sh runs one (see --help)")
    twice = next((seed for number, seed in enumerate(seeds) if seed in seeds[:number]), None)
    if twice is not None:
        raise UsageError(f"seed {twice} is given twice: it would be one run counted twice")
    return MultiSeedOptions(
        seeds=tuple(seeds),
        executor=_executor(options, "runs the seeds"),
        demo=options.demo,
        force=options.force,
        dry_run=options.dry_run,
        cancel=options.cancel,
        variants=options.variants,
    )


def one_seed(seeds: list[int]) -> int:
    """The seed of a command that takes one."""
    if len(seeds) > 1:
        raise UsageError(f"one seed at a time, got {seeds[0]} and {seeds[1]}; run_multi_seed.sh runs several")
    return seeds[0] if seeds else DEFAULT_SEED


def is_utf8(text: str) -> bool:
    """Whether the bytes that a terminal sent were UTF-8 (Python marks others by lone surrogates)."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def in_words(message: str) -> str:
    """An argparse message as this project words it: the option first, then what is wrong with it."""
    message = re.sub(r"^argument (-\S+): ", r"\1 ", message)
    message = re.sub(r"^unrecognized arguments: ", "unknown option ", message)
    return re.sub(r"not allowed with argument (\S+)$", r"and \1 exclude each other", message)


def _executor(options: argparse.Namespace, does: str) -> str:
    executor = "local" if options.local or (options.demo and not options.slurm) else "slurm"
    if executor == "slurm" and not (options.dry_run or options.cancel) and not shutil.which("sbatch"):
        raise UsageError(
            f"no SLURM here (sbatch is not found): --local {does} on this machine, --demo a small experiment"
        )
    return executor


def _seeds(parser: argparse.ArgumentParser, description: str) -> None:
    parser.add_argument("seeds", nargs="*", type=parse_seed, metavar="SEED", help=description)


def _where(parser: argparse.ArgumentParser, subject: str) -> None:
    parser.add_argument(
        "--demo",
        action="store_true",
        help="the small experiment: own corpus and model, minutes on a CPU, runs here unless --slurm",
    )
    executor = parser.add_mutually_exclusive_group()
    executor.add_argument("--local", action="store_true", help=f"run {subject} here instead of by SLURM")
    executor.add_argument(
        "--slurm", action="store_true", help="hand them to SLURM (what happens unless --local or --demo)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would run, why, and the exact sbatch lines; touch nothing"
    )


def _demo(parser: argparse.ArgumentParser, description: str) -> None:
    parser.add_argument("--demo", action="store_true", help=description)


def _stage(text: str) -> int:
    if text not in [str(number) for number in range(LAST_STAGE + 1)]:
        raise argparse.ArgumentTypeError(f"{text}: expected a stage number from 0 to {LAST_STAGE}")
    return int(text)
