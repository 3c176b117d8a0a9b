"""Models on disk and from the hub: loaded checked, exported plain, refused with one clear line."""

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration, T5Tokenizer

from tests.hub import Hub
from tests.tiny import example, write_model
from utils.core.errors import InputError, StageError, UserError
from utils.core.hashes import weights_sha256
from utils.modeling.models import choose_device, count_parameters, export, fetch_pretrained, load_model
from utils.modeling.monotonic import constrain, is_constrained, min_ffn_weight
from utils.modeling.tokenizer import check_tokenizer, load_tokenizer

pytestmark = pytest.mark.slow

TEXT = "summarize: " + example(random.Random(3))[0]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("a model"), layers=2)


@pytest.fixture
def copy_of(pretrained, tmp_path) -> Path:
    return Path(shutil.copytree(pretrained, tmp_path / "copy"))


def test_load_gives_a_float32_sdpa_model_in_eval_mode(pretrained):
    model = load_model(pretrained)
    assert not model.training and model.config._attn_implementation == "sdpa"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.shared.weight is model.encoder.embed_tokens.weight


def test_half_precision_files_are_loaded_as_float32(copy_of):
    weights = copy_of / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    assert {parameter.dtype for parameter in load_model(copy_of).parameters()} == {torch.float32}


def test_sdpa_and_eager_attention_agree_on_padded_batches(pretrained):
    sdpa = load_model(pretrained)
    eager = T5ForConditionalGeneration.from_pretrained(pretrained, attn_implementation="eager").eval()
    ids = torch.randint(3, 100, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:], mask[2, 3:] = 0, 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids[:, :6].contiguous()}
    ours, theirs = sdpa(**batch), eager(**batch)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    ours.loss.backward()
    theirs.loss.backward()
    for (name, a), b in zip(sdpa.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_refused(copy_of, value):
    weights = load_file(copy_of / "model.safetensors")
    weights["decoder.block.1.layer.2.DenseReluDense.wo.weight"][1, 2] = value
    save_file(weights, copy_of / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"DenseReluDense\.wo\.weight has NaN or infinite"):
        load_model(copy_of)


def test_missing_and_torn_files_are_refused(copy_of, tmp_path):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_model(tmp_path / "nothing")
    weights = copy_of / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(copy_of)
    weights.unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(copy_of)
    with pytest.raises(InputError, match="no model weights"):
        weights_sha256(copy_of)


def test_a_missing_weight_is_not_silently_random(copy_of):
    weights = load_file(copy_of / "model.safetensors")
    del weights["encoder.block.0.layer.1.DenseReluDense.wi.weight"]
    save_file(weights, copy_of / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lacks weights"):
        load_model(copy_of)


# ---- the tokenizer ---------------------------------------------------------------------------------------------


def test_tokenizer_is_checked_against_the_model(pretrained):
    tokenizer = load_tokenizer(pretrained)
    assert tokenizer(TEXT).input_ids[-1] == 1
    check_tokenizer(tokenizer, "here", vocabulary=len(tokenizer))
    for embeddings in (50, len(tokenizer) - 1, len(tokenizer) + 128):  # T5 pads to a multiple of 128, not further
        with pytest.raises(InputError, match=f"model of {embeddings} embeddings: they are not a pair"):
            check_tokenizer(tokenizer, "here", vocabulary=embeddings)


def test_the_wrong_constructor_is_caught(pretrained):
    hollow = T5Tokenizer(vocab_file=str(pretrained / "spiece.model"))
    assert len(hollow) < 110  # as documented: the vocabulary file is silently not read
    with pytest.raises(InputError, match="vocabulary file was not read"):
        check_tokenizer(hollow, pretrained)


def test_missing_tokenizer_is_refused(copy_of, tmp_path):
    with pytest.raises(InputError, match="not a directory"):
        load_tokenizer(tmp_path / "nothing")
    for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json"):
        (copy_of / name).unlink(missing_ok=True)
    with pytest.raises(InputError):
        load_tokenizer(copy_of)


# ---- export ------------------------------------------------------------------------------------------------------

CLEAN_PROCESS = """
import json, sys
from transformers import AutoTokenizer, T5ForConditionalGeneration
directory, text = sys.argv[1:]
model = T5ForConditionalGeneration.from_pretrained(directory).eval()
batch = AutoTokenizer.from_pretrained(directory)(text, return_tensors="pt")
ids = model.generate(**batch, num_beams=3, max_new_tokens=12, min_new_tokens=3)
smallest = min(float(p.min()) for n, p in model.named_parameters() if "DenseReluDense" in n)
print(json.dumps([ids.tolist(), model(**batch, labels=ids[:, 1:].contiguous()).logits.sum().item(), smallest]))
"""


def test_export_loads_with_plain_transformers_and_generates_the_same(pretrained, tmp_path):
    model, tokenizer = constrain(load_model(pretrained)), load_tokenizer(pretrained)
    export(model, tokenizer, tmp_path / "best")
    assert is_constrained(model)  # the model that goes on training is left alone
    command = [sys.executable, "-c", CLEAN_PROCESS, str(tmp_path / "best"), TEXT]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert answer.returncode == 0, answer.stderr
    ids, logits, smallest = json.loads(answer.stdout)
    batch = tokenizer(TEXT, return_tensors="pt")
    ours = model.generate(**batch, num_beams=3, max_new_tokens=12, min_new_tokens=3)
    assert ids == ours.tolist() and len(ids[0]) > 4
    with torch.no_grad():
        assert model(**batch, labels=ours[:, 1:].contiguous()).logits.sum().item() == pytest.approx(logits, rel=1e-6)
    assert smallest >= 0 and smallest == min_ffn_weight(model)


def test_export_has_no_leftovers(copy_of, tmp_path):
    config = json.loads((copy_of / "config.json").read_text())
    config["task_specific_params"] = {"summarization": {"num_beams": 4, "length_penalty": 2.0, "max_length": 200}}
    (copy_of / "config.json").write_text(json.dumps(config))
    (copy_of / "generation_config.json").write_text(json.dumps({"num_beams": 7, "eos_token_id": 1, "pad_token_id": 0}))
    export(load_model(copy_of), load_tokenizer(copy_of), tmp_path / "out")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    generation.pop("transformers_version")
    assert {key: value for key, value in generation.items() if not key.startswith("_")} == {
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    assert not json.loads((tmp_path / "out" / "config.json").read_text()).get("task_specific_params")
    assert not list(tmp_path.glob(".*"))
    tokens = [load_tokenizer(place)(TEXT).input_ids for place in (copy_of, tmp_path / "out")]
    assert tokens[0] == tokens[1]
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1  # who may read one may read all


def test_export_of_a_broken_model_leaves_the_old_one(pretrained, tmp_path):
    model, tokenizer = load_model(pretrained), load_tokenizer(pretrained)
    export(model, tokenizer, tmp_path / "best")
    before = weights_sha256(tmp_path / "best")
    assert before == weights_sha256(tmp_path / "best")
    with torch.no_grad():
        model.shared.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"shared\.weight has NaN"):
        export(model, tokenizer, tmp_path / "best")
    assert weights_sha256(tmp_path / "best") == before
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_count_and_device(pretrained):
    model = load_model(pretrained)
    assert count_parameters(model) == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    assert choose_device("cpu") == "cpu"
    if torch.cuda.is_available():
        assert choose_device("auto") == choose_device("cuda") == "cuda"
    else:
        assert choose_device("auto") == "cpu"
        with pytest.raises(StageError, match="MONO_S2S_DEVICE=cpu"):
            choose_device("cuda")


# ---- the hub -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, pretrained):
    """A hub with the model `maker/t5`, and files that are none of our business."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http, close_session

    quick = types.SimpleNamespace(**vars(time))
    quick.sleep = lambda seconds: time.sleep(seconds / 200)  # the client's own pauses
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", quick)
    with Hub() as server:
        files = {path.name: path.read_bytes() for path in pretrained.iterdir()}
        server.commit = server.add("maker/t5", {**files, "tf_model.h5": b"x" * 1000}, kind="models")
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        close_session()
        yield server
    close_session()


def fetch(tmp_path, name="maker/t5", revision=None, retries=4):
    return fetch_pretrained(name, revision, cache_dir=tmp_path / "cache", max_retries=retries, retry_delay=0.01)


def test_a_model_comes_from_the_hub_pinned_and_without_its_other_copies(hub, tmp_path, pretrained):
    model, tokenizer, commit = fetch(tmp_path)
    assert commit == hub.commit
    assert torch.equal(model.shared.weight, load_model(pretrained).shared.weight)
    assert tokenizer(TEXT).input_ids == load_tokenizer(pretrained)(TEXT).input_ids
    assert not any("tf_model.h5" in request for request in hub.requests)
    hub.stop()
    assert fetch(tmp_path, revision=commit)[2] == commit  # from the cache, the hub is gone


def test_a_directory_needs_no_hub(pretrained, tmp_path):
    model, _, commit = fetch(tmp_path, name=str(pretrained))
    assert commit is None and count_parameters(model) > 0


@pytest.mark.parametrize(
    ("request_", "kind", "options"),
    [
        ("GET .*/model.safetensors", "status", {"status": 503, "times": 2}),
        ("GET .*/model.safetensors", "reset", {"times": 2}),
        ("GET .*/model.safetensors", "short", {"times": 1}),
        ("GET .*/model.safetensors", "corrupt", {"times": 1}),
        ("GET .*/spiece.model", "corrupt", {"times": 1}),
        ("GET .*/revision/", "status", {"status": 500, "times": 1}),
    ],
)
def test_passing_faults_are_survived_with_the_right_bytes(hub, tmp_path, pretrained, request_, kind, options):
    hub.fault(request_, kind, **options)
    model, tokenizer, _ = fetch(tmp_path)
    assert torch.equal(model.shared.weight, load_model(pretrained).shared.weight)
    assert tokenizer(TEXT).input_ids == load_tokenizer(pretrained)(TEXT).input_ids


@pytest.mark.parametrize("kind", ["mute", "drip"])
@pytest.mark.parametrize("request_", ["/api/models/.*/tree/", "GET /api/"])
def test_a_hub_that_accepts_and_never_answers_ends_in_one_line(hub, tmp_path, monkeypatch, kind, request_):
    from utils.data import deadlines as downloads

    monkeypatch.setattr(downloads, "SECONDS_OF_SILENCE", 0.3)
    monkeypatch.setattr(downloads, "SLOW_SECONDS", 0.3)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.3)
    downloads.set_deadlines.cache_clear()
    hub.fault(request_, kind, seconds=60, times=-1)
    began = time.monotonic()
    try:
        with pytest.raises(StageError, match=r"maker/t5.*no success in 2 tries.*MODEL_NAME") as caught:
            fetch(tmp_path, retries=2)
    finally:
        downloads.set_deadlines.cache_clear()
    assert hub.url in str(caught.value)
    assert os.environ["HF_XET_CLIENT_READ_TIMEOUT"], "large files come through hf_xet, which waits two minutes"
    assert time.monotonic() - began < 30  # each of the client's six requests a try waits 0.3 s
    assert "\n" not in str(caught.value)


def test_a_transfer_that_stalls_in_the_middle_ends_in_one_line(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fault("GET .*/model.safetensors", "hang", seconds=60, times=-1)
    began = time.monotonic()
    with pytest.raises(StageError, match=r"maker/t5.*no success in 2 tries.*(timed out|Timeout).*MODEL_NAME") as caught:
        fetch(tmp_path, retries=2)
    assert time.monotonic() - began < 30 and "\n" not in str(caught.value)


def test_a_name_server_that_never_answers_ends_in_one_line(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    from utils.data import deadlines

    real = socket.getaddrinfo

    def black_hole(host, *arguments, **options):
        if host == "hub.example":
            time.sleep(30)
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", black_hole)
    monkeypatch.setattr(deadlines, "SECONDS_OF_SILENCE", 0.3)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    template = "http://hub.example/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    began = time.monotonic()
    with pytest.raises(StageError, match=r"no name server says where hub.example is.*MODEL_NAME") as caught:
        fetch(tmp_path, retries=2)
    assert time.monotonic() - began < 15 and "\n" not in str(caught.value)
    for names, looked_up in (({"http_proxy": "http://proxy.example:3128"}, "proxy.example"),
                             ({"http_proxy": "proxy.example:3128", "no_proxy": ".example"}, "hub.example"),
                             ({"https_proxy": "http://proxy.example:3128"}, "hub.example")):  # fmt: skip
        with monkeypatch.context() as shell:
            for name, value in names.items():
                shell.setenv(name, value)
            assert deadlines.host_to_find("http://hub.example/api") == looked_up


@pytest.mark.slow
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{"], ids=["mute", "stalls"])
def test_a_store_of_large_files_that_never_answers_ends_stage_0_in_one_line(hub, tmp_path, answer):
    with socket.create_server(("127.0.0.1", 0)) as store:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = store.accept()
                    connection.sendall(answer)
                    kept.append(connection)

        kept: list[socket.socket] = []
        threading.Thread(target=accept, daemon=True).start()
        hub.content_store = f"http://127.0.0.1:{store.getsockname()[1]}"
        settings = {"MODEL_NAME": "maker/t5", "MODEL_REVISION": hub.commit, "DATASET_MAX_RETRIES": "1"}
        shell = {"SCRATCH": str(tmp_path), "PROJECT": str(tmp_path), "HF_HOME": str(tmp_path / "home")}
        shell |= {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_XET_CLIENT_READ_TIMEOUT": "500ms",
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
        }
        shell |= {f"MONO_S2S_{name}": value for name, value in settings.items()}
        script = Path(__file__).resolve().parents[1] / "scripts" / "stage_0_setup.py"
        done = subprocess.run(
            [sys.executable, script], env=os.environ | shell, capture_output=True, text=True, timeout=100
        )
    assert kept, "hf_xet was not asked"
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 1 and "ERROR" in last and "maker/t5" in last and "no success in 1 tries" in last, last
    assert "Traceback" not in done.stdout + done.stderr


def test_lasting_faults_end_in_one_clear_line(hub, tmp_path):
    hub.fault("GET .*/model.safetensors", "corrupt", times=-1)
    with pytest.raises(StageError, match=r"wrong hash.*second copy.*MODEL_NAME") as damaged:
        fetch(tmp_path)
    with pytest.raises(InputError, match=r"no such repository.*MODEL_NAME") as missing:
        fetch(tmp_path, name="maker/t6")
    with pytest.raises(InputError, match="no such revision") as revision:
        fetch(tmp_path, revision="v9")
    with pytest.raises(InputError):
        fetch(tmp_path, name="not a name")
    hub.fault(".*", "status", status=503, times=-1)
    with pytest.raises(StageError, match="no success in 2 tries") as down:
        fetch(tmp_path / "empty", retries=2)
    for caught in (damaged, missing, revision, down):
        assert "\n" not in str(caught.value)
