"""`RankCheckpoint`: all state of a training in several processes, restored by any number of them.

``torch.distributed.checkpoint`` writes a numbered folder: a safetensors file for each process (its
shards, with their places). ``state.json`` in it has all that is no tensor, and a checksum of each
file; ``latest``, beside it, has the number, and is replaced when the rest is on disk. Nothing in it
is executed when it is read. Rows are stored by their place in the table, so that any number of
processes reads them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from featemb.checkpoint import Checkpoint
from featemb.errors import FormatError, StorageError
from featemb.files import replacing
from featemb.torchrec.local import Sharded
from featemb.torchrec.sharded import ShardedModel
from featemb.torchrec.trees import flatten, request, sharded_tensor, unflatten

FORMAT = 1
_LATEST, _STATE = "latest", "state.json"
_BLOCK = 1 << 24


class RankCheckpoint(Checkpoint):
    """A folder of the state of a `ShardedModel` and of what the training loop adds.

    Every process makes one, calls its methods together with the others, and sees the same files.

    Args:
        path: the folder; it need not exist, the folder that holds it must.
        model: whose state it is: rows are read for the shards that it has in this process.
        minutes: as `featemb.Checkpoint`; the first process's clock counts.
        keep: as `featemb.Checkpoint`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: ShardedModel,
        minutes: float | None = None,
        keep: int = 1,
    ) -> None:
        super().__init__(path, minutes, keep)
        self.model, self.number = model, 0

    def due(self) -> bool:
        """Whether the first process says that it is time to write."""
        return self.minutes is not None and agreed(super().due())

    def files(self) -> list[Path]:
        """Return the numbered folders that are whole, newest first."""
        latest = self.path / _LATEST
        if not latest.is_file():
            return []
        newest = latest.read_text("utf-8")
        found = sorted((one.parent for one in self.path.glob(f"*/{_STATE}")), reverse=True)
        return [one for one in found if one.name <= newest]

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Replace the state at once by that of now.

        Raises:
            StorageError: the disk is full or not writable; the last checkpoint is whole.
        """
        from torch.distributed.checkpoint.api import CheckpointException

        self.number += 1
        try:
            self._write(self.path / f"{self.number:06d}", model, state)
        except (OSError, CheckpointException) as error:
            raise StorageError(
                f"the checkpoint {os.fspath(self.path)!r} could not be written ({error}); "
                "the last one is as it was"
            ) from error
        self._written = time.monotonic()

    def _write(self, folder: Path, model: nn.Module, state: Mapping[str, Any]) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        rank = dist.get_rank()
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # half written by a process that was killed
            folder.mkdir(parents=True)
        dist.barrier()
        tree, leaves = flatten({**state, "model": model.state_dict()})
        tensors: dict[str, Any] = {
            key: sharded_tensor(leaf) if isinstance(leaf, Sharded) else leaf
            for key, leaf in leaves.items()
        }
        tensors |= {f"{key}:{rank}": value for key, value in _random().items()}
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
        sums: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(sums, _checksums(folder, rank, len(sums)))
        if rank == 0:
            files = {name: one for own in sums for name, one in own.items()}
            about = {"format": FORMAT, "world": len(sums), "files": files, "tree": tree}
            (folder / _STATE).write_text(json.dumps(about), "utf-8")
            with replacing(self.path / _LATEST) as temporary:
                temporary.write_text(folder.name, "utf-8")
            for other in self.files()[self.keep :]:
                shutil.rmtree(other)
        dist.barrier()

    def read(self) -> dict[str, Any] | None:
        """Return what the newest readable folder holds, rows as this process's shards; or None.

        Raises:
            FormatError: none is readable, it is of another model, or the folder that is to hold it
                does not exist.
        """
        if not self.path.parent.is_dir():
            raise self.refused("cannot be written: its folder does not exist")
        folders, first = self.files(), None
        if folders:
            self.number = int(folders[0].name)
        for folder in folders:
            try:
                about = self._about(folder)
            except FormatError as error:
                first = first or error
                continue
            if first is not None:
                warnings.warn(f"{first}; going on from {os.fspath(folder)!r}", stacklevel=2)
            return self._load(folder, about)
        if first is not None:
            raise first
        return None

    def _about(self, folder: Path) -> dict[str, Any]:
        """Read what a folder holds, and hold its files against their checksums.

        Raises:
            FormatError: it is damaged.
        """
        try:
            about: dict[str, Any] = json.loads((folder / _STATE).read_text("utf-8"))
            if about["format"] != FORMAT or not isinstance(about["files"], dict):
                raise ValueError(f"format {about['format']!r}")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self.refused(f"is not a readable checkpoint: {error}") from error
        self._check_files(folder, about["files"])
        return about

    def _load(self, folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
        """Read tensors and shards of this process."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        try:
            leaves = request(about["tree"], self.model.locals)
        except (LookupError, TypeError, ValueError) as error:
            raise self.refused(f"is of another model: {error}") from error
        asked: dict[str, Any] = {
            key: sharded_tensor(leaf) if isinstance(leaf, Sharded) else leaf
            for key, leaf in leaves.items()
        }
        random = {f"{key}:{dist.get_rank()}": value for key, value in _random().items()}
        same = about["world"] == dist.get_world_size()  # else each process goes on from its own
        try:
            load(
                asked | (random if same else {}),
                storage_reader=HuggingFaceStorageReader(str(folder)),
            )
        except (CheckpointException, RuntimeError) as error:
            raise self.refused(f"is of another model: {error}") from error
        found: dict[str, Any] = unflatten(about["tree"], leaves)
        found["random"] = {key.rpartition(":")[0]: value for key, value in random.items()}
        return found

    def restore(self, model: nn.Module, found: Mapping[str, Any]) -> None:
        """Set model and random state to those that were read.

        Raises:
            FormatError: the state is of another model.
        """
        try:
            model.load_state_dict(found["model"])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise self.refused(f"is of another model: {error}") from error
        torch.set_rng_state(found["random"]["random.cpu"])
        if "random.cuda" in found["random"]:
            torch.cuda.set_rng_state(found["random"]["random.cuda"])

    def _check_files(self, folder: Path, files: Mapping[str, list[int]]) -> None:
        """Hold the files against their checksums, each in one process."""
        rank, world = dist.get_rank(), dist.get_world_size()
        wrong = [
            name
            for number, (name, known) in enumerate(sorted(files.items()))
            if number % world == rank and _checksum(folder / name) != known
        ]
        found: list[Any] = [None] * world
        dist.all_gather_object(found, wrong)
        if names := [name for one in found for name in one]:
            raise self.refused(f"is damaged: {', '.join(names)} does not match its checksum")


def agreed(value: bool) -> bool:
    """Return what the first process says."""
    cuda = dist.get_backend() == "nccl"
    said = torch.tensor(int(value), device="cuda" if cuda else "cpu")
    dist.broadcast(said, 0)
    return bool(said)


def _random() -> dict[str, Tensor]:
    """Return the random state of this process."""
    found = {"random.cpu": torch.get_rng_state()}
    if dist.get_backend() == "nccl":
        found["random.cuda"] = torch.cuda.get_rng_state()
    return found


def _checksums(folder: Path, rank: int, world: int) -> dict[str, list[int]]:
    """Return the checksums of every ``world``-th file, from ``rank`` on."""
    files = sorted(one.name for one in folder.iterdir() if one.is_file())
    return {name: _checksum(folder / name) for name in files[rank::world]}


def _checksum(path: Path) -> list[int]:
    """Return size and CRC-32 of a file; zeros where it is not there."""
    if not path.is_file():
        return [0, 0]
    size, value = 0, 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size, value = size + len(block), zlib.crc32(block, value)
    return [size, value]
