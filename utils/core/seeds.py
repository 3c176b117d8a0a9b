"""How a seed is read from a command line, everywhere by one rule. Standard library only."""

from __future__ import annotations

import argparse

from utils.core.errors import UsageError

DEFAULT_SEED = 42  # of commands and wrappers that are given none
LARGEST_SEED = 2**31 - 1  # what NumPy, torch and C programs take alike


def parse_seed(text: str) -> int:
    """A whole number from 0 to 2147483647 in decimal digits; UsageError for anything else."""
    digits = text.lstrip("0") or text[-1:]  # leading zeros are allowed; int() of thousands of digits is not
    if not (text.isascii() and text.isdigit()) or len(digits) > 10 or int(digits) > LARGEST_SEED:
        raise UsageError(f"seed {text}: expected a whole number from 0 to {LARGEST_SEED}")
    return int(digits)


def seed_argument(text: str) -> int:
    """`parse_seed` as the type of an argparse argument."""
    try:
        return parse_seed(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
