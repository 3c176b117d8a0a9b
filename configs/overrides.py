"""How a setting gets its value: constant, then profile, then MONO_S2S_X, typed; or all from a run's frozen file.

A run's settings are frozen into a JSON file when it is submitted (MONO_S2S_SETTINGS_FILE, set by the job wrapper
from its --settings argument). A job then reads that file alone, so editing the configuration, or a stray variable
in the environment of sbatch, while jobs wait in the queue cannot mix two experiments.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs import arms, choices
from configs.profiles import PROFILES

PREFIX = "MONO_S2S_"
SETTINGS_FILE = PREFIX + "SETTINGS_FILE"
# Variables of the shell layer that are no settings.
NOT_SETTINGS = {SETTINGS_FILE, PREFIX + "PYTHON"}
CHOICES = {
    "PROFILE": tuple(PROFILES),
    "DEVICE": ("cuda", "cpu", "auto"),
    "PRECISION": ("auto", "fp32", "bf16"),
    "TRAINING_GRAPHS": ("auto", "off"),
    "GENERATION": ("fast", "transformers"),
    "ATTACK_TOKEN_SET": ("roundtrip", "raw"),
    "ATTACK_LOSS": ("reference", "own_output"),
    "REPORT_TO": ("none", "tensorboard", "wandb", "mlflow"),
}
# One constant serves both models, so that the comparison cannot become unfair.
SHARED = ("LEARNING_RATE", "BATCH_SIZE", "WEIGHT_DECAY", "GRADIENT_CLIP")
POSITIVE = [
    "NUM_EPOCHS",
    "BATCH_SIZE",
    "LEARNING_RATE",
    "GRADIENT_CLIP",
    "EVAL_BATCH_SIZE",
    "ATTACK_BATCH_SIZE",
    "BOOTSTRAP_SAMPLES",
    "NUM_BEAMS",
    "MAX_INPUT_LENGTH",
    "MAX_TARGET_LENGTH",
    "MAX_NEW_TOKENS",
    "QUICK_TEST_SIZE",
    "TRIGGER_OPTIMIZE_SIZE_FULL",
    "TRIGGER_EVAL_SIZE_FULL",
    "TRIGGER_LENGTH",
    "TRIGGER_ITERATIONS",
    "TRIGGER_RESTARTS",
    "TRIGGER_CANDIDATES",
    "TRIGGER_GRADIENT_EXAMPLES",
    "HOTFLIP_NUM_FLIPS",
    "HOTFLIP_CANDIDATES",
    "HOTFLIP_BEAM",
    "HOTFLIP_RESTARTS",
    "CEILING_MOVES",
    "CEILING_SUMMARIES",
    "HOTFLIP_METRIC_POSITIONS",
    "HOTFLIP_METRIC_REPLACEMENTS",
    "HOTFLIP_METRIC_ROUNDS",
    "HOTFLIP_METRIC_SUMMARIES",
    "CHECKPOINTS_TO_KEEP",
    "SLURM_CPUS_PER_TASK",
    "SLURM_MEMORY_SCALE",
    "SLURM_TIME_SCALE",
    "MONOTONIC_EPSILON",
    "EVAL_ARRAY_TASKS",
    "ATTACK_ARRAY_TASKS",
    "MAX_PARALLEL_SEEDS",
    "DATASET_MAX_RETRIES",
    "LENGTH_PENALTY",
]
NOT_NEGATIVE = [
    "WEIGHT_DECAY",
    "NUM_WORKERS",
    "MAX_TRAIN_EXAMPLES",
    "MICRO_BATCH_SIZE",
    "MIN_NEW_TOKENS",
    "NO_REPEAT_NGRAM_SIZE",
    "DATA_SEED",
    "SLURM_SIGNAL_SECONDS",
    "SLURM_MAX_REQUEUES",
    "DATASET_RETRY_DELAY",
    "TRIGGER_RANDOM_CONTROLS",
    "QUALITY_CURVE_EXAMPLES",
    "ORDER_CHAINS",
    "HOTFLIP_SMOOTHGRAD_SAMPLES",
    "CEILING_EXAMPLES",
    "HOTFLIP_METRIC_EXAMPLES",
]
SHARES = [
    "WARMUP_RATIO",
    "MONOTONIC_WARMUP_RATIO",
    "CONFIDENCE",
    "ATTACK_SUCCESS_THRESHOLD",
    "ATTACK_MIN_CLEAN_ROUGE",
    "QUALITY_MARGIN",
]
# Texts that may have several lines. Anywhere else (paths, names, numbers of SLURM) a control character is an accident.
SEVERAL_LINES = ("JOB_SETUP", "TASK_PREFIX", "SLURM_EXTRA_OPTIONS", "SLURM_GPU_OPTIONS")
PATHS = ("SCRATCH_DIR", "PROJECT_DIR", "DEMO_DIR", "DATASETS_FILE", "HF_CACHE_DIR")
# It becomes a part of directory names, and mono_s2s_work_quick is the quick profile's.
EXPERIMENT_NAME = re.compile(r"(?!quick($|_))[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
CHECKOUT = Path(__file__).resolve().parents[1]


class SettingsError(ValueError):
    """Settings that are unknown, of the wrong type or make no sense; the message names all of them and the fix."""


def apply(constants: dict[str, Any]) -> None:
    """Replace the values of the upper-case `constants` in place by what profile, file or environment say."""
    names = [name for name in constants if name.isupper()]
    frozen = os.environ.get(SETTINGS_FILE)
    problems: list[str] = []
    if frozen:
        values = _read_frozen(Path(frozen), names, constants)
    else:
        given = _from_environment(names, constants, problems)
        values = _with_absolute_paths({name: constants[name] for name in names}, given)
    constants.update(values)
    _refuse([*problems, *_problems({name: constants[name] for name in names})])


def _from_environment(names: list[str], constants: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """What variables and the profile say; a variable that is wrong is told in `problems` and left out."""
    given: dict[str, Any] = {}
    for variable, text in os.environ.items():
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        name = variable.removeprefix(PREFIX)
        if name not in names:
            problems.append(_unknown(variable, name, names))
            continue
        try:
            given[name] = parse(variable, text, constants[name])
        except SettingsError as error:
            problems.append(str(error))
    profile = given.get("PROFILE", constants["PROFILE"])
    if profile not in PROFILES:
        _refuse([*problems, f"PROFILE: {profile!r} is not one of {', '.join(PROFILES)}."])
    values = dict(PROFILES[profile])
    if profile == "demo":
        start = Path.cwd() if given.get("DEMO_DIR") else CHECKOUT
        root = Path(absolute(given.get("DEMO_DIR") or constants["DEMO_DIR"] or "demo_run", start))
        values |= {
            "DEMO_DIR": str(root),
            "SCRATCH_DIR": str(root / "scratch"),
            "PROJECT_DIR": str(root / "project"),
        }
    if "MODEL_NAME" in given:  # the configuration's commit is one of the configuration's model
        values["MODEL_REVISION"] = ""
    return values | given


def _with_absolute_paths(constants: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """All settings, `values` over `constants`, with absolute paths: jobs and later commands start in other directories.

    A relative path starts at the current directory if a variable gives it, at the checkout if the configuration does.
    """
    merged = constants | values
    for name in (*PATHS, "MODEL_NAME"):
        text = str(merged[name])
        if not text or (name == "MODEL_NAME" and (_is_demo_model(merged) or not _names_a_directory(text))):
            continue
        typed = name in values or text == os.environ.get(name.removesuffix("_DIR"))  # SCRATCH, PROJECT
        merged[name] = absolute(text, Path.cwd() if typed else CHECKOUT)
    return merged


def absolute(text: str, start: Path) -> str:
    """`text` as an absolute path from `start`: ~, ~user and $NAME expanded, no "." and "..".

    SettingsError: no such user or variable, or a space around the path that nobody sees.
    """
    if text != text.strip():
        raise SettingsError(f"{text!r}: a path that begins or ends with a space. Leave the space out.")
    known = os.path.expandvars(text)
    if unset := re.search(r"\$(\w+|\{\w+\})", known):
        raise SettingsError(f"{text}: {unset[0]} is not set here. Write the path out.")
    try:
        path = start / Path(known).expanduser()
    except RuntimeError as error:  # ~somebody, or no HOME
        raise SettingsError(f"{text}: {str(error).rstrip('.')}. Give the path without ~.") from None
    # Behind a symbolic link ".." is another directory than the text says: only the file system knows which.
    plain = os.path.realpath(path) if ".." in path.parts else os.path.normpath(path)
    return "/" + plain.lstrip("/")  # //scratch is /scratch here, but another text


def _is_demo_model(settings: dict[str, Any]) -> bool:
    return bool(settings["PROFILE"] == settings["MODEL_NAME"] == "demo")


def _names_a_directory(model: str) -> bool:
    """Whether MODEL_NAME is a path and no hub id: it looks like one, or a directory of that name is there."""
    return model.startswith(("/", "~", "./", "../")) or model in (".", "..") or Path(model).is_dir()


def _read_frozen(path: Path, names: list[str], constants: dict[str, Any]) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}: no frozen settings there ({error}). Submit the run again.") from error
    if set(stored) != set(names):
        odd = ", ".join(sorted(set(stored) ^ set(names)))
        raise SettingsError(
            f"{path}: made by another version of the settings (differs in {odd}). Submit the run again."
        )
    return {name: tuple(value) if isinstance(constants[name], tuple) else value for name, value in stored.items()}


def _unknown(variable: str, name: str, names: list[str]) -> str:
    shared = name.removeprefix("MONOTONIC_")
    if name != shared and shared in SHARED:
        return f"{variable}: both models share {shared}, or the comparison would not be fair. Set {PREFIX}{shared}."
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {PREFIX}{near[0]}?" if near else " The settings stand in configs/experiment_config.py."
    return f"{variable}: no such setting.{hint}"


def parse(variable: str, text: str, like: Any) -> Any:
    """`text` as a value of the type of `like` (bool, int, float, str, tuple of str); SettingsError otherwise."""
    text = text.strip()
    if isinstance(like, bool):
        words = {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }
        if text.lower() not in words:
            raise SettingsError(f"{variable}={text}: expected true or false.")
        return words[text.lower()]
    if isinstance(like, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(like, str):
        return text
    kind, noun = (int, "a whole number") if isinstance(like, int) else (float, "a number")
    try:
        value = kind(text)
    except ValueError:
        raise SettingsError(f"{variable}={text}: expected {noun}.") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise SettingsError(f"{variable}={text}: expected a finite number.")
    return value


def check(settings: dict[str, Any]) -> None:
    """Refuse settings that make no sense or an unfair comparison (SettingsError names all of them)."""
    _refuse(list(_problems(settings)))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise SettingsError(" ".join(problems))


def _problems(settings: dict[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        text = "".join(value) if isinstance(value, tuple) else value
        if isinstance(text, str) and (odd := _unwritable(text, name in SEVERAL_LINES)):
            yield f"{name}={value!r}: {odd}. Choose another text."
    for name, allowed in CHOICES.items():
        if settings[name] not in allowed:
            yield f"{name}: {settings[name]!r} is not one of {', '.join(allowed)}."
    for name in POSITIVE:
        if not settings[name] > 0:
            yield f"{name}={settings[name]}: must be greater than 0."
    for name in NOT_NEGATIVE:
        if settings[name] < 0:
            yield f"{name}={settings[name]}: must not be negative."
    for name in SHARES:
        if not 0 <= settings[name] < 1:
            yield f"{name}={settings[name]}: a share, at least 0 and below 1."
    if (name := settings["EXPERIMENT"]) and not EXPERIMENT_NAME.fullmatch(name):
        yield (
            f"EXPERIMENT={name}: a name of at most 60 letters, digits, dots, hyphens and underscores, beginning with "
            "a letter or digit, and not with quick: that is a profile's."
        )
    if settings["NUM_EPOCHS"] != settings["MONOTONIC_NUM_EPOCHS"]:
        yield (
            f"NUM_EPOCHS={settings['NUM_EPOCHS']} but MONOTONIC_NUM_EPOCHS={settings['MONOTONIC_NUM_EPOCHS']}: "
            "unequal training would not be a fair comparison. Set both to the same value."
        )
    if settings["MIN_NEW_TOKENS"] > settings["MAX_NEW_TOKENS"]:
        yield "MIN_NEW_TOKENS is greater than MAX_NEW_TOKENS: no summary could be generated."
    if settings["MAX_INPUT_LENGTH"] < 4 * settings["TRIGGER_LENGTH"]:
        yield ("MAX_INPUT_LENGTH leaves no room for a document beside a trigger: at least 4 TRIGGER_LENGTH.")
    if 0 < settings["ORDER_CHAINS"] < 20:
        yield f"ORDER_CHAINS={settings['ORDER_CHAINS']}: too few to fit on other topics. At least 20, or 0 for none."
    sets = tuple(dict.fromkeys((*choices.TRAIN_SETS, *choices.TEST_SETS, *_own_sets(settings["DATASETS_FILE"]))))
    yield from _subset("TRAIN_DATASETS", settings["TRAIN_DATASETS"], sets)
    yield from _subset("TEST_DATASETS", settings["TEST_DATASETS"], sets)
    yield from _subset("TRIGGER_TYPES", settings["TRIGGER_TYPES"], choices.TRIGGER_TYPES)
    if settings["TRIGGER_GRADIENT_FREE_TYPES"]:
        yield from _subset(
            "TRIGGER_GRADIENT_FREE_TYPES", settings["TRIGGER_GRADIENT_FREE_TYPES"], choices.TRIGGER_TYPES
        )
    if (attacked := settings["ATTACK_DATASET"]) not in settings["TEST_DATASETS"]:
        yield f"TEST_DATASETS: {attacked} must be among them, it is the ATTACK_DATASET."
    if len(set(controls := settings["CONTROL_ARMS"])) < len(controls):
        yield f"CONTROL_ARMS={','.join(controls)}: name each arm once."
    yield from (f"CONTROL_ARMS: {problem}." for name in controls if (problem := arms.control_problem(name)))


def _unwritable(text: str, several_lines: bool) -> str:
    """Why a text can stand in no message, file or job script; "" if it can."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "this is not UTF-8"
    allowed = "\n\t" if several_lines else ""
    odd = [character for character in text if unicodedata.category(character) == "Cc" and character not in allowed]
    return f"the control character {odd[0]!r} is in it" if odd else ""


def _own_sets(datasets_file: str) -> tuple[str, ...]:
    """The keys in DATASETS_FILE; none if it cannot be read: stage 1 and the pre-flight say why."""
    try:
        return tuple(json.loads(Path(datasets_file).read_text(encoding="utf-8-sig"))) if datasets_file else ()
    except (OSError, ValueError, TypeError):
        return ()


def _subset(name: str, values: tuple[str, ...], allowed: tuple[str, ...]) -> Iterator[str]:
    if not values or len(set(values)) != len(values) or not set(values) <= set(allowed):
        yield f"{name}={','.join(values) or '(empty)'}: give some of {', '.join(allowed)}, each once."
