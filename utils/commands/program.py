"""Which command is meant, its options, and what becomes of its errors. Imports little before the options are right.

Each shell command of the checkout hands its words to `main` as they are. A wrong option is one line on stderr and exit
code 2; whatever a command raises for its user is one line as well, with the exit code of the error's class.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from utils.commands import arguments
from utils.core.errors import UsageError, UserError, explain
from utils.core.output import drop_what_cannot_be_written, keep_working_without_reader, open_closed_streams, quiet_end
from utils.core.seeds import parse_seed
from utils.core.settings import as_typed


@dataclass(frozen=True)
class Command:
    """One command: its name for the user, how it declares its options, and what runs it.

    `acts`: it changes something, so it does its work to the end even if nobody reads its output any more.
    """

    shown: str
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    acts: bool = False


class _Parser(argparse.ArgumentParser):
    """Errors are one line that names the command and the option."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{arguments.in_words(message)} (see --help)")


def _run(options: argparse.Namespace) -> int:
    from utils.slurm import submission

    return submission.main(arguments.run_options(options))


def _seeds(options: argparse.Namespace) -> int:
    from utils.slurm import multi_seed_submission, variants

    chosen = arguments.multi_seed_options(options)
    return variants.main(chosen) if chosen.variants else multi_seed_submission.main(chosen)


def _status(options: argparse.Namespace) -> int:
    from utils.operations import status

    return status.main(options.seeds, watch=options.watch, as_json=options.json)


def _diagnose(options: argparse.Namespace) -> int:
    from utils.operations import diagnosis

    return diagnosis.main(arguments.one_seed(options.seeds), fix=options.fix)


def _validate(options: argparse.Namespace) -> int:
    from utils.operations import validation
    from utils.slurm.interpreter import chosen_python

    return validation.main(chosen_python())


def _clean_all(options: argparse.Namespace) -> int:
    from utils.operations import cleanup

    return cleanup.clean_all(options.seed, keep_cache=options.keep_cache, force=options.force)


def _clean_checkpoints(options: argparse.Namespace) -> int:
    from utils.operations import cleanup

    return cleanup.clean_checkpoints(options.seeds, force=options.force)


def _check_seeds(options: argparse.Namespace) -> int:
    for word in options.words:
        parse_seed(word)
    return 0


def _internal(module: str) -> Callable[[argparse.Namespace], int]:
    return lambda options: int(importlib.import_module(module).main(options.words))


COMMANDS = {
    "run": Command("run_all.sh", arguments.declare_run, _run, acts=True),
    "seeds": Command("run_multi_seed.sh", arguments.declare_seeds, _seeds, acts=True),
    "status": Command("check_training_status.sh", arguments.declare_status, _status),
    "diagnose": Command("diagnose_and_recover.sh", arguments.declare_diagnose, _diagnose, acts=True),
    "validate": Command("validate_setup.sh", arguments.declare_validate, _validate),
    "clean-all": Command("clean_all.sh", arguments.declare_clean_all, _clean_all, acts=True),
    "clean-checkpoints": Command(
        "clean_checkpoints.sh", arguments.declare_clean_checkpoints, _clean_checkpoints, acts=True
    ),
    # What the shell layer asks: packages that an interpreter lacks, what a job wrapper needs to know, what is a seed.
    "packages": Command("packages", arguments.declare_internal, _internal("utils.core.packages")),
    "check-seeds": Command("check-seeds", arguments.declare_internal, _check_seeds),
    "job-facts": Command("job-facts", arguments.declare_internal, _internal("utils.slurm.job_facts")),
}


def main(words: Sequence[str]) -> int:
    """Run the command that the first word names; returns the exit code."""
    name = words[0] if words else ""
    if name not in COMMANDS:
        print(f"mono_s2s.py: {name or 'no command'}: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return UsageError.exit_code
    command = COMMANDS[name]
    open_closed_streams()
    if command.acts:
        keep_working_without_reader(OSError)
    try:
        options = _parse(command, list(words[1:]))
        code = command.run(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(as_typed(f"{command.shown}: {error}"), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return quiet_end()
    except OSError as error:
        print(f"{command.shown}: {explain(error, 'the output of this command')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command.shown}: interrupted.", file=sys.stderr)
        return 130
    finally:
        drop_what_cannot_be_written()


def _parse(command: Command, words: list[str]) -> argparse.Namespace:
    for word in words:
        if not arguments.is_utf8(word):
            raise UsageError(f"{word!r}: this argument is not UTF-8")
    parser = _Parser(
        prog=f"./{command.shown}", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    command.declare(parser)
    # Intermixed: options may stand before, between and behind the seeds.
    options = parser.parse_intermixed_args(words)
    if getattr(options, "demo", False):
        profile = os.environ.get("MONO_S2S_PROFILE", "demo")
        if profile != "demo":
            raise UsageError(f"--demo, but MONO_S2S_PROFILE={profile}: choose one (see --help)")
        os.environ["MONO_S2S_PROFILE"] = "demo"
    return options
