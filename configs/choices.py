"""The names that settings may choose from: data sets, trigger types, arms. Everything else reads them from here."""

TRAIN_SETS = ("dialogsum", "highlightsum", "arxiv")
TEST_SETS = ("cnn_dm", "xsum", "samsum")
ATTACKED_SET = "cnn_dm"  # triggers are optimised on its validation part, every attack is measured on its test part
TRIGGER_TYPES = ("lead", "instruction", "tail", "infix", "natural")
SIGN_FROZEN, ABS_INIT_FREE = "sign_frozen", "abs_init_free"
CONTROL_ARMS = (SIGN_FROZEN, ABS_INIT_FREE)  # what stage 3 can train beside monotonic
