"""float32 or bfloat16: one rule for every stage."""

from __future__ import annotations

import pytest
import torch

from utils.core.errors import StageError
from utils.modeling.precision import bf16_autocast, product_dtype, resolve_precision


@pytest.mark.parametrize(
    ("setting", "device", "capable", "expected"),
    [
        ("auto", "cpu", False, "fp32"),
        ("fp32", "cpu", False, "fp32"),
        ("bf16", "cpu", False, "bf16"),
        ("auto", "cuda", False, "fp32"),
        ("auto", "cuda", True, "bf16"),
        ("fp32", "cuda", True, "fp32"),
        ("bf16", "cuda:0", True, "bf16"),
    ],
)
def test_bf16_is_used_where_it_is_wanted_and_computed_in(monkeypatch, setting, device, capable, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: capable)
    assert resolve_precision(setting, device) == resolve_precision(setting, torch.device(device)) == expected


def test_an_old_gpu_and_an_unknown_setting_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # A GPU that emulates bfloat16 does not have it.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(StageError, match="MONO_S2S_PRECISION=fp32"):
        resolve_precision("bf16", "cuda")
    assert resolve_precision("auto", "cuda") == "fp32"
    with pytest.raises(ValueError, match="half"):
        resolve_precision("half", "cpu")


def test_products_are_computed_in_what_was_chosen() -> None:
    x = torch.randn(3, 4)
    for precision in ("fp32", "bf16"):
        with bf16_autocast(torch.device("cpu"), precision == "bf16"):
            assert (x @ x.T).dtype == product_dtype(precision)
