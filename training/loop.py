"""The resumable training loop of every network here.

It has AdamW, a warm-up, a constant rate, a linear cool-down, an average of the weights (EMA), and a
log.
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

from asddim_lib.errors import check

#: The loss of a training step under "loss", beside other terms for the log.
Loss = Callable[[int], dict[str, Tensor]]


def fit(
    name: str,
    model: nn.Module,
    loss: Loss,
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
    inputs: str = "",
) -> nn.Module:
    """Minimises `loss(step)["loss"]`, and returns the model with the average of its weights.

    Only parameters that require a gradient are trained. The batch and its noise depend on the
    step's number alone, so a run that was stopped goes on from its last checkpoint with the same
    result. `cooldown` is the share of steps over which the learning rate falls linearly to zero.
    `continued` is noted in the record: the model was an earlier run's. `inputs` is a hash of other
    networks that the loss reads. Raises WrongUse if the checkpoint was trained with other inputs,
    FloatingPointError if the loss is not finite.
    """
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(name, model, folder / "checkpoint.pt", lr, weight_decay, inputs)
    training.resume()
    begin, terms = time.monotonic() - training.seconds, []
    model.train()
    remaining = range(training.step, steps)
    for step in tqdm(remaining, initial=training.step, total=steps, desc=name, mininterval=20):
        rate = lr * min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, cooldown * steps))
        torch.manual_seed(seed * 1_000_003 + step)
        terms.append(training.update(loss, rate, bf16, ema))
        training.seconds = time.monotonic() - begin
        if training.step % log_every == 0 or training.step == steps:
            append_log(folder / "log.jsonl", training, rate, terms)
            terms = []
        if training.step % save_every == 0 or training.step == steps:
            training.save()
    training.use_average()
    options = {"seed": seed, "continued": continued, "steps": steps, "lr": lr}
    write_record(folder / "record.json", training, options, bf16)
    return model.eval()


class Training:
    """A model with its optimizer and the average of its weights, after `step` steps."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        checkpoint: Path,
        lr: float,
        weight_decay: float,
        inputs: str,
    ) -> None:
        self.name, self.model, self.checkpoint, self.inputs = name, model, checkpoint, inputs
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.weights]
        options = {"lr": lr, "betas": (0.9, 0.99), "weight_decay": weight_decay, "fused": True}
        self.optimizer = torch.optim.AdamW(self.weights, **options)
        self.lr, self.step, self.seconds = lr, 0, 0.0

    def resume(self) -> None:
        """Loads the checkpoint, if there is one.

        Raises WrongUse if it was trained with other inputs.
        """
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        check(
            state.get("inputs", "") == self.inputs,
            "checkpoint",
            str(self.checkpoint),
            "it does not belong to this autoencoder and text tower; restore theirs, or delete"
            f" {self.checkpoint.parent} to start again",
        )
        self.step, self.seconds = state["step"], state["seconds"]
        self.optimizer.load_state_dict(state["optimizer"])
        for weight, value in zip(self.weights, state["model"], strict=True):
            weight.data.copy_(value)
        self.average = state["average"]

    def save(self) -> None:
        """Writes the checkpoint; the old one stays until the new one is complete."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "inputs": self.inputs,
            "optimizer": self.optimizer.state_dict(),
            "model": [weight.data for weight in self.weights],
            "average": self.average,
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def update(self, loss: Loss, rate: float, bf16: bool, ema: float) -> dict[str, float]:
        """One step of the optimizer and of the average; returns the terms of the loss.

        `bf16` computes the loss under autocast.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The fused attention kernel is slow backwards in bfloat16.
        kernel = sdpa_kernel(SDPBackend.MATH) if bf16 else nullcontext()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), kernel:
            terms = loss(self.step)
        terms["loss"].backward()
        if not torch.isfinite(terms["loss"]):
            raise FloatingPointError(
                f"{self.name}: the loss is {terms['loss'].item()} at step {self.step};"
                f" lower lr ({self.lr}) and start again"
            )
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(ema, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.weights], 1 - decay)
        self.step += 1
        return {key: value.item() for key, value in terms.items()}

    def use_average(self) -> None:
        """Copies the average into the model."""
        for weight, mean in zip(self.weights, self.average, strict=True):
            weight.data.copy_(mean)


def append_log(file: Path, training: Training, rate: float, terms: list[dict[str, float]]) -> None:
    """Adds a line with the means of the terms since the last line."""
    means = {key: sum(term[key] for term in terms) / len(terms) for key in terms[0]}
    seconds = round(training.seconds, 1)
    line = json.dumps({"step": training.step, "lr": rate, "seconds": seconds, **means})
    with file.open("a") as log:
        log.write(line + "\n")


def write_record(file: Path, training: Training, options: dict, bf16: bool) -> None:
    """Writes the run's options, its time, and the machine."""
    record = {
        "name": training.name,
        **options,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "seconds": round(training.seconds),
        "threads": torch.get_num_threads(),
        "bf16": bf16,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    file.write_text(json.dumps(record, indent=2) + "\n")
