"""Two training steps of a tiny monotonic T5, saved and loaded again: does this machine train at all?

    python scripts/smoke_training.py [--device cuda|cpu|auto]

Exit codes: 0 it does, 1 it does not, 3 there is no such device here.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils  # noqa: F401 - its hook tells which package this Python lacks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu", "auto"), default="auto")
    options = parser.parse_args()

    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from utils.core.errors import UserError
    from utils.modeling.models import choose_device
    from utils.modeling.monotonic import constrain, fold

    try:
        device = choose_device(options.device)
    except UserError as error:
        print(error)
        return 3
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    config.decoder_start_token_id = 0
    model: Any = constrain(T5ForConditionalGeneration(config)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(3, 64, (2, 16), device=device)
    losses = []
    for _ in range(2):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    if not all(torch.isfinite(torch.tensor(losses))):
        print(f"losses {losses}")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        fold(model).save_pretrained(folder)  # type: ignore[operator]
        plain = T5ForConditionalGeneration.from_pretrained(folder)
    smallest = min(float(p.detach().min()) for name, p in plain.named_parameters() if "DenseReluDense" in name)
    if smallest < 0:
        print(f"a feed-forward weight is negative after saving: {smallest}")
        return 1
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "the CPU"
    print(
        f"on {name}, torch {torch.__version__}: losses {losses[0]:.3f}, {losses[1]:.3f}; saved, loaded, no weight < 0"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
