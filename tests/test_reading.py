"""The model that reads: its weights copy before any training, its examples can be answered by reading, the measure."""

import json
import random

import pytest
import torch

from scripts import reading_model
from tests import attack_world as world
from tests import tiny
from utils.attacks.context import Victim
from utils.attacks.encoding import Example
from utils.core.errors import InputError
from utils.demo import reading
from utils.demo.model import masked, new_model
from utils.demo.reading import Texts, repeated_spans, write_copying_heads
from utils.modeling.models import load_model
from utils.modeling.tokenizer import load_tokenizer


@pytest.mark.parametrize("d_kv, copies", [(64, 0.7), (32, 0.3)])  # in two heads of four; in all four
def test_an_untrained_model_copies_once_the_heads_are_written(d_kv, copies):
    """Teacher forcing on random tokens: the next token is the document's next one."""
    rng = random.Random(0)
    rows = torch.tensor([rng.sample(range(3, 900), 40) for _ in range(8)])
    model = new_model(900, 0, **reading.SIZE | {"d_kv": d_kv}).eval()

    def right() -> float:
        with torch.no_grad():
            found = model(input_ids=rows, labels=rows).logits.argmax(-1)
        return float((found == rows)[:, 1:].float().mean())  # nothing stands before the first

    assert right() < 0.02
    write_copying_heads(model, 0)
    assert right() > copies


def test_repeated_spans_by_hand():
    #      0  1  2    3    4  5 | 6    7  8  9  10   11 12   13
    ids = [5, 6, 200, 300, 7, 8, 300, 5, 6, 9, 200, 300, 7, 400]
    # 300 is rare and stands before place 6; 5 6 stands there too but is common; 200 300 7 are two pairs of neighbours.
    assert repeated_spans(ids, 6) == [(6, 7), (10, 13)]
    assert repeated_spans(ids[:6], 6) == []
    long = list(range(200, 220))
    assert all(end - start <= reading.LONGEST_SPAN for start, end in repeated_spans([*long, *long], 20))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("reading")
    return root, tiny.write_data(root, train=60)


@pytest.fixture(scope="module")
def made(corpus):
    """The recipe itself, small: the tokenizer of the tiny dialogues and ten steps."""
    root, registry = corpus
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONO_S2S_DATASETS_FILE", str(registry))
        patch.setenv("MONO_S2S_SCRATCH_DIR", str(root / "scratch"))
        patch.setattr(reading, "VOCABULARY", 300)
        patch.setattr(reading, "SIZE", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2})
        assert reading_model.main(["make", str(root / "t5"), "--steps", "10"]) == 0
    return root / "t5"


def test_what_is_masked_stands_in_the_input(made, monkeypatch):
    monkeypatch.setattr(reading, "COMMON", 3)  # no word of the tiny texts is rare
    rng = random.Random(1)
    texts = Texts(load_tokenizer(made), [tiny.example(rng) for _ in range(30)], 0)
    for n in range(30):
        for kind in (texts.summary_again, texts.document_again):
            inputs, targets = kind(n)
            marks = [token for token in inputs if token in texts.sentinels]
            assert marks and inputs[-1] == targets[-1] == 1 and targets[-2] == texts.sentinels[len(marks)]
            assert {token for token in targets[:-1] if token not in texts.sentinels} <= set(inputs)
    ids = list(range(10, 40))
    inputs, targets = masked(ids, [(2, 5), (9, 10)], texts.sentinels)
    assert inputs == [10, 11, texts.sentinels[0], *range(15, 19), texts.sentinels[1], *range(20, 40), 1]
    assert targets == [texts.sentinels[0], 12, 13, 14, texts.sentinels[1], 19, texts.sentinels[2], 1]


