"""OptEmbed: rows pruned by learned thresholds, and a searched width for every feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from featemb.config import register
from featemb.layer import Axis, BuildContext, MethodConfig
from featemb.methods.full import Full
from featemb.methods.hash import Hash
from featemb.supernet import SupernetConfig, SupernetEmbedding


@register
@dataclass(frozen=True, kw_only=True)
class OptEmbed(SupernetConfig):
    """Rows pruned by learned thresholds, a width searched for every feature, then retraining.

    Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction",
    CIKM 2022 (2208.04482). ``e(f, x) = m_e m_d E[i]``, ``i = offset_f + x``:
    ``m_e = step(||E[i]|| - t_f)`` keeps or prunes a row by the norm of its D numbers, with learned
    thresholds t and the surrogate derivative of `featemb.parts.supernet.BinaryStep`; ``m_d = 1^k
    0^(D-k)`` keeps the first k numbers.

    Stages:
        ``supernet``: E, t and the network; k is drawn anew from 1 to D for every looked-up id, loss
        plus ``alpha sum exp(-t)``, t by plain SGD. Validation uses m_e with full widths.
        ``search``: weights stay; evolution over the widths k_f, scored on validation data, a whole
        population in one pass (`featemb.Evaluator`).
        ``retrain``: rows and widths are fixed; no thresholds, no drawn widths, a new optimizer. The
        authors rewind everything else to its initial value; within a budget the supernet's weights
        are trained further by default, as Zhang et al. (PVLDB 2023) do.

    ``mode=budget``, the default, serves within one row of ``limit`` bytes: every candidate keeps as
    many rows as fit beside its widths, in the order of ``||E[i]|| - t_f`` (the first of every
    feature always), so that the search weighs rows against widths at equal bytes. It starts from
    uniform widths and power laws of the cardinality. Thresholds stay between 0 and the largest norm
    of their feature's last batch. It works with any optimizer.

    ``mode=faithful`` is what the authors' code does: the table by Adam with L2 over all rows,
    whatever optimizer the run has, rows kept by the thresholds alone, no limit of any kind. Their
    results came mostly from that L2, which shrinks the rows that are rarely read.

    Deviations: parents are copied and the cut lies between features (in the published code parents
    are mutated in place and the cut may lie behind the last feature); the best candidates are kept;
    no candidate is scored twice; batch normalisation gets statistics of its own for each candidate.
    Widths are drawn for every id of a multi-valued feature, not for the whole bag.

    Before the search, `freeze` and eval mode give the rows of largest score at one width for all
    features. An id never seen in training is pruned (zeros) where its row stayed small, as rows do
    that start within ``init``.

    Bytes: ``4 sum_f r_f k_f`` for r_f kept rows, and an index of the kept ids for the features of
    each width: 1.5 bits an id, or 1 or 2 bytes a kept one, or none where all are kept.

    Attributes:
        limit: serving bytes; None takes a tenth of the full table's, or what is needed at least.
            For ``mode=budget`` only.
        mode: "budget" or "faithful".
        prune: "both", "rows" (OptEmbed-E: widths stay D) or "dims" (OptEmbed-D: all rows stay; it
            ends within the smallest column of its limit).
        alpha: strength of ``sum exp(-t)``.
        threshold_lr: learning rate of t.
        threshold: "feature" or "id": what has a threshold of its own.
        norm: 1 or 2.
        generations: of the search; 0 takes one width for all features, without a score.
        mutants: candidates a generation from one parent.
        children: candidates a generation from two parents.
        mutation: probability that a mutant's width is drawn anew.
        retrain: "rewind" to the initial weights; "continue" from the supernet's; "off"; None takes
            "continue" within a budget and "rewind" in ``mode=faithful``.
        init: rows start uniform in ``[-init, init]``; None takes ``sqrt(6 / (N + D))`` (Xavier over
            the whole table, as the authors).
    """

    name: ClassVar[str] = "optembed"
    summary: ClassVar[str] = "rows pruned by learned thresholds, widths searched by evolution"
    paper: ClassVar[str] = "Lyu et al., CIKM 2022"
    axis: ClassVar[Axis] = "shape"
    own_rows: ClassVar[str] = "prunes its own table"

    def at_width(self, dim: int) -> MethodConfig:
        """First-order weights: hashed within a budget, and the plain table without one."""
        if dim > 1:
            return self
        return Hash() if self.mode == "budget" else Full()

    def build(self, context: BuildContext) -> SupernetEmbedding:
        """Make table, thresholds and masks."""
        return SupernetEmbedding(context, self)
