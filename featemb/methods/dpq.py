"""DPQ: rows cut into parts, each replaced by a codeword; codes and codewords are learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from featemb.codebooks import Coder
from featemb.config import register, tunable
from featemb.layer import BuildContext, MethodConfig
from featemb.learned import LearnedCodesConfig, LearnedCodesEmbedding
from featemb.methods.hash import Hash


@register
@dataclass(frozen=True, kw_only=True)
class DPQ(LearnedCodesConfig):
    """The parts of a row are the nearest codewords of a query, which is trained through them.

    ``e(f, x) = [v_1 ... v_M]``, ``v_m = B_fm[argmin_k ||q_m - B_fm[k]||]``: q is the id's row of a
    table that exists in training alone, cut into M parts of D / M numbers, and B_fm the codebook
    ``[K, D / M]`` of a part. Chen, Li and Sun, "Differentiable Product Quantization for End-to-End
    Embedding Compression", ICML 2020 (1908.09756). The gradient of v passes straight through to q.
    Codewords follow their queries by a loss of their own, ``mean((v - sg(q))^2)`` over the batch:
    ``penalty`` returns it, so a training loop must add it. That is the paper's variant ``vq``.

    ``variant=sx``: ``v_m = V_fm[argmax_k cos(q_m, B_fm[k])]`` with a second codebook V of values,
    trained as looked-up rows; gradients reach q and B through the softmax of ``cos / temperature``.

    Sizes: a ratio or budget chooses M among the divisors of D and K of at most 256, the same for
    all features, such that an id has the most bits ``M log2 K``; of equal ones the smallest M.
    ``parts`` and ``codewords`` fix either. A feature has ``min(K, n_f)`` codewords a part, and
    keeps private rows where codes and codewords would take no fewer bytes.

    Deviations: no batch normalisation of distances or products. By codeword, as the authors have
    it, it makes another codeword than the nearest one win; over all of them it changes nothing. The
    products of ``sx`` are cosines instead, without which a few long keys take all queries. Codes
    are those of the final queries, for every id. There is no remedy for codewords that no query is
    nearest to: on MovieLens-1M at most 5% of K = 8 to 64 ended so, up to 18% of K = 256, and
    neither moving them to queries nor starting from k-means of a trained table gave a better AUC.

    An id never seen in training reads the codewords nearest to its initial query: since those are
    small, mostly those of ids that were hardly trained.

    Bytes: of a coded feature ``n M ceil(log2 K) / 8 + 4 K D`` (``4 K D / M`` with ``shared``), of
    the others ``4 n D``; with ``grain=table`` ``4 K D`` once. Training holds the full table of
    queries, and the codewords. The format is the method's own: ``freeze`` ignores its codec.

    Attributes:
        variant: "vq" (nearest codeword) or "sx" (softmax over keys, with values).
        grain: whether each "feature" has codebooks of its own, or the whole "table" has one.
        shared: whether all parts of a row have the same codebook.
        temperature: of the softmax of ``sx``.
    """

    name: ClassVar[str] = "dpq"
    summary: ClassVar[str] = "each part of a row is its nearest codeword, learned end to end"
    paper: ClassVar[str] = "Chen et al., ICML 2020"

    variant: str = tunable("vq", choices=("vq", "sx"))
    grain: str = tunable("feature", choices=("feature", "table"))
    shared: bool = tunable(False, choices=(False, True))
    temperature: float = tunable(0.1, 0.01, 1.0, log=True)

    def __post_init__(self) -> None:
        """Check the variant, the grain and the temperature."""
        super().__post_init__()
        self.require("variant", "'vq' or 'sx'", self.variant in ("vq", "sx"))
        self.require("grain", "'feature' or 'table'", self.grain in ("feature", "table"))
        self.require("temperature", "above 0 and finite", 0 < self.temperature < math.inf)
        pulled = self.variant == "vq" or not self.commitment
        self.require("commitment", "0 for variant=sx, whose keys are no codewords", pulled)
        apart = self.variant == "vq" or not self.task_gradient
        self.require("task_gradient", "false for variant=sx, whose values have it anyway", apart)

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights: a code is hardly smaller than a single number."""
        return self if dim > 1 else Hash(init=self.init)

    def coder(self, context: BuildContext) -> Coder:
        """Return what counts bytes."""
        by_feature = self.grain == "feature"
        return Coder(context.schema, context.dim, by_feature=by_feature, shared=self.shared)

    def build(self, context: BuildContext) -> LearnedCodesEmbedding:
        """Make queries and codewords."""
        books = 1 if self.variant == "vq" else 2
        return LearnedCodesEmbedding(context, self, books=books, temperature=self.temperature)
