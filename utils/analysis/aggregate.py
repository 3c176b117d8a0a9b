"""All result files of a seed in one, checked to be of one experiment, with the verdict in words; and their copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from utils.core.errors import InputError, StageError
from utils.core.files import copy_file, link_or_copy, new_directory, sha256_of
from utils.core.names import MODEL_KEYS
from utils.core.paths import Paths
from utils.core.results import read_result
from utils.reports.table import p_value, signed

FILES = {
    "setup": "setup_complete.json",
    "data": "data_statistics.json",
    "baseline_training": "baseline_training_history.json",
    "monotonic_training": "monotonic_training_history.json",
    "evaluation": "evaluation_results.json",
    "uat": "uat_results.json",
    "hotflip": "hotflip_results.json",
}
SOURCE = ("run_id", "config_fingerprint", "code", "seconds", "device")  # what final_results.json keeps of each
SHARED = ("setup_complete.json", "data_statistics.json", "removed_examples.jsonl")  # made once for all seeds
LIMITS = (
    "The feed-forward layers of `monotonic` are monotone; the network is not: attention, norms and residuals are not.",
    "One training seed: differences between trainings are not in these intervals. Treat the result as preliminary.",
    "ROUGE compares words with one reference; it does not measure whether a summary is true.",
    "White-box attacks of this budget were tried; a model they do not break may break under another attack.",
)


def collect(paths: Paths, seed: int) -> dict[str, dict[str, Any]]:
    """Every result file of the seed as its envelope, by section; InputError if they are not of one experiment."""
    for name in SHARED:
        copy_file(paths.results_root / name, paths.results(seed) / name)
    found = {section: read_result(paths.results(seed) / name) for section, name in FILES.items()}
    profiles = {envelope["_metadata"]["profile"] for envelope in found.values()}
    if len(profiles) > 1:
        raise InputError(f"results of several profiles ({', '.join(sorted(profiles))}) in {paths.results(seed)}.")
    hashes = [found[name]["_metadata"]["checkpoints"] for name in ("evaluation", "uat", "hotflip")]
    if any(other != hashes[0] for other in hashes):
        raise InputError("evaluation and attacks were made with different checkpoints: run stages 4 to 6 again.")
    if len(set(hashes[0].values())) < len(hashes[0]):
        raise StageError("two of the three models have the same weights: one of them was not trained.")
    return found


def final_results(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The `results` of final_results.json: the verdict, every section's results, and their provenance."""
    results: dict[str, Any] = {name: envelope["results"] for name, envelope in found.items()}
    results["confidence"] = found["evaluation"]["_metadata"]["settings"]["CONFIDENCE"]
    results["verdict"] = verdict(results)
    results["flags"] = [*results["uat"]["flags"], *results["hotflip"]["flags"]]
    results["missing_datasets"] = found["evaluation"]["_metadata"]["missing_datasets"]
    results["limits"] = list(LIMITS)
    results["sources"] = {
        name: {key: envelope["_metadata"].get(key) for key in SOURCE} for name, envelope in found.items()
    }
    return results


def verdict(results: dict[str, Any]) -> dict[str, Any]:
    """The answer in one sentence each for attack, triggers and cost, with the figures behind the first and the last."""
    hotflip = results["hotflip"]["comparisons"]["baseline_vs_monotonic"]
    success, quality = hotflip["success"], results["evaluation"]["comparisons"]["cnn_dm"]["rougeL"]
    masked = sorted(
        {
            flag["model"]
            for part in ("uat", "hotflip")
            for flag in results[part]["flags"]
            if flag["flag"] == "possibly_masked_gradients" and flag["model"] in MODEL_KEYS
        }
    )
    doubt = (
        f"Doubt: gradient-free or transferred attacks beat the white-box attack on {' and '.join(masked)}: robustness "
        "there is possibly masked gradients."
        if masked
        else ""
    )
    return {
        "attack": _attack(success, 1 - results["confidence"]),
        "triggers": _triggers(results["uat"]),
        "cost": "On CNN/DM monotonic's ROUGE-L differs from baseline's by "
        + signed(quality["difference"], [quality["lower"], quality["upper"]], digits=4)
        + f" ({_holm(quality)}, Holm-corrected).",
        "doubt": doubt,
        "success": success,
        "quality": {name: value for name, value in quality.items() if name != "against_standard"},
    }


def _attack(success: dict[str, Any], alpha: float) -> str:
    if not success["n"]:
        return "HotFlip says nothing: no example could be attacked on both baseline and monotonic."
    points = signed(100 * success["difference"], [100 * success["lower"], 100 * success["upper"]], digits=1)
    answer = (
        f"{'harder' if success['difference'] < 0 else 'easier'} to attack than baseline"
        if success["p_value_holm"] < alpha
        else "not shown to be harder or easier to attack than baseline"
    )
    return (
        f"Monotonic is {answer}: HotFlip succeeds on {100 * success['rate_b']:.1f} % of its summaries and on "
        f"{100 * success['rate_a']:.1f} % of baseline's ({points} points on {success['n']} common "
        f"examples, McNemar {_holm(success)}, Holm-corrected)."
    )


def _triggers(uat: dict[str, Any]) -> str:
    """The worst universal trigger of both trained models, each with its interval."""
    words = []
    for model in ("baseline", "monotonic"):
        kind = uat[model]["worst"]["worst_type"]
        if kind:
            cell = uat[model][kind]
            words.append(f"{signed(cell['delta_rougeL'], cell['delta_rougeL_ci'])} on {model} ({kind})")
    found = " and by ".join(words)
    return f"The worst universal trigger changes ROUGE-L by {found}." if found else "No universal trigger was measured."


def _holm(test: dict[str, Any]) -> str:
    words = p_value(test["p_value_holm"])
    return f"p {words}" if words.startswith("<") else f"p = {words}"


def copy_to_permanent(source: Path, target: Path) -> int:
    """Copy a results directory as a whole and compare every file's hash; returns the number of files."""
    with new_directory(target) as new:
        shutil.copytree(source, new, dirs_exist_ok=True)
        files = [path for path in source.rglob("*") if path.is_file()]
        for path in files:
            if sha256_of(path) != sha256_of(new / path.relative_to(source)):
                raise StageError(f"the copy of {path.name} in {target.parent} differs from the original: disk trouble?")
    return len(files)


def publish_model(source: Path, target: Path) -> None:
    """The plain model in `source` as the directory `target`; hard links where the file system allows."""
    with new_directory(target) as new:
        for path in source.iterdir():
            link_or_copy(path, new / path.name)


def hashes_below(directory: Path, *, without: str) -> dict[str, str]:
    """sha256 of every file below `directory` by its path there, but for the one that is to hold them."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    names = {path.relative_to(directory).as_posix(): path for path in paths}
    return {name: sha256_of(path) for name, path in names.items() if name != without}
