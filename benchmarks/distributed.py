"""One run in several processes: ``featemb train --distributed`` under torchrun.

Every process reads the data and builds the same network, whose rows TorchRec then divides. A batch
is cut into the processes' parts, so that every row is trained on once an epoch and scored once.
Process 0 brings the rows together at the end, freezes and tests the network as one process does,
and writes the record.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from featemb import optim, staging
from featemb.benchmarks import sources
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.evaluation import Scores
from featemb.benchmarks.network import build_network
from featemb.benchmarks.stopping import now
from featemb.benchmarks.training import Alone, Trained, train
from featemb.checkpoint import Checkpoint
from featemb.datasets import Dataset, Split
from featemb.errors import ConfigError
from featemb.history import Batch
from featemb.models import CTRModel
from featemb.schema import Schema
from featemb.starting import rows_later
from featemb.torchrec import check_shardable, shard
from featemb.torchrec.checkpoint import RankCheckpoint
from featemb.torchrec.ranks import RankBatch, all_rows, parts_of
from featemb.torchrec.sharding import SHARDINGS

T = TypeVar("T")
SILENCE = 50.0  # seconds
_LOADING = timedelta(days=1)


@dataclass(frozen=True)
class Place:
    """This process in its job, as torchrun tells it.

    Attributes:
        rank: number of the process.
        local_rank: number on its machine.
        world: number of processes.
    """

    rank: int
    local_rank: int
    world: int

    @classmethod
    def of_environment(cls) -> Place:
        """Read torchrun's variables.

        Raises:
            ConfigError: they are not there.
        """
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        if any(name not in os.environ for name in names):
            raise ConfigError(
                "--distributed runs under torchrun: "
                "torchrun --nproc-per-node 2 -m featemb train --distributed ..."
            )
        return cls(*(int(os.environ[name]) for name in names))

    def device(self, wanted: str) -> str:
        """Return this process's device: each has a GPU of its own.

        Raises:
            ConfigError: a GPU is named by number, or there are fewer than processes.
        """
        if wanted == "cpu":
            return wanted
        if wanted != "cuda":
            raise ConfigError(f"--distributed gives each process its own GPU: cuda, not {wanted!r}")
        if self.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {self.local_rank} of this machine has no GPU: "
                f"there are {torch.cuda.device_count()}"
            )
        return f"cuda:{self.local_rank}"


@contextmanager
def process_group(device: str, silence: float) -> Iterator[None]:
    """Join the job: gloo on the CPU, NCCL on GPUs.

    Args:
        device: of this process.
        silence: seconds that a process waits for the others before it ends with an error.
    """
    timeout = timedelta(seconds=silence)
    if device == "cpu":
        dist.init_process_group("gloo", timeout=timeout)
    else:
        torch.cuda.set_device(torch.device(device))
        dist.init_process_group("nccl", timeout=timeout, device_id=torch.device(device))
    try:
        yield
    finally:
        dist.destroy_process_group()


def one_first(work: Callable[[], T]) -> T:
    """Do something in process 0, then in the others: they find what the first left in a cache.

    It may take longer than processes wait for each other otherwise.
    """
    store = dist.distributed_c10d._get_default_store()
    keys = [f"featemb/done/{rank}" for rank in range(dist.get_world_size())]
    if dist.get_rank() != 0:
        store.wait(keys[:1], _LOADING)
    done = work()
    store.set(keys[dist.get_rank()], "done")
    store.wait(keys, _LOADING)
    return done


class Ranks(Alone):
    """How one of several processes trains.

    Args:
        sharding: as for `featemb.torchrec.shard`.
    """

    def __init__(self, sharding: str = "row_wise") -> None:
        if sharding not in SHARDINGS:
            raise ConfigError(f"unknown sharding {sharding!r}; Allowed: {', '.join(SHARDINGS)}")
        self.sharding = sharding
        self.about: dict[str, Any] = {}
        self._parts: dict[str, int] = {}
        self._device = "cpu"

    def build(self, config: RunConfig, schema: Schema) -> CTRModel:
        """Build the network without rows: each process makes its own alone.

        Raises:
            ConfigError: the method's rows cannot be divided, or a kernel is asked for.
        """
        check_kernel(config)
        self._parts = planned_bytes(config, schema)
        with rows_later():
            return build_network(config, schema, device="cpu")

    def run(
        self,
        net: CTRModel,
        config: RunConfig,
        dataset: Dataset,
        note: Callable[[dict[str, Any]], None],
        checkpoint: Checkpoint | None,
    ) -> tuple[CTRModel, Trained]:
        """Divide the rows, train, and bring them together in process 0.

        Returns:
            In process 0 the trained network as one process has it, on the CPU; elsewhere the
            untrained one.
        """
        self._device = config.device
        torch.manual_seed(config.seed + dist.get_rank())  # dropout differs between the processes
        model = shard(
            net,
            self.sharding,
            optimizer=config.optimizer,
            weight_decay=config.weight_decay,
            device=config.device,
        )
        world, backend = dist.get_world_size(), dist.get_backend()
        self.about = {
            "processes": world,
            "backend": backend,
            "sharding": self.sharding,
            "rows_stepped_by": "FBGEMM" if model.engine == "fused" else "featemb",
        }
        state = None
        if checkpoint is not None:
            how = checkpoint.minutes, checkpoint.keep
            state = RankCheckpoint(_folder(checkpoint), model, *how)
        trained = train(model, config, dataset, note, state, self)
        whole = model.gathered(to=0)
        if whole is None:
            return net, trained
        with rows_later():
            plain = build_network(config, dataset.schema, device="cpu")
        state_dict = {name: value.cpu().contiguous() for name, value in whole.items()}
        plain.load_state_dict(state_dict, assign=True)
        return plain.eval(), trained

    def clean(self, checkpoint: Checkpoint) -> None:
        """Remove what a run went on from."""
        shutil.rmtree(_folder(checkpoint), ignore_errors=True)

    def batches(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """Return this process's part of each batch."""
        return parts_of(batches)

    def predict(
        self, net: nn.Module, split: Split, batch_size: int, device: torch.device
    ) -> Scores:
        """Return the probabilities of a split; every process scores its rows and gets all."""

        def parts() -> Iterator[tuple[RankBatch, Tensor]]:
            whole = split.batches(batch_size, shuffle=False, seed=0, epoch=0, device=device)
            for part in parts_of(whole):
                inputs = (part.ids,) if part.numeric is None else (part.ids, part.numeric)
                yield part, net(*inputs).float().sigmoid()

        with torch.no_grad():
            return all_rows(parts(), batch_size, len(split)).cpu().numpy()

    def stop(self) -> bool:
        """Whether any process was told to end: all end behind the same step."""
        told = torch.tensor(int(now().asked()), device=self._device)
        dist.all_reduce(told)
        return bool(told)

    def training_parts(
        self, net: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
    ) -> dict[str, int]:
        """Return the bytes of all processes' rows together, as in one process."""
        return self._parts


