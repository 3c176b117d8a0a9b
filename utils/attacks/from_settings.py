"""The experiment's settings as what an attack takes: one place for stages 5 and 6, verification and show_attack.py.

Every function takes overrides as keyword arguments, named as the fields they replace; None keeps the setting.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from utils.attacks.context import AttackContext
from utils.attacks.hotflip.attack import HotFlipSettings
from utils.attacks.hotflip.experiment import ControlSettings
from utils.attacks.legal_tokens import LegalTokens, TokenizerView
from utils.attacks.triggers.search import TriggerSettings
from utils.core.settings import Settings
from utils.evaluation.decoding import decoding_settings


def attack_context(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    *models: Path,
    token_set: str | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> AttackContext:
    """What all attacks on the exported models in the directories `models` share.

    StageError where a model has fewer embeddings than the tokenizer has tokens: they do not belong together.
    """
    embeddings = min(AutoConfig.from_pretrained(directory).vocab_size for directory in models)
    return AttackContext(
        tokenizer=tokenizer,
        legal=LegalTokens(
            TokenizerView(tokenizer), token_set=token_set or settings.ATTACK_TOKEN_SET, embedding_size=embeddings
        ),
        prefix=settings.TASK_PREFIX,
        max_input_length=settings.MAX_INPUT_LENGTH,
        max_target_length=settings.MAX_TARGET_LENGTH,
        decoding=decoding_settings(settings),
        batch_tokens=settings.ATTACK_BATCH_SIZE * settings.MAX_INPUT_LENGTH,
        generation_tokens=settings.EVAL_BATCH_SIZE * settings.MAX_INPUT_LENGTH,
        precision=settings.PRECISION,
        rouge_processes=settings.NUM_WORKERS or None,
        stop_requested=stop_requested,
    )


def hotflip_settings(settings: Settings, seed: int, **overrides: Any) -> HotFlipSettings:
    """How hard HotFlip tries."""
    given = _given(overrides)
    candidates = given.get("candidates", settings.HOTFLIP_CANDIDATES)
    values: dict[str, Any] = {
        "num_flips": settings.HOTFLIP_NUM_FLIPS,
        "candidates": candidates,
        "random_candidates": min(4, candidates // 4),  # enough for a rank correlation, few enough to cost little
        "noisy_gradients": settings.HOTFLIP_SMOOTHGRAD_SAMPLES,
        "beam": settings.HOTFLIP_BEAM,
        "restarts": settings.HOTFLIP_RESTARTS,
        "loss": settings.ATTACK_LOSS,
        "success_threshold": settings.ATTACK_SUCCESS_THRESHOLD,
        "min_clean_rouge": settings.ATTACK_MIN_CLEAN_ROUGE,
        "gradient_norms": settings.COMPUTE_GRADIENT_NORMS,
        "metric_positions": settings.HOTFLIP_METRIC_POSITIONS,
        "metric_replacements": settings.HOTFLIP_METRIC_REPLACEMENTS,
        "metric_rounds": settings.HOTFLIP_METRIC_ROUNDS,
        "metric_summaries": settings.HOTFLIP_METRIC_SUMMARIES,
        "seed": seed,
    }
    return HotFlipSettings(**values | given)


def trigger_settings(settings: Settings, seed: int, **overrides: Any) -> TriggerSettings:
    """How hard the trigger search tries."""
    given = _given(overrides)
    iterations = given.get("iterations", settings.TRIGGER_ITERATIONS)
    values: dict[str, Any] = {
        "types": settings.TRIGGER_TYPES,
        "length": settings.TRIGGER_LENGTH,
        "iterations": iterations,
        "restarts": settings.TRIGGER_RESTARTS,
        "candidates": settings.TRIGGER_CANDIDATES,
        "gradient_examples": settings.TRIGGER_GRADIENT_EXAMPLES,
        "random_controls": max(settings.TRIGGER_RANDOM_CONTROLS, 1),
        "loss": settings.ATTACK_LOSS,
        "dev_every": max(1, min(10, iterations // 4)),  # a short search needs a look before its half as well
        "success_threshold": settings.ATTACK_SUCCESS_THRESHOLD,
        "min_clean_rouge": settings.ATTACK_MIN_CLEAN_ROUGE,
        "seed": seed,
    }
    return TriggerSettings(**values | given)


def control_settings(settings: Settings) -> ControlSettings | None:
    """The controls beside HotFlip; None: no controls."""
    if not settings.ATTACK_CONTROLS:
        return None
    return ControlSettings(
        metric_examples=settings.HOTFLIP_METRIC_EXAMPLES,
        ceiling_examples=settings.CEILING_EXAMPLES,
        ceiling_moves=settings.CEILING_MOVES,
        ceiling_summaries=settings.CEILING_SUMMARIES,
    )


def gradient_free_types(settings: Settings) -> tuple[str, ...]:
    """Trigger types that are searched without gradients as well."""
    types: tuple[str, ...] = settings.TRIGGER_GRADIENT_FREE_TYPES if settings.ATTACK_CONTROLS else ()
    return types


def _given(overrides: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in overrides.items() if value is not None}
