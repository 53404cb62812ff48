"""MGQE: learned codes with more codewords for frequent ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from featemb.codebooks import Coder
from featemb.config import register, tunable
from featemb.layer import BuildContext, MethodConfig
from featemb.learned import LearnedCodesConfig, LearnedCodesEmbedding
from featemb.methods.hash import Hash


@register
@dataclass(frozen=True, kw_only=True)
class MGQE(LearnedCodesConfig):
    """Rows are codewords as in `dpq`; only frequent ids may have any, the tail the first few.

    ``e(f, x) = [v_1 ... v_M]``, ``v_m`` the nearest to the query q_m of the first K_x codewords of
    a part: all K for the ``top`` share of the feature's ids, ``tail_codewords`` for the others.
    Kang et al., "Learning Multi-granular Quantized Embeddings for Large-Vocab Categorical Features
    in Recommender Systems", WWW 2020 (2002.08530), in its form of two groups that share codewords.
    Training is that of ``dpq`` (variant ``vq``): gradients pass straight through to the queries,
    and codewords follow them by the loss that ``penalty`` returns.

    Frequent are ``ceil(top n_f)`` ids of each feature by their training counts, ties to lower ids;
    without counts the lowest ids (see `featemb.frequency`). All ids store the bits of a tail code,
    frequent ones the further bits, in an order of their own. To find them takes no bytes where ids
    are numbered by frequency, otherwise 1.5 bits an id. The paper's code keeps a number an id.

    Sizes: a ratio or budget chooses M and K as for ``dpq``, by the mean bits of an id. With M, K
    and the tail set as in the paper (256 and 64), M alone decides the bytes. Whole features as in
    ``dpq``.

    Deviation: frequent ids are exactly the top share; the authors choose the count at which the
    tail begins, so that equal counts stay together.

    An id never seen in training is one of the tail: it reads the codewords nearest to its initial
    query.

    Bytes: of a coded feature ``(n M b + ceil(top n) M (B - b)) / 8 + 4 K D`` with
    ``B = ceil(log2 K)``, b the same of the tail; of the others ``4 n D``. The format is the
    method's own: ``freeze`` ignores its codec.

    Attributes:
        tail_codewords: codewords of an id that is not frequent; None takes a quarter of K.
        top: share of a feature's ids that are frequent.
    """

    name: ClassVar[str] = "mgqe"
    summary: ClassVar[str] = "codewords learned end to end, more of them for frequent ids"
    paper: ClassVar[str] = "Kang et al., WWW 2020"

    tail_codewords: int | None = None
    top: float = tunable(0.1, 0.01, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the tail and the share."""
        super().__post_init__()
        few = self.tail_codewords is None or self.tail_codewords >= 1
        self.require("tail_codewords", "at least 1", few)
        self.require("top", "between 0 and 1", 0 <= self.top <= 1)

    def tail(self, codewords: int) -> int:
        """A quarter, as 64 of 256."""
        return max(2, codewords // 4) if self.tail_codewords is None else self.tail_codewords

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights: a code is hardly smaller than a single number."""
        return self if dim > 1 else Hash(init=self.init)

    def coder(self, context: BuildContext) -> Coder:
        """Return what counts bytes."""
        return Coder(context.schema, context.dim, top=self.top)

    def build(self, context: BuildContext) -> LearnedCodesEmbedding:
        """Make queries and codewords."""
        return LearnedCodesEmbedding(context, self)
