"""Integer rows as FBGEMM's inference kernel reads them, to compare with: fp16 pairs in front."""

from __future__ import annotations

import torch
from torch import Tensor

_KINDS = {8: 2, 4: 3, 2: 4}  # FBGEMM's numbers of the formats
_HOST, _FP32, _SUM = 3, 0, 0


def lookup(table: Tensor, rows: Tensor, bits: int, width: int) -> Tensor:
    """Gather and de-quantise rows on the CPU.

    Args:
        table: uint8 ``[R, 4 + C bits / 8]``: fp16 scale and bias, then the codes.
        rows: int64 ``[N]``.
        bits: bits a code: 8, 4 or 2.
        width: numbers a row, C.

    Returns:
        fp32 ``[N, C]``.

    Raises:
        ImportError: FBGEMM is not installed.
    """
    import fbgemm_gpu  # noqa: F401 - it registers the operator

    largest = {f"max_int{one}_D": width * (one == bits) for one in (2, 4, 8)}
    found: Tensor = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function(
        dev_weights=table.view(-1),
        uvm_weights=table.new_empty(0),
        weights_placements=torch.tensor([_HOST], dtype=torch.int32),
        weights_offsets=torch.tensor([0]),
        weights_tys=torch.tensor([_KINDS[bits]], dtype=torch.uint8),
        D_offsets=torch.tensor([0, width], dtype=torch.int32),
        total_D=width,
        indices=rows,
        offsets=torch.arange(rows.numel() + 1),
        pooling_mode=_SUM,
        indice_weights=None,
        output_dtype=_FP32,
        row_alignment=1,
        max_float16_D=0,
        max_float32_D=0,
        **largest,
    )
    return found
