"""Training steps, and everything that changes with them."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tools.reasoning import checkpoint
from tools.reasoning.batches import Batch, BatchShape
from tools.reasoning.encoding import IGNORED
from tools.reasoning.model import Reasoner, Shape
from tools.reasoning.packed_attention import packed_attention
from tools.reasoning.schedule import learning_rate

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
LARGEST_GRADIENT = 1.0
MUON_RATE_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What must stay the same when a training is resumed, but for the number of steps.

    Attributes:
        model: its size.
        batch: rows and length of a batch, and the number of steps.
        peak_rate: the highest learning rate.
        seed: of weights and data.
    """

    model: Shape
    batch: BatchShape
    peak_rate: float
    seed: int
    optimizer: str = "adamw"

    def facts(self) -> dict[str, int | float]:
        """All numbers by name."""
        own = {"peak_rate": self.peak_rate, "seed": self.seed}
        return own | {f"model.{name}": value for name, value in asdict(self.model).items()} | asdict(self.batch)


class Trainer:
    """A model, its optimizer, and the number of steps made.

    On a GPU the model is compiled and runs in bf16 with float32 parameters; elsewhere it runs in float32.
    """

    def __init__(self, settings: Settings, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = device
        self.step = 0
        self.model = Reasoner(settings.model).to(device)
        self.optimizers = _optimizers(self.model, device, settings.optimizer)
        self._packed = packed_attention(device)
        self._network = torch.compile(self.model) if device.type == "cuda" else self.model

    def train(self, batch: Batch) -> torch.Tensor:
        """One step; returns the mean loss over the assistant's tokens, on the device."""
        rate = learning_rate(self.step, self.settings.batch.steps, self.settings.peak_rate)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_factor"]
        targets = batch.targets.to(self.device, non_blocking=True)
        logits = self._logits(batch)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def predict(self, batch: Batch) -> np.ndarray:
        """The most likely next token behind each token, [B, T]."""
        predicted: np.ndarray = self._logits(batch).argmax(-1).cpu().numpy()
        return predicted

    def save(self, directory: Path) -> None:
        """Write the model for use, and the state for `resume`."""
        checkpoint.export(self.model, directory)
        facts = self.settings.facts() | {"step": self.step}
        checkpoint.save_state(self.model, self.optimizers, facts, directory)

    def resume(self, directory: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            ValueError: it was saved with other settings; the message names them.
        """
        saved, ours = checkpoint.read_facts(directory), self.settings.facts()
        different = [name for name, value in ours.items() if name != "steps" and saved[name] != value]
        if different:
            changes = ", ".join(f"{name} was {saved[name]}, not {ours[name]}" for name in different)
            raise ValueError(f"the training in {directory} cannot be resumed with other settings: {changes}")
        self.step = int(saved["step"])
        checkpoint.load_state(self.model, self.optimizers, self.step, directory)

    def _logits(self, batch: Batch) -> torch.Tensor:
        token_ids, documents, positions = (
            tensor.to(self.device, non_blocking=True) for tensor in (batch.token_ids, batch.documents, batch.positions)
        )
        mask = self._packed.make_mask(documents)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits: torch.Tensor = self._network(token_ids.long(), positions, self._packed.attention, mask)
        return logits


def _optimizers(model: Reasoner, device: torch.device, kind: str) -> list[checkpoint.Optimizer]:
    """AdamW, with weight decay on matrices but the embedding; or Muon for these matrices."""
    embedding = model.model.embed_tokens.weight
    matrices = [each for each in model.parameters() if each.dim() == 2 and each is not embedding]
    others = [each for each in model.parameters() if each.dim() != 2 or each is embedding]
    groups = [{"params": others, "weight_decay": 0.0, "rate_factor": 1.0}]
    if kind == "adamw":
        groups.append({"params": matrices, "weight_decay": WEIGHT_DECAY, "rate_factor": 1.0})
    rest = torch.optim.AdamW(groups, betas=BETAS, fused=device.type == "cuda")
    if kind == "adamw":
        return [rest]
    muon = torch.optim.Muon(
        [{"params": matrices, "rate_factor": MUON_RATE_FACTOR}],
        weight_decay=WEIGHT_DECAY,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, rest]
