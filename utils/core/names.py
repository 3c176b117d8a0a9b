"""The keys of models, arms, metrics, data sets and trigger types that results are filed under, in one place."""

from configs import arms
from configs.arms import BASELINE, CONTROLS, MONOTONIC
from configs.choices import ATTACKED_SET, TEST_SETS, TRAIN_SETS, TRIGGER_TYPES

STANDARD = "standard"
MODEL_KEYS = (STANDARD, BASELINE, MONOTONIC)  # pretrained, control, treatment
TRAINED_KEYS = (BASELINE, MONOTONIC)  # the pair that the experiment compares
ARMS = tuple(arms.ARMS)  # everything that training can make
METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
HEADLINE_METRIC = "rougeL"

__all__ = [
    "ARMS",
    "ATTACKED_SET",
    "BASELINE",
    "CONTROLS",
    "HEADLINE_METRIC",
    "METRICS",
    "MODEL_KEYS",
    "MONOTONIC",
    "STANDARD",
    "TEST_SETS",
    "TRAINED_KEYS",
    "TRAIN_SETS",
    "TRIGGER_TYPES",
]
