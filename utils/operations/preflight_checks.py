"""What the experiment promises, each checked by doing it on the settings at hand: see test_improvements.py."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from utils.core.settings import Settings

PAIRS = (("NUM_EPOCHS", "MONOTONIC_NUM_EPOCHS"),)
NEEDED = ("timestamp", "run_id", "seed", "unix_timestamp")  # in the metadata of every result
TOLERANCE = 2e-6  # relative: V of a weight of 1e-8 is near -18, where float32 moves in steps of that size


def fair_settings(settings: Settings) -> tuple[bool, str]:
    """Both models train alike; settings that would not be fair are refused."""
    from configs.overrides import SettingsError, check

    unequal = [f"{left}={getattr(settings, left)}, {right}={getattr(settings, right)}" for left, right in PAIRS
               if getattr(settings, left) != getattr(settings, right)]  # fmt: skip
    if unequal:
        return False, "; ".join(unequal)
    try:
        check(settings.all() | {"MONOTONIC_NUM_EPOCHS": settings.NUM_EPOCHS + 1})
    except SettingsError:
        warm_up = f"warm-up {settings.WARMUP_RATIO:g} and {settings.MONOTONIC_WARMUP_RATIO:g}"
        return True, (
            f"{settings.NUM_EPOCHS} epochs, learning rate {settings.LEARNING_RATE:g}, batch {settings.BATCH_SIZE}, "
            f"decay {settings.WEIGHT_DECAY:g} and clip {settings.GRADIENT_CLIP:g} for both; {warm_up}"
        )
    return False, "one more epoch for monotonic was not refused"


def full_test_sets(settings: Settings) -> tuple[bool, str]:
    """Every row of every test set is used."""
    from utils.data.registry import sources

    if not settings.USE_FULL_TEST_SETS:
        return False, f"{settings.QUICK_TEST_SIZE} rows of each only: set USE_FULL_TEST_SETS, profile full"
    if settings.PROFILE == "demo":
        return True, "all rows of the demo's own test sets"
    registry = sources(Path(settings.DATASETS_FILE) if settings.DATASETS_FILE else None)
    sizes = [(registry[key].title, registry[key].raw_rows.get("test")) for key in settings.TEST_DATASETS]
    return True, ", ".join(f"{title} {f'{rows:,}' if rows else 'all of your own file'}" for title, rows in sizes)


def exact_start(settings: Settings) -> tuple[bool, str]:
    """softplus(inverse(w)) is w over ten decades, and a constrained T5 starts at |W| + epsilon."""
    import torch
    from torch.nn import functional
    from transformers import T5Config, T5ForConditionalGeneration

    from utils.modeling.monotonic import constrain, ffn_layers, softplus_inverse

    wanted = torch.logspace(-8, 2, 10_001)
    error = float(((functional.softplus(softplus_inverse(wanted)) - wanted) / wanted).abs().max())
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4))
    before = {name: layer.weight.detach().clone() for name, layer in ffn_layers(model)}
    constrain(model, eps=settings.MONOTONIC_EPSILON)
    start = 0.0
    for name, layer in ffn_layers(model):
        target = before[name].abs() + settings.MONOTONIC_EPSILON
        start = max(start, float(((layer.weight.detach() - target) / target).abs().max()))
    words = f"relative error at most {error:.1e} over 1e-8 to 1e2, {start:.1e} at the start of a T5"
    return max(error, start) < TOLERANCE, words


def retries(settings: Settings) -> tuple[bool, str]:
    """A failure that passes is tried again, one that stays is not."""
    from utils.data.hub import Exhausted, Unavailable, with_retries

    tries = {"reset": 0, "always": 0}

    def reset_once() -> str:
        tries["reset"] += 1
        if tries["reset"] == 1:
            raise ConnectionResetError("connection reset by peer")
        return "bytes"

    def always_reset() -> str:
        tries["always"] += 1
        raise ConnectionResetError("connection reset by peer")

    limit = settings.DATASET_MAX_RETRIES
    if limit < 2:
        return False, f"DATASET_MAX_RETRIES={limit}: a failure that passes is not tried again"
    logger = logging.getLogger("mono_s2s.data")
    disabled, logger.disabled = logger.disabled, True  # the failures are ours: no alarm about them
    try:
        came = with_retries(reset_once, label="pre-flight", max_retries=limit, retry_delay=0.001)
        with_retries(always_reset, label="pre-flight", max_retries=limit, retry_delay=0.001)
    except (Exhausted, Unavailable):
        kept = came == "bytes" and tries == {"reset": 2, "always": limit}
        pause = f"first pause {settings.DATASET_RETRY_DELAY:g} s, doubling"
        return kept, f"a reset connection is tried again, up to {limit} times, {pause}"
    finally:
        logger.disabled = disabled
    return False, "a hub that always resets was taken for one that answers"


def timestamps(settings: Settings) -> tuple[bool, str]:
    """A result file says when, in which run and with which seed it was made."""
    from utils.core.paths import Paths
    from utils.pipeline.runner import StageContext
    from utils.pipeline.stages import STAGES

    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(Path(folder) / "scratch", Path(folder) / "project", "")
        context = StageContext(STAGES[0], 42, settings, paths, logging.getLogger("mono_s2s"), time.time())
        path = context.write_result("setup_complete.json", {})
        metadata = json.loads(path.read_text(encoding="utf-8"))["_metadata"]
    missing = [name for name in NEEDED if not metadata.get(name)]
    if missing:
        return False, f"missing: {', '.join(missing)}"
    return True, f"timestamp {metadata['timestamp']}, run_id {metadata['run_id']}"


CHECKS: dict[str, Callable[[Settings], tuple[bool, str]]] = {
    "fair settings": fair_settings,
    "full test sets": full_test_sets,
    "exact inverse of softplus": exact_start,
    "retries": retries,
    "timestamps": timestamps,
}
