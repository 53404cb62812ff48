"""Cardinalities of the large public data sets, as schemas."""

from __future__ import annotations

import featemb as fe

# Distinct values a field of the full public files (no filter, no unknown slot).
CRITEO = [
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27),
    *(14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
]
AVAZU = [
    *(240, 7, 7, 4737, 7745, 26, 8552, 559, 36, 2686408, 6729486, 8251, 5, 4, 2626, 8, 9),
    *(435, 4, 68, 172, 60),
]
# KDD12's cardinalities are not public in one place: 11 fields of about as many values.
KDD12 = [26_273, 641_707, 14_847, 22_023_547, 6, 3, 3, 24_122_076, 4_051_441, 3_735_796, 1_188_089]
SCHEMAS = {
    name: fe.Schema(fe.Feature(f"f{n}", card) for n, card in enumerate(cards))
    for name, cards in {"criteo": CRITEO, "avazu": AVAZU, "kdd12": KDD12}.items()
}
