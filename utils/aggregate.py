"""All result files of a seed in one, checked to be of one experiment, with the verdict in words; and their copy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from utils.errors import InputError, StageError
from utils.files import new_directory, sha256_of, write_text
from utils.places import MODEL_KEYS, Places
from utils.results import read_result

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
SHARED = ("setup", "data")  # made once for all seeds
LIMITS = (
    "The feed-forward layers of `monotonic` are monotone; the network is not: attention, norms and residuals are not.",
    "One training seed: differences between trainings are not in these intervals. Treat the result as preliminary.",
    "ROUGE compares words with one reference; it does not measure whether a summary is true.",
    "White-box attacks of this budget were tried; a model they do not break may break under another attack.",
)


def collect(places: Places, seed: int) -> dict[str, dict[str, Any]]:
    """Every result file of the seed as its envelope, by section; InputError if they are not of one experiment."""
    for section in SHARED:
        name = FILES[section]
        places.results(seed).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(places.results_root / name, places.results(seed) / name)
    found = {section: read_result(places.results(seed) / name) for section, name in FILES.items()}
    profiles = {envelope["_metadata"]["profile"] for envelope in found.values()}
    if len(profiles) > 1:
        raise InputError(f"results of several profiles ({', '.join(sorted(profiles))}) in {places.results(seed)}.")
    hashes = [found[name]["_metadata"]["checkpoints"] for name in ("evaluation", "uat", "hotflip")]
    if any(other != hashes[0] for other in hashes):
        raise InputError("evaluation and attacks were made with different checkpoints: run stages 4 to 6 again.")
    if len(set(hashes[0].values())) < len(hashes[0]):
        raise StageError("two of the three models have the same weights: one of them was not trained.")
    return found


def final_results(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The `results` of final_results.json: the verdict, every section's results, and their provenance."""
    results: dict[str, Any] = {name: envelope["results"] for name, envelope in found.items()}
    results["verdict"] = verdict(results)
    results["flags"] = [*results["uat"]["flags"], *results["hotflip"]["flags"]]
    results["missing_datasets"] = found["evaluation"]["_metadata"]["missing_datasets"]
    results["limits"] = list(LIMITS)
    results["sources"] = {
        name: {
            key: envelope["_metadata"].get(key) for key in ("run_id", "config_fingerprint", "code", "seconds", "device")
        }
        for name, envelope in found.items()
    }
    return results


def verdict(results: dict[str, Any]) -> dict[str, Any]:
    """The answer in one sentence each for attacks and quality, with the figures behind them."""
    hotflip = results["hotflip"]["comparisons"]["baseline_vs_monotonic"]
    success, quality = hotflip["success"], results["evaluation"]["comparisons"]["cnn_dm"]["rougeL"]
    points = 100 * (success["rate_b"] - success["rate_a"])
    significant = success["p_value"] < 0.05
    harder = "harder" if points < 0 else "easier"
    low, high = 100 * success["lower"], 100 * success["upper"]
    change = f"{points:+.1f} points [{low:+.1f}, {high:+.1f}] on {success['n']} common examples"
    attack = (
        f"HotFlip succeeds on {100 * success['rate_a']:.1f} % of baseline's and {100 * success['rate_b']:.1f} % of "
        f"monotonic's summaries ({change}, McNemar p = "
        f"{success['p_value']:.2g}): monotonic is "
        + (f"{harder} to attack." if significant else "not shown to be harder or easier to attack.")
    )
    cost = (
        f"On CNN/DM monotonic's ROUGE-L differs from baseline's by {quality['difference']:+.4f} "
        f"[{quality['lower']:+.4f}, {quality['upper']:+.4f}] (Holm-corrected p = {quality['p_value_holm']:.2g})."
    )
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
    return {"attack": attack, "cost": cost, "doubt": doubt, "success": success, "quality": quality}


def copy_to_permanent(source: Path, target: Path) -> int:
    """Copy a results directory as a whole and compare every file's hash; returns the number of files."""
    with new_directory(target) as new:
        shutil.copytree(source, new, dirs_exist_ok=True)
        files = [path for path in source.rglob("*") if path.is_file()]
        for path in files:
            if sha256_of(path) != sha256_of(new / path.relative_to(source)):
                raise StageError(f"the copy of {path.name} in {target.parent} differs from the original: disk trouble?")
    return len(files)


def publish_model(source: Path, target: Path, card: str) -> None:
    """The plain model in `source` and its card as the directory `target`; hard links where the file system allows."""
    with new_directory(target) as new:
        for path in source.iterdir():
            try:
                os.link(path, new / path.name)
            except OSError:  # another file system
                shutil.copyfile(path, new / path.name)
        write_text(new / "README.md", card)
