"""Scores of a network on a split, and the metrics of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from featemb.benchmarks import metrics
from featemb.datasets import Split

Scores = npt.NDArray[np.float32]


def predict(net: nn.Module, split: Split, batch_size: int, device: torch.device) -> Scores:
    """Return the probabilities float32 ``[N]`` of a split in order; the network is in eval mode."""
    parts = []
    with torch.inference_mode():
        for batch in split.batches(batch_size, shuffle=False, seed=0, epoch=0, device=device):
            inputs = (batch.ids,) if batch.numeric is None else (batch.ids, batch.numeric)
            parts.append(net(*inputs).float().sigmoid())
        return torch.cat(parts).cpu().numpy()


def quick_scores(label: npt.NDArray[Any], score: Scores) -> tuple[float, float]:
    """Return AUC and LogLoss, without intervals: what training looks at."""
    return metrics.auc(label, score), metrics.logloss(label, score)


def measure(split: Split, score: Scores) -> dict[str, Any]:
    """Return the metrics of a split with their intervals, as in a run's record."""
    user = None if split.user is None else split.user.numpy()
    return metrics.summarise(split.label.numpy(), score, user)