def _folder(checkpoint: Checkpoint) -> Path:
    return checkpoint.path.with_suffix(".dcp")


def check_kernel(config: RunConfig) -> None:
    """Refuse a kernel of one process.

    Raises:
        ConfigError: one is asked for.
    """
    if config.kernel != "torch":
        raise ConfigError(
            f"the kernel {config.kernel!r} trains the rows of one process; with --distributed "
            "FBGEMM steps rows where it has the optimizer, without being asked"
        )


def planned_bytes(config: RunConfig, schema: Schema) -> dict[str, int]:
    """Return the embedding layers' bytes in training by part, found without memory.

    Raises:
        ConfigError: the method's rows cannot be divided.
    """
    net = build_network(config, schema, device="meta")
    for layer in staging.layers(net):
        check_shardable(layer)
    optimizers = optim.build(net, config.lr, config.optimizer, config.weight_decay)
    for one in optimizers:
        one.allocate()  # type: ignore[attr-defined]
    return dict(net.memory(optimizers).training_parts)


def follow(config: RunConfig, dataset: Dataset, side: Ranks, checkpoint: Checkpoint | None) -> None:
    """Train as `featemb.benchmarks.run.run_one` does in process 0, and leave the rest to it."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dataset = sources.subsample(dataset, config.rows, config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = side.build(config, dataset.schema)
        side.run(net, config, dataset, lambda row: None, checkpoint)
