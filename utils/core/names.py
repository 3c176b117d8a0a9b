"""The keys of models, arms, metrics, data sets and trigger types that results are filed under, in one place."""

from configs.choices import ABS_INIT_FREE, ATTACKED_SET, CONTROL_ARMS, SIGN_FROZEN, TEST_SETS, TRAIN_SETS, TRIGGER_TYPES

STANDARD, BASELINE, MONOTONIC = "standard", "baseline", "monotonic"
MODEL_KEYS = (STANDARD, BASELINE, MONOTONIC)  # pretrained, control, treatment
TRAINED_KEYS = (BASELINE, MONOTONIC)  # the pair that the experiment compares
ARMS = (*TRAINED_KEYS, *CONTROL_ARMS)  # everything that training can make
METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
HEADLINE_METRIC = "rougeL"

__all__ = [
    "ABS_INIT_FREE",
    "ARMS",
    "ATTACKED_SET",
    "BASELINE",
    "CONTROL_ARMS",
    "HEADLINE_METRIC",
    "METRICS",
    "MODEL_KEYS",
    "MONOTONIC",
    "SIGN_FROZEN",
    "STANDARD",
    "TEST_SETS",
    "TRAINED_KEYS",
    "TRAIN_SETS",
    "TRIGGER_TYPES",
]
