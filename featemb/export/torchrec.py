"""Target ``torchrec``: tables of rows become TorchRec's quantised collections (FBGEMM's kernels).

The file is a safetensors package; loading it puts every table of fp32, fp16, int8, int4 or int2
rows into a ``torchrec.quant.EmbeddingBagCollection``, which TorchRec's inference sharding knows.
Addresses and combinations stay as they are. `collection` gives one collection for a whole layer
whose ids have rows of their own: KeyedJaggedTensor in, KeyedTensor out.

FBGEMM keeps a scale and a bias of two bytes each in front of a row's codes. int4 and int2 rows have
the same two, so they are exact; int8 rows here have four bytes each, so they are rounded: by up to
2^-11 of the row's largest number. A scale that rows share is repeated for each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featemb.codecs.floats import FloatRows
from featemb.codecs.integers import BlockIntRows, IntRows
from featemb.errors import ConfigError, ExportError
from featemb.export import safetensors
from featemb.export.artefact import Artefact
from featemb.export.job import Job
from featemb.export.quiet import quiet
from featemb.frozen import FrozenEmbedding
from featemb.kernels import code_bytes, pair_dtype
from featemb.parts import Concat, Lookup, OffsetAddress

TOLERANCE = 1e-3  # of int8 rows; others are exact
_READ = (FloatRows, IntRows, BlockIntRows)
_KEY = "rows"
_DTYPES = {torch.float32: "FP32", torch.float16: "FP16"}
Stored = tuple[str, int, Tensor, Tensor | None]  # data type, width, weights, scales and biases


def write(job: Job, path: Path) -> None:
    """Write a package.

    Raises:
        ConfigError: an option is given; there are none.
        ExportError: TorchRec is not installed, or the layers hold no rows that FBGEMM reads.
    """
    if job.options:
        raise ConfigError(f"torchrec has no options, got {', '.join(job.options)}")
    _torchrec()
    tables(job.net)
    safetensors.write(job, path)


def read(path: Path) -> Artefact:
    """Load a package, its tables as TorchRec's modules.

    Raises:
        ExportError: TorchRec is not installed.
        FormatError: the file is corrupt, cut short, of another version, or not written by featemb.
    """
    found = safetensors.read(path)
    assert found.module is not None
    convert(found.module)
    for module in (found.module, found.encoder):
        if module is not None:
            _apart(module)
    return found


def _apart(module: nn.Module) -> None:
    """Copy what is small, so that the file's own bytes, the tables among them, are let go."""
    if isinstance(module, CollectionRows):
        return
    for tensor in (*module.buffers(recurse=False), *module.parameters(recurse=False)):
        tensor.data = tensor.data.clone()
    for child in module.children():
        _apart(child)


def tables(net: nn.Module) -> dict[str, nn.Module]:
    """Return the tables that FBGEMM can hold, by name.

    Raises:
        ExportError: there is none; the message says what the layers hold.
    """
    found = {name: one for name, one in net.named_modules() if _readable(one)}
    if not found:
        parts = sorted({type(one).__name__ for one in net.modules() if list(one.buffers(False))})
        raise ExportError(
            "torchrec: no table of fp32, fp16, int8, int4 or int2 rows in "
            f"{', '.join(parts)}: use safetensors, pt2, aoti or onnx, or another codec"
        )
    return found


def _readable(one: nn.Module) -> bool:
    if isinstance(one, FloatRows):
        return one.weight.dtype in _DTYPES
    return isinstance(one, _READ)


def convert(net: nn.Module) -> None:
    """Put TorchRec's collections in the place of a served module's tables.

    Raises:
        ExportError: TorchRec is not installed, or there is no table that FBGEMM can hold.
    """
    for name, one in tables(net).items():
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, CollectionRows(stored(one), _width(one)))


def stored(rows: nn.Module) -> Stored:
    """Return a table in FBGEMM's terms; its width fills whole bytes."""
    if isinstance(rows, FloatRows):
        kind = _DTYPES[rows.weight.dtype]
        return kind, rows.weight.shape[1], rows.weight.contiguous().view(torch.uint8), None
    if isinstance(rows, IntRows):
        codes, pairs = rows.rows.tensor_split([code_bytes(rows.width, rows.bits)], dim=1)
        pairs = pairs.contiguous().view(pair_dtype(rows.bits))
    else:
        assert isinstance(rows, BlockIntRows)
        own = torch.arange(rows.codes.shape[0]) // rows.block
        codes, pairs = rows.codes, rows.scales[own.clamp(max=rows.scales.shape[0] - 1)]
    half = pairs.half().contiguous()
    whole = codes.shape[1] * 8 // rows.bits  # FBGEMM wants whole bytes
    return f"INT{rows.bits}", whole, codes.contiguous(), half.view(torch.uint8)


