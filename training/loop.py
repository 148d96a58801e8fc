"""One resumable training loop for every network here.

AdamW, warm-up, constant, linear cool-down, EMA, a log line now and then.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm


def fit(
    name: str,
    model: nn.Module,
    loss: Callable[[int], dict[str, Tensor]],
    *,
    steps: int,
    lr: float,
    runs: Path,
    seed: int,
    bf16: bool = False,
    warmup: int = 200,
    cooldown: float = 0.3,
    weight_decay: float = 0.01,
    ema: float = 0.999,
    save_every: int = 200,
    log_every: int = 50,
    continued: bool = False,
) -> nn.Module:
    """Minimises `loss(step)["loss"]` over the model's trainable parameters and returns the model
    with its EMA weights.

    The batch and its noise depend on the step's number alone, so a run that is killed and started
    again goes on from the last checkpoint as if nothing had happened. `cooldown` is the share of
    steps over which the learning rate falls linearly to zero. `bf16` computes the loss under
    autocast, with the math attention kernel: the fused one is slow backwards in bfloat16.
    `continued` is noted in the record: the model was not fresh but an earlier run's.
    """
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.pt", folder / "log.jsonl"
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    average = [p.detach().clone() for p in trained]
    start, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start, seconds = state["step"], state["seconds"]
        optimizer.load_state_dict(state["optimizer"])
        for p, saved in zip(trained, state["model"], strict=True):
            p.data.copy_(saved)
        average = state["average"]
    begun, seen = time.monotonic(), []
    model.train()
    for step in tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=20):
        rate = lr * min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, cooldown * steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed * 1_000_003 + step)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
            sdpa_kernel(SDPBackend.MATH) if bf16 else nullcontext(),
        ):
            terms = loss(step)
        terms["loss"].backward()
        if not torch.isfinite(terms["loss"]):
            raise FloatingPointError(
                f"{name}: the loss is {terms['loss'].item()} at step {step}; "
                f"lower lr ({lr}) and start again"
            )
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in trained], 1 - decay)
        seen.append({key: value.item() for key, value in terms.items()})
        done = step + 1
        if done % log_every == 0 or done == steps:
            elapsed = seconds + time.monotonic() - begun
            means = {key: sum(s[key] for s in seen) / len(seen) for key in seen[0]}
            with log.open("a") as file:
                file.write(
                    json.dumps({"step": done, "lr": rate, "seconds": round(elapsed, 1), **means})
                    + "\n"
                )
            seen = []
        if done % save_every == 0 or done == steps:
            state = {
                "step": done,
                "seconds": seconds + time.monotonic() - begun,
                "optimizer": optimizer.state_dict(),
                "model": [p.data for p in trained],
                "average": average,
            }
            torch.save(state, checkpoint.with_suffix(".part"))
            os.replace(checkpoint.with_suffix(".part"), checkpoint)
    for p, mean in zip(trained, average, strict=True):
        p.data.copy_(mean)
    record = {
        "name": name,
        "seed": seed,
        "continued": continued,
        "steps": steps,
        "lr": lr,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds + time.monotonic() - begun),
        "threads": torch.get_num_threads(),
        "bf16": bf16,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    return model.eval()