def test_random_copies_draw_from_a_vocabulary_that_grows_and_short_texts_come_first(made):
    rng = random.Random(2)
    pairs = [(" ".join(["book"] * length), "a book") for length in range(5, 105)]
    texts = Texts(load_tokenizer(made), [*pairs, tiny.example(rng)], 0)

    def largest(done: float) -> int:
        rows = texts.batch("random_copy", 30, done)
        return max(token for inputs, _ in rows for token in inputs if token not in texts.sentinels)

    assert largest(0.0) < 60 <= largest(1.0) < texts.pieces
    early, late = (
        max(len(inputs) for _ in range(20) for inputs, _ in texts.batch("summary", 5, done)) for done in (0.0, 0.5)
    )
    assert early < 50 < late


def test_the_recipe_makes_a_model_that_the_stages_take(made):
    model, tokenizer = load_model(made), load_tokenizer(made)
    assert model.config.vocab_size >= len(tokenizer) and model.config.tie_word_embeddings
    assert model.config.feed_forward_proj == "relu" and model.config.decoder_start_token_id == 0
    plain = new_model(len(tokenizer), 0, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    assert not torch.equal(model.shared.weight, plain.shared.weight)  # trained


TOKENIZER = world.tokenizer()
CONTEXT = world.attack_context(TOKENIZER)


def test_the_rise_is_that_of_transformers_losses_one_text_at_a_time():
    examples = world.examples(5)  # of unequal length: padding counts for nothing
    examples[4] = Example("again", examples[1].document, examples[4].summary)
    model = world.model(len(TOKENIZER) + 8)
    own, other = reading_model.exchanged_losses(CONTEXT, Victim("standard", model), examples)
    items = CONTEXT.encode(examples)
    # Half of five is two further on; the last one would meet its own document there, so it takes the next.
    for n, partner in enumerate([2, 3, 4, 0, 2]):
        for losses, source in ((own, n), (other, partner)):
            ids, labels = torch.tensor([items[source].ids]), torch.tensor([items[n].labels])
            with torch.no_grad():
                assert losses[n] == pytest.approx(float(model(input_ids=ids, labels=labels).loss), abs=1e-4)
    assert abs(other - own).max() > 0.01


def test_a_model_that_ignores_its_document_has_no_rise():
    model = world.model(len(TOKENIZER) + 8)
    with torch.no_grad():
        for block in model.decoder.block:
            block.layer[1].EncDecAttention.o.weight.zero_()
    own, other = reading_model.exchanged_losses(CONTEXT, Victim("standard", model), world.examples(4))
    assert own == pytest.approx(other, abs=1e-6) and own.min() > 1


def test_one_document_cannot_be_exchanged():
    same = [Example(str(n), world.document(0), world.document(n, 5)) for n in range(3)]
    with pytest.raises(InputError, match="nothing to exchange"):
        reading_model.exchanged_losses(CONTEXT, Victim("m", world.model(len(TOKENIZER) + 8)), same)


def test_measure_prints_a_line_for_each_model(made, monkeypatch, capsys, tmp_path):
    from utils.attacks import victims

    rng = random.Random(4)
    texts = [Example(str(n), *tiny.example(rng)) for n in range(9)]
    for place in ("SCRATCH", "PROJECT"):
        monkeypatch.setenv(f"MONO_S2S_{place}_DIR", str(tmp_path / place))
    monkeypatch.setattr(victims, "load_examples", lambda *_: texts)
    assert reading_model.main(["measure", "-n", "6", "--model-dir", str(made)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    mean, lower, upper = found["rise"]
    assert found["model"] == str(made) and found["texts"] == 6 and lower <= mean <= upper and found["loss"] > 1


def test_nothing_is_downloaded(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MONO_S2S_SCRATCH_DIR", str(tmp_path))
    assert reading_model.main(["make", str(tmp_path / "t5")]) == 3
    assert "DATASETS_FILE" in capsys.readouterr().err and not (tmp_path / "t5").exists()


def test_a_directory_that_is_there_is_not_replaced(made, capsys):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert reading_model.main(["make", str(made), "--steps", "1"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