def _width(rows: nn.Module) -> int:
    return int(rows.weight.shape[1]) if isinstance(rows, FloatRows) else int(rows.width)  # type: ignore[arg-type]


class CollectionRows(nn.Module):
    """A table in a quantised collection; ``[...]`` rows give fp32 ``[..., width]``."""

    def __init__(self, table: Stored, width: int) -> None:
        super().__init__()
        self.width = width
        self.collection = _collection({_KEY: table}, {_KEY: [_KEY]}, {_KEY: "sum"})
        with quiet():  # the first call tells of tracing
            self(torch.zeros(1, dtype=torch.int64))

    def forward(self, rows: Tensor) -> Tensor:
        """Look up rows, each a bag of its own."""
        flat = rows.reshape(-1).contiguous()  # the kernel reads memory, not strides
        keyed = _torchrec().sparse.jagged_tensor.KeyedJaggedTensor(
            keys=[_KEY], values=flat, lengths=torch.ones_like(flat)
        )
        found: Tensor = self.collection(keyed).values()
        return found[:, : self.width].view(*rows.shape, self.width)


def collection(layer: FrozenEmbedding) -> Any:
    """Return a ``torchrec.quant.EmbeddingBagCollection`` in the place of a whole layer.

    Keys and widths are those of the features. Ids out of range are not checked.

    Args:
        layer: frozen, of rows of each id's own (such as ``full``), sum or mean pooling.

    Raises:
        ExportError: TorchRec is not installed, or the layer is of another form.
    """
    rows, offsets = _own_rows(layer)
    pooling = {one.name: str(one.pooling) for one in layer.schema.features}
    if "max" in pooling.values():
        raise ExportError(f"torchrec: collections know no max pooling: {pooling}")
    kind, width, weights, pairs = stored(rows)
    if width != _width(rows):
        raise ExportError(f"torchrec: rows of {_width(rows)} numbers fill no whole bytes")
    cut: dict[str, Stored] = {}
    for f, name in enumerate(layer.schema.names):
        own = slice(offsets[f], offsets[f + 1])
        cut[name] = (kind, width, weights[own], None if pairs is None else pairs[own])
    return _collection(cut, {name: [name] for name in cut}, pooling)


def _own_rows(layer: FrozenEmbedding) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the table of a layer whose ids have rows of their own, and each feature's first."""
    source = layer.source
    if isinstance(source, Lookup) and isinstance(source.combine, Concat):
        address, rows = source.address, source.rows
        if isinstance(address, OffsetAddress) and isinstance(rows, nn.Module) and _readable(rows):
            return rows, (*address.offsets, sum(layer.schema.cardinalities))
    raise ExportError(
        "torchrec: the layer's ids have no rows of their own in a format of FBGEMM; "
        "featemb.export(..., to='torchrec') takes its tables"
    )


def _collection(
    named: dict[str, Stored], features: dict[str, list[str]], pooling: dict[str, str]
) -> Any:
    torchrec = _torchrec()
    configs = torchrec.modules.embedding_configs
    tables = [
        configs.EmbeddingBagConfig(
            name=name,
            embedding_dim=width,
            num_embeddings=weights.shape[0],
            feature_names=features[name],
            data_type=configs.DataType[kind],
            pooling=configs.PoolingType[pooling[name].upper()],
        )
        for name, (kind, width, weights, _) in named.items()
    ]
    with quiet():
        made = torchrec.quant.EmbeddingBagCollection(
            tables,
            is_weighted=False,
            device=torch.device("cpu"),
            table_name_to_quantized_weights={
                name: (weights, pairs) for name, (_, _, weights, pairs) in named.items()
            },
            row_alignment=1,
        )
    made._table_name_to_quantized_weights = None  # its kernels have copies
    return made


def _torchrec() -> Any:
    """Import TorchRec.

    Raises:
        ExportError: it is not installed.
    """
    try:
        with quiet():
            import torchrec
            import torchrec.quant
    except ImportError as error:
        raise ExportError(
            f"torchrec: {error}; install featemb with its extras 'torchrec' and 'gpu' (or "
            "fbgemm-gpu-cpu)"
        ) from error
    return torchrec


def default_tolerance(net: nn.Module) -> float | None:
    """Return what int8 rows need, or None."""
    eight = any(getattr(one, "bits", 0) == 8 for one in tables(net).values())
    return TOLERANCE if eight else None
