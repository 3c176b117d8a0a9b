"""Batches of training: what is in them, what padding may not change, and what each source weighs in the gradient."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from tests.tiny import write_model
from tests.training_world import BATCH, rows
from utils.modeling.models import load_model
from utils.modeling.monotonic import constrain
from utils.training.batches import GRAPH_WIDTHS, IGNORED_LABEL, Padding, RandomBatches, TokenRows


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokens(pretrained) -> TokenRows:
    return TokenRows(rows(pretrained, 200, 7))


def test_rows_are_what_the_data_set_holds(pretrained, tmp_path):
    data = rows(pretrained, 30, 3)
    data.select([4, 2, 9, 17]).save_to_disk(str(tmp_path / "chosen"))
    for view in (data, data.select([4, 2, 9, 17]), type(data).load_from_disk(str(tmp_path / "chosen"))):
        flat = TokenRows(view, padding=Padding(8, 8))
        wanted = [1, 3, 0]
        batch = flat.collate(wanted)
        assert batch["input_ids"].shape[1] % 8 == 0 and batch["labels"].shape[1] % 8 == 0
        for place, row in enumerate(wanted):
            inputs, labels = view[row]["input_ids"], view[row]["labels"]
            mask = batch["attention_mask"][place, 0, 0]
            assert batch["input_ids"][place][mask].tolist() == inputs and not batch["input_ids"][place][~mask].any()
            kept = batch["labels"][place] != IGNORED_LABEL
            assert batch["labels"][place][kept].tolist() == labels and kept[: len(labels)].all()
        assert batch["num_tokens"] == sum(len(view[row]["labels"]) for row in wanted)
        assert TokenRows(view).collate([2])["attention_mask"] is None
    assert flat.sha256() == TokenRows(data.select([4, 2, 9, 17])).sha256() != TokenRows(data).sha256()


def test_every_epoch_has_every_row_once_in_a_new_seeded_order(tokens):
    def batches(seed, epoch):
        chosen = RandomBatches(tokens, BATCH, seed=seed)
        chosen.set_epoch(epoch)
        return list(chosen)

    first = batches(1, 0)
    assert sorted(row for batch in first for row in batch) == list(range(len(tokens)))
    assert first == batches(1, 0)
    assert first != batches(1, 1) and first != batches(2, 0)
    assert len(RandomBatches(tokens, 3, seed=0)) == len(list(RandomBatches(tokens, 3, seed=0))) == 67


def test_the_longest_batch_comes_first_and_the_rest_at_random(tokens):
    batches = list(RandomBatches(tokens, BATCH, seed=0))
    assert tokens.input_lengths[batches[0]].max() == tokens.input_lengths.max()
    lengths = [int(tokens.input_lengths[batch].max()) for batch in batches[1:]]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)
    mixed = list(RandomBatches(tokens, 8, seed=0))
    spread = np.mean([np.ptp(tokens.input_lengths[batch]) for batch in mixed])
    assert spread > 0.5 * np.ptp(tokens.input_lengths), "rows of like length together: another objective"


def weight_of_short(batches, label_lengths: np.ndarray, short: np.ndarray) -> float:
    """Share of the gradient's weight that short rows have: in its batch, a row weighs its share of the label tokens."""
    return float(np.mean([label_lengths[b][short[b]].sum() / label_lengths[b].sum() for b in map(list, batches)]))


def test_each_source_weighs_what_it_weighs_in_random_batches():
    """The experiment's mixture in small: one row in six a dialogue with a quarter of the label tokens of a document."""
    rng = np.random.default_rng(0)
    short = np.arange(12_000) % 6 == 0
    inputs = np.where(short, rng.integers(10, 25, 12_000), 40)
    labels = np.where(short, rng.integers(2, 5, 12_000), 12)
    data = datasets.Dataset.from_dict({"input_ids": [[5] * n for n in inputs], "labels": [[6] * n for n in labels]})
    data = data.cast_column("input_ids", datasets.List(datasets.Value("int32")))
    data = data.cast_column("labels", datasets.List(datasets.Value("int32")))
    drawn = [rng.choice(12_000, 4, replace=False) for _ in range(20_000)]  # the yardstick: any four rows, no sampler
    expected = weight_of_short(drawn, labels, short)
    found = weight_of_short(RandomBatches(TokenRows(data), 4, seed=0), labels, short)
    assert found == pytest.approx(expected, rel=0.05)
    by_length = np.lexsort([labels, inputs]).reshape(-1, 4)
    assert weight_of_short(by_length, labels, short) > 2 * expected, "this test would see batches of like length"


@pytest.mark.parametrize("gated", [False, True])
def test_padding_and_rows_that_fill_up_change_neither_loss_nor_gradients(tmp_path, gated):
    model = constrain(load_model(write_model(tmp_path, gated=gated))).eval()
    data = rows(tmp_path, 6, 3)
    for chosen in ([0, 1, 2, 3], [4, 5]):
        found = []
        for padding in (Padding(), Padding(*GRAPH_WIDTHS, rows=4)):
            batch = TokenRows(data, padding=padding).collate(chosen)
            assert batch.pop("num_tokens") == sum(len(data[row]["labels"]) for row in chosen)
            model.zero_grad()
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            found.append((loss.detach(), [parameter.grad for parameter in model.parameters()]))
        assert batch["input_ids"].shape == (4, 128) and batch["labels"].shape == (4, 32)
        assert batch["attention_mask"].shape == (4, 1, 1, 128)
        (plain, plain_gradients), (padded, gradients) = found
        torch.testing.assert_close(padded, plain, rtol=1e-6, atol=0)
        size = torch.nn.utils.get_total_norm(plain_gradients)
        for ours, theirs in zip(gradients, plain_gradients, strict=True):
            assert torch.nn.utils.get_total_norm([ours - theirs]) <= 1e-5 * size
