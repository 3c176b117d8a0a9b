"""The names that settings may choose from: data sets, trigger types. Everything else reads them from here."""

TRAIN_SETS = ("dialogsum", "highlightsum", "arxiv")
TEST_SETS = ("cnn_dm", "xsum", "samsum")
ATTACKED_SET = "cnn_dm"  # triggers are optimised on its validation part, every attack is measured on its test part
TRIGGER_TYPES = ("lead", "instruction", "tail", "infix", "natural")
