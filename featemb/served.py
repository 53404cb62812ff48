"""`Served`: a package in service, which takes deltas while it is called."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from featemb import kinds, package
from featemb.delta import KIND, updated
from featemb.errors import ConfigError, FormatError
from featemb.export.artefact import Artefact
from featemb.export.safetensors import artefact_of
from featemb.package import Package


class _Current(NamedTuple):
    content: Package
    served: Any


class Served:
    """A package in service; called as its layer or model, from any number of threads.

    A delta makes a second module, which shares every table that does not change, is checked, and
    then takes the first one's place at once: every call runs on one of the two from its beginning
    to its end, and never on a mixture. Until the calls under way are over, the tensors that changed
    are held twice.

    Args:
        path: the package, of ``FrozenEmbedding.save``, ``models.save`` or `featemb.export`.
        device: where a layer or model computes; then the host holds the tensors besides. What was
            exported computes on the CPU.

    Raises:
        FormatError: the file is missing, cut short, corrupt, of a newer version, or no package.
    """

    def __init__(self, path: str | os.PathLike[str], device: Any = "cpu") -> None:
        self._path = Path(path)
        self._device = device
        self._one_at_a_time = threading.Lock()
        content = package.read_any(path)
        if content.kind == KIND:
            raise FormatError(f"{os.fspath(path)!r} holds a {KIND!r}, not a layer or model")
        self._current = _Current(content, self._made(content))

    @property
    def now(self) -> Any:
        """What `featemb.load` returns for the package now in service.

        It is never changed, only followed by another: several calls that must agree take it once.
        """
        return self._current.served

    @property
    def module(self) -> nn.Module:
        """The layer or model now in service, for `torch.compile` and the like."""
        now = self.now
        module: Any = now.module if isinstance(now, Artefact) else now
        return cast(nn.Module, module)

    @property
    def checksum(self) -> str:
        """Checksum of the package now in service."""
        return self._current.content.checksum

    def __call__(self, *arguments: Any) -> Tensor:
        """Return what the layer or model returns for ids, and numeric columns where it has any."""
        answer: Tensor = self.now(*arguments)
        return answer

    def raw(self, rows: Any) -> Tensor:
        """Return what the layer or model returns for raw rows; see `featemb.export.Artefact.raw`.

        Raises:
            ConfigError: the package was not exported with an encoder.
            DataError: a column is missing, a number is infinite, or there are no rows.
        """
        now = self.now
        if not isinstance(now, Artefact):
            raise ConfigError(f"{self._path} holds no encoder: export it with one for raw rows")
        return now.raw(rows)

    def apply(self, delta: str | os.PathLike[str]) -> bool:
        """Go on with the package that a delta leads to (`featemb.delta`).

        Calls under way end on what they began with. On an error nothing has changed.

        Args:
            delta: from a package of this content.

        Returns:
            Whether anything was to be done: False where the delta was applied before.

        Raises:
            FormatError: the delta cannot be read, or starts from another package.
        """
        with self._one_at_a_time:
            before = self._current.content
            after = updated(before, delta, os.fspath(self._path))
            if after is before:
                return False
            self._current = _Current(after, self._made(after))
            return True

    def _made(self, content: Package) -> Any:
        if "artefact" in content.header:
            return artefact_of(self._path, content.header, content.tensors)
        module = kinds.find(content.kind).rebuild(content.header, content.tensors)
        return module.to(self._device)


def serve(path: str | os.PathLike[str], device: Any = "cpu") -> Served:
    """Load a package to serve it and to bring it up to date by deltas; see `Served`.

    Raises:
        FormatError: the file is missing, cut short, corrupt, of a newer version, or no package.
    """
    return Served(path, device)
