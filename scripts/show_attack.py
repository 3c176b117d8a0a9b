"""Attack one text, typed or taken from the evaluation set, and print its summary before and after."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TQDM_DISABLE", "1")  # bars of a second or two would only push the picture up

from utils.core.errors import InputError, UsageError, UserError
from utils.core.names import ARMS, BASELINE, CONTROLS, STANDARD, TRIGGER_TYPES
from utils.core.paths import Paths
from utils.core.seeds import seed_argument
from utils.core.settings import Settings, load_settings, run_command

if TYPE_CHECKING:
    from utils.attacks.show import ShownText

EXAMPLES = """examples:
  scripts/show_attack.py --demo --example 3
  scripts/show_attack.py --model monotonic --text "The council met on Monday. ..." --flips 3
  scripts/show_attack.py --model-dir my_t5 --file article.txt --summary "What it should say."
  scripts/show_attack.py --seed 7 --example 0 --trigger-type lead      (the trigger that stage 5 learned)
exit codes: 0 shown, 1 the text cannot be attacked, 2 wrong usage, 3 model or data missing"""


def options(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="show_attack.py",
        description="Attack one text and print its summary before and after, with the changed tokens highlighted.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model = parser.add_argument_group("which model")
    model.add_argument("--model", choices=(STANDARD, *ARMS), default=BASELINE,
                       help="model of the experiment, also a control arm (default baseline)")  # fmt: skip
    model.add_argument("--seed", type=seed_argument, default=42, help="training seed of that model (default 42)")
    model.add_argument("--demo", action="store_true", help="the models and examples of ./run_all.sh --demo")
    model.add_argument("--model-dir", type=Path, metavar="DIR", help="any T5 with its tokenizer, instead of --model")
    text = parser.add_argument_group("which text (one of these)").add_mutually_exclusive_group(required=True)
    text.add_argument("--text", help="the text itself")
    text.add_argument("--file", metavar="FILE", help="a file with the text; - is standard input")
    text.add_argument("--example", type=number(0), metavar="N", help="example N (from 0) of the attack evaluation set")
    parser.add_argument("--summary", help="reference summary; without it the model's own summary is attacked")
    attack = parser.add_argument_group("which attack (default HotFlip)")
    attack.add_argument("--flips", type=number(1), metavar="N", help="tokens changed at most (default: the setting)")
    attack.add_argument(
        "--candidates", type=number(1), metavar="N", help="exact scores per step (default: the setting)"
    )
    attack.add_argument("--beam", type=number(1), metavar="N", help="partial attacks kept (default: the setting)")
    attack.add_argument("--restarts", type=number(1), metavar="N", help="starts (default: the setting)")
    attack.add_argument("--token-set", choices=("roundtrip", "raw"), default=None,
                        help="roundtrip: typable text only; raw: any token ids (default: the setting)")  # fmt: skip
    attack.add_argument(
        "--attack-seed", type=seed_argument, metavar="N", help="random choices (default: --seed, as in stage 6)"
    )
    attack.add_argument("--trigger", metavar="WORDS", help="put these words into the text instead of HotFlip")
    attack.add_argument("--trigger-type", choices=TRIGGER_TYPES, default=None,
                        help="where the trigger stands; without --trigger: the one that stage 5 learned")  # fmt: skip
    return parser.parse_args(argv)


def number(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}")
        return int(text)

    return parse


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = options(argv)
    try:
        if given.demo:
            os.environ["MONO_S2S_PROFILE"] = "demo"
        print(picture(given))
    except UserError as error:
        print(f"show_attack.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def picture(given: argparse.Namespace) -> str:
    """Load what is needed, attack, and render."""
    settings = load_settings()
    example = chosen_text(given, settings)

    from utils.attacks.context import Victim
    from utils.attacks.from_settings import attack_context, hotflip_settings
    from utils.attacks.show import render, show_hotflip, show_trigger
    from utils.modeling.models import choose_device, load_model
    from utils.modeling.tokenizer import load_tokenizer

    directory = given.model_dir or Paths.of(settings).model(given.seed, given.model)
    if not directory.is_dir():
        arm = f"MONO_S2S_CONTROL_ARMS={given.model} " if given.model in CONTROLS and not given.demo else ""
        command = f"{arm}{run_command(settings)} {given.seed}"
        raise InputError(f"no model in {directory}. Run the experiment first ({command}), or give --model-dir.")
    tokenizer = load_tokenizer(given.model_dir or Paths.of(settings).pretrained)
    device = choose_device("auto" if settings.DEVICE == "cuda" else settings.DEVICE)
    model = load_model(directory, device=device)
    context = attack_context(settings, tokenizer, directory, token_set=given.token_set)
    victim = Victim(given.model_dir.name if given.model_dir else given.model, model)
    if given.trigger is not None or given.trigger_type:
        kind = given.trigger_type or "lead"
        words = given.trigger if given.trigger is not None else learned_trigger(given, settings, kind)
        shown = show_trigger(
            context,
            victim,
            example,
            kind=kind,
            words=words,
            threshold=settings.ATTACK_SUCCESS_THRESHOLD,
        )
    else:
        hotflip = hotflip_settings(
            settings,
            given.seed if given.attack_seed is None else given.attack_seed,
            num_flips=given.flips,
            candidates=given.candidates,
            beam=given.beam,
            restarts=given.restarts,
        )
        shown = show_hotflip(context, victim, example, hotflip)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return render(shown, colour=colour, width=min(shutil.get_terminal_size((100, 24)).columns, 110))


def chosen_text(given: argparse.Namespace, settings: Settings) -> ShownText:
    """The text to attack, and its reference where there is one."""
    from utils.attacks.show import ShownText

    if given.example is None:
        if given.file is None:
            return ShownText("text", given.text, given.summary)
        try:
            text = sys.stdin.read() if given.file == "-" else Path(given.file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {given.file}: {error}") from None
        return ShownText("text", text, given.summary)
    from utils.data.preparation import load_prepared

    rows = load_prepared(Paths.of(settings).prepared, "attack_evaluate")
    if given.example >= len(rows):
        raise UsageError(f"--example {given.example}: the attack evaluation set has {len(rows)} examples, from 0")
    row = rows[given.example]
    return ShownText(row["id"], row["document"], row["summary"] if given.summary is None else given.summary)


def learned_trigger(given: argparse.Namespace, settings: Settings, kind: str) -> str:
    """The words of the trigger that stage 5 found against --model."""
    if given.model_dir:
        raise UsageError("--trigger-type with --model-dir needs --trigger: stage 5 learned none against that model")
    path = Paths.of(settings).results(given.seed) / "uat_results.json"
    if not path.is_file():
        raise InputError(f"no {path}: run stage 5 first, or give --trigger WORDS")
    try:
        words: str = json.loads(path.read_text("utf-8"))["results"][given.model][kind]["trigger_text"]
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} holds no {kind} trigger of {given.model} ({error!r}). Run stage 5 again.") from None
    return words


if __name__ == "__main__":
    sys.exit(main())
