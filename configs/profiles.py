"""The two small profiles: what they change in configs/experiment_config.py, and why nobody can take them for full runs.

`quick` debugs the real pipeline on real data with 200 examples; it keeps to directories of its own
(mono_s2s_work_quick, ...). `demo` runs everything in minutes on a CPU with a corpus and a model of our own,
under DEMO_DIR. Both stand in the metadata and in the heading of every output.
"""

QUICK = {
    "USE_FULL_TEST_SETS": False,
    "QUICK_TEST_SIZE": 200,
    "MAX_TRAIN_EXAMPLES": 200,
    "NUM_EPOCHS": 1,
    "MONOTONIC_NUM_EPOCHS": 1,
    "BOOTSTRAP_SAMPLES": 200,
    "TRIGGER_OPTIMIZE_SIZE_FULL": 40,
    "TRIGGER_EVAL_SIZE_FULL": 40,
    "TRIGGER_ITERATIONS": 5,
    "TRIGGER_RESTARTS": 2,
    "TRIGGER_RANDOM_CONTROLS": 5,
    "QUALITY_CURVE_EXAMPLES": 40,
    "SLURM_TIME_SCALE": 0.25,
}

DEMO = {
    "DEVICE": "auto",
    "MODEL_NAME": "demo",
    "MODEL_REVISION": "",
    "CONTROL_ARMS": ("sign_frozen", "no_ffn"),
    "MAX_INPUT_LENGTH": 80,
    "MAX_TARGET_LENGTH": 24,
    "MIN_NEW_TOKENS": 4,
    "MAX_NEW_TOKENS": 20,
    "NUM_EPOCHS": 6,
    "MONOTONIC_NUM_EPOCHS": 6,
    "LEARNING_RATE": 2e-3,
    "BATCH_SIZE": 16,
    "TRIGGER_OPTIMIZE_SIZE_FULL": 60,
    "TRIGGER_EVAL_SIZE_FULL": 60,
    "TRIGGER_ITERATIONS": 12,
    "TRIGGER_RESTARTS": 2,
    "TRIGGER_CANDIDATES": 16,
    "TRIGGER_GRADIENT_EXAMPLES": 16,
    "TRIGGER_GRADIENT_FREE_TYPES": ("lead",),
    "TRIGGER_RANDOM_CONTROLS": 8,
    "HOTFLIP_CANDIDATES": 21,
    "HOTFLIP_METRIC_EXAMPLES": 20,
    "HOTFLIP_METRIC_POSITIONS": 32,
    "HOTFLIP_METRIC_SUMMARIES": 400,
    "CEILING_EXAMPLES": 4,
    "CEILING_MOVES": 1000,
    "CEILING_SUMMARIES": 100,
    "QUALITY_CURVE_EXAMPLES": 12,
    "SLURM_MEMORY_SCALE": 0.0625,  # 64 GB -> 4 GB
    "SLURM_TIME_SCALE": 0.1,
    "SLURM_CPUS_PER_TASK": 2,
    "DATASET_RETRY_DELAY": 1.0,
}

PROFILES: dict[str, dict] = {"full": {}, "quick": QUICK, "demo": DEMO}
