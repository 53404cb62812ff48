"""`Stepper`: training steps of a run one by one, as `featemb.fit` does them, with their times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count

import torch

from featemb import optim, staging
from featemb.benchmarks import environment
from featemb.benchmarks.config import RunConfig
from featemb.datasets import Batch, Dataset
from featemb.models import CTRModel


class Stepper:
    """Steps of the first stage of a run, over and over its training rows.

    Args:
        net: the network; it is trained.
        config: settings of the run.
        dataset: its data.
    """

    def __init__(self, net: CTRModel, config: RunConfig, dataset: Dataset) -> None:
        self.net, self.device, self.done = net, config.device, 0
        self.layers = staging.layers(net)
        stage = staging.stages(net)[0]
        staging.begin(net, stage, net.state_dict())
        self.optimizers = optim.build(
            net, config.lr, config.optimizer, config.weight_decay, config.net_weight_decay, stage
        )
        self.batches = self._batches(config, dataset)
        net.train()

    def _batches(self, config: RunConfig, dataset: Dataset) -> Iterator[Batch]:
        for epoch in count():
            yield from dataset.splits["train"].batches(
                config.batch_size,
                shuffle=True,
                seed=config.seed,
                epoch=epoch,
                device=torch.device(config.device),
            )

    def __call__(self) -> float:
        """Make a step; return its seconds, without those of making the batch."""
        batch = next(self.batches)
        environment.synchronize(self.device)
        began = time.perf_counter()
        staging.update(self.net, self.layers, batch, self.optimizers)
        self.done += 1
        for layer in self.layers:
            layer.after_step(self.done)
        environment.synchronize(self.device)
        return time.perf_counter() - began
