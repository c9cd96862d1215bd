"""Trains the demo model and writes its folder: `python -m workers.demo.training.train --workspace FOLDER`.

A run that was stopped goes on from its last checkpoint; a file `finish` in the workspace starts the decay early.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from .export import export
from .greedy import report
from .network import Parameters, Shape, hidden_states, initial_parameters, logits, rotation_table
from .samples import BATCH_TOKENS, LENGTHS, MODEL_FOLDER, Batch, Encoder, Renderer, batches

log = logging.getLogger("demo.training")
_WARM_UP_STEPS = 100
_GRADIENT_LIMIT = 1.0
_CHECKPOINT_STEPS = 100


@dataclass(frozen=True)
class Plan:
    """What a run does: its length in steps, learning rates, seed, and where it keeps its state."""

    steps: int
    decay_steps: int
    matrix_rate: float
    other_rate: float
    seed: int
    report_steps: int
    workspace: Path
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The file that a stopped run goes on from."""
        return self.workspace / "checkpoint.pt"


class Run:
    """A training run: parameters, optimizers, the place in the corpus, and when the decay began."""

    def __init__(self, plan: Plan, shape: Shape, encoder: Encoder, tokenizer: Tokenizer) -> None:
        self.plan, self.shape, self.encoder, self.tokenizer = plan, shape, encoder, tokenizer
        self.parameters: Parameters = initial_parameters(shape, plan.seed)
        for tensor in self.parameters.values():
            tensor.requires_grad_(True)
        matrices = [tensor for name, tensor in self.parameters.items() if ".layers." in name and tensor.dim() == 2]
        others = [tensor for name, tensor in self.parameters.items() if ".layers." not in name or tensor.dim() == 1]
        self.optimizers: list[tuple[Any, float]] = [
            (torch.optim.Muon(matrices, lr=plan.matrix_rate, weight_decay=0.05, momentum=0.95), plan.matrix_rate),
            (torch.optim.AdamW(others, lr=plan.other_rate, betas=(0.9, 0.98), weight_decay=0.0), plan.other_rate),
        ]
        self.step = 0
        self.chunk = 0
        self.decay_start = plan.steps - plan.decay_steps
        self._rotations = {length: rotation_table(shape, length) for length in LENGTHS}
        self._hidden = torch.compile(hidden_states, dynamic=False)

    def save(self) -> None:
        """Write a checkpoint; a reader sees the old one or the new one, never half of one."""
        state = {
            "parameters": {name: tensor.detach() for name, tensor in self.parameters.items()},
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "step": self.step,
            "chunk": self.chunk,
            "decay_start": self.decay_start,
        }
        written = self.plan.checkpoint.with_suffix(".new")
        torch.save(state, written)
        written.replace(self.plan.checkpoint)

    def restore(self) -> None:
        """Go on from the checkpoint where there is one; the chunk it stopped in is skipped."""
        if not self.plan.checkpoint.exists():
            return
        state = torch.load(self.plan.checkpoint)
        with torch.no_grad():
            for name, tensor in state["parameters"].items():
                self.parameters[name].copy_(tensor)
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.chunk, self.decay_start = state["step"], state["chunk"] + 1, state["decay_start"]
        log.info("going on at step %d", self.step)

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted mean loss over the tokens."""
        rows = BATCH_TOKENS // batch.length
        tokens = torch.zeros(rows, batch.length, dtype=torch.long)
        targets = torch.zeros(rows, batch.length, dtype=torch.long)
        weights = torch.zeros(rows, batch.length)
        for row, sample in enumerate(batch.samples[:rows]):
            length = len(sample.tokens) - 1
            ids = torch.tensor(sample.tokens)
            tokens[row, :length] = ids[:-1]
            targets[row, :length] = ids[1:]
            weights[row, :length] = torch.tensor(sample.weights[1:])
        hidden = self._hidden(self.parameters, tokens, self.shape, self._rotations[batch.length], torch.bfloat16)
        counted = weights > 0
        losses = functional.cross_entropy(logits(self.parameters, hidden[counted]), targets[counted], reduction="none")
        return (losses * weights[counted]).sum() / weights.sum()

    def rate_factor(self) -> float:
        """Return the share of the learning rate at this step: warm-up, constant, then a line down to zero."""
        if self.step < _WARM_UP_STEPS:
            return (self.step + 1) / _WARM_UP_STEPS
        decayed = max(0, self.step - self.decay_start)
        return 1.0 - decayed / (self.plan.decay_steps + 1)

    def update(self, batch: Batch) -> float:
        """Take one step and return the loss before it."""
        loss = self.loss(batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), _GRADIENT_LIMIT)
        for optimizer, rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * self.rate_factor()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def finished(self) -> bool:
        """Say whether the decay is over, and begin it early where someone asked for that."""
        asked = self.plan.workspace / "finish"
        if asked.exists() and self.step < self.decay_start:
            self.decay_start = self.step
            log.info("decay begins at step %d", self.step)
        return self.step >= self.decay_start + self.plan.decay_steps

    def train(self) -> None:
        """Run to the end, with a checkpoint, held-out answers and an export every so often."""
        self.restore()
        source = batches(self.encoder, self.plan.seed, self.chunk)
        start, first, mean = time.monotonic(), self.step, 0.0
        while not self.finished():
            self.chunk, batch = next(source)
            value = self.update(batch)
            mean = value if not mean else 0.98 * mean + 0.02 * value
            if self.step % 20 == 0:
                speed = (self.step - first) * BATCH_TOKENS / (time.monotonic() - start)
                log.info("step %d loss %.4f mean %.4f tokens/s %.0f", self.step, value, mean, speed)
            if self.step % _CHECKPOINT_STEPS == 0:
                self.save()
            if self.step % self.plan.report_steps == 0 and not self.finished():
                log.info(report(self.parameters, self.shape, self.encoder, self.tokenizer))
                export(self.parameters, self.shape, self.plan.workspace)
        self.save()
        export(self.parameters, self.shape, self.plan.folder)
        log.info(report(self.parameters, self.shape, self.encoder, self.tokenizer))
        log.info("done in %.0f s, %d steps, mean loss %.4f", time.monotonic() - start, self.step, mean)


def _plan() -> tuple[Plan, int]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True, help="keeps the checkpoint and the log")
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER, help="where the model is written")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--decay-steps", type=int, default=2500)
    parser.add_argument("--matrix-rate", type=float, default=0.02)
    parser.add_argument("--other-rate", type=float, default=0.004)
    parser.add_argument("--report-steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    chosen.workspace.mkdir(parents=True, exist_ok=True)
    return Plan(
        chosen.steps,
        chosen.decay_steps,
        chosen.matrix_rate,
        chosen.other_rate,
        chosen.seed,
        chosen.report_steps,
        chosen.workspace,
        chosen.folder,
    ), chosen.threads


def main() -> None:
    """Read the options and train."""
    plan, threads = _plan()
    handlers: list[logging.Handler] = [logging.FileHandler(plan.workspace / "log.txt"), logging.StreamHandler()]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    torch.set_num_threads(threads)
    torch.manual_seed(plan.seed)
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    shape = Shape(tokenizer.get_vocab_size())
    run = Run(plan, shape, Encoder(tokenizer, Renderer()), tokenizer)
    log.info("%d parameters", sum(tensor.numel() for tensor in run.parameters.values()))
    run.train()


if __name__ == "__main__":
    main()
