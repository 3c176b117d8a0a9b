"""Summarise a text with a model of the experiment, decoded as the evaluation does it."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.core.errors import InputError, UsageError, UserError
from utils.core.names import ARMS, MONOTONIC, STANDARD
from utils.core.paths import Paths
from utils.core.seeds import seed_argument
from utils.core.settings import load_settings, run_command

EXAMPLES = """examples:
  scripts/summarize.py --model monotonic "The council met on Monday. ..."
  scripts/summarize.py --model baseline --seed 7 - < article.txt
  scripts/summarize.py --model-dir my_t5 "..."
exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such model"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="summarize.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("text", help="the text; - reads standard input")
    parser.add_argument("--model", choices=(STANDARD, *ARMS), default=MONOTONIC,
                        help=f"model of the experiment (default {MONOTONIC})")  # fmt: skip
    parser.add_argument("--seed", type=seed_argument, default=42, help="training seed of that model (default 42)")
    parser.add_argument("--demo", action="store_true", help="the models of ./run_all.sh --demo")
    parser.add_argument("--model-dir", type=Path, metavar="DIR", help="any T5 with its tokenizer, instead of --model")
    given = parser.parse_args(argv)
    if given.demo:
        os.environ["MONO_S2S_PROFILE"] = "demo"
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        print(summary_of(given))
    except UserError as error:
        print(f"summarize.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def summary_of(given: argparse.Namespace) -> str:
    """Find the model (work directory, else permanent storage), and summarise."""
    text = sys.stdin.read() if given.text == "-" else given.text
    if not text.strip():
        raise UsageError("the text is empty.")
    settings = load_settings()
    if given.model_dir:
        candidates = [given.model_dir]
    else:
        paths = Paths.of(settings)
        candidates = [paths.model(given.seed, given.model), paths.final(given.seed) / "models" / given.model]
    directory = next((path for path in candidates if path.is_dir()), None)
    if directory is None:
        command = f"{run_command(settings)} {given.seed}"
        raise InputError(f"no model in {candidates[0]}. Run the experiment first ({command}), or give --model-dir.")

    from utils.evaluation.decoding import decoding_settings
    from utils.evaluation.generation import generate
    from utils.modeling.models import choose_device, load_model
    from utils.modeling.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(directory)
    model = load_model(directory, device=choose_device("auto" if settings.DEVICE == "cuda" else settings.DEVICE))
    ids = tokenizer(settings.TASK_PREFIX + text, truncation=True, max_length=settings.MAX_INPUT_LENGTH).input_ids
    summaries = generate(
        model, tokenizer, [ids], decoding_settings(settings), batch_tokens=len(ids), precision=settings.PRECISION
    )
    return summaries.texts[0]


if __name__ == "__main__":
    sys.exit(main())
