"""Tables of chosen widths with projections: how they are made, and set to given vectors.

Shape letters: G features of one width w, n_f ids of feature f, D width of the vectors, h ids with
c more columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from featemb.layer import BuildContext
from featemb.parts import Concat, Lookup, OffsetAddress, Source, Split
from featemb.parts.hot import HotBitmap, HotRange, hot_rank
from featemb.parts.projected import AffineProjection, Projected, Projection, Widened
from featemb.widths import Widths


def projected_source(
    context: BuildContext, widths: Widths, init: float, bias: bool = False
) -> Source:
    """Make the tables and projections of features of some widths.

    Tables start uniform in ``[-init, init]``, and projections uniform in ``+-sqrt(3 / w)``, so that
    vectors of every width have the variance of plain rows; biases start at 0.

    Args:
        context: schema, D, seed, device.
        widths: columns of each feature.
        init: see above.
        bias: whether projections have one.
    """
    groups, dim = widths.groups(), context.dim
    sources: list[Source] = []
    for width, features in groups:
        sizes = [context.schema.cardinalities[f] for f in features]
        address, rows = OffsetAddress.of(sizes), context.rows(sum(sizes), width, init)
        if width == dim:
            sources.append(Lookup(address=address, rows=rows, combine=Concat()))
            continue
        matrix = nn.Parameter(_matrix(context, (len(features), width, dim), width))
        projection = Projection(weight=matrix)
        if bias:
            zeros = torch.zeros(len(features), dim, device=context.device)
            projection = AffineProjection(weight=matrix, bias=nn.Parameter(zeros))
        sources.append(Projected(address=address, rows=rows, projection=projection))
    order = [width for width, _ in groups]
    which = tuple(order.index(width) for width in widths.sizes)
    base = sources[0] if len(sources) == 1 else Split(sources=sources, which=which, dim=dim)
    if not widths.hot:
        return base
    shape = (widths.columns, dim)
    directions = _matrix(context, shape, widths.sizes[widths.feature] + widths.columns)
    return Widened(
        base=base,
        hot=hot_part(context, widths),
        columns=context.table(widths.hot, widths.columns, init),
        directions=nn.Parameter(directions),
        feature=widths.feature,
    )


def hot_part(context: BuildContext, widths: Widths) -> HotRange | HotBitmap:
    """Return the part that ranks the ids that have more columns."""
    if not widths.frequent:
        return HotRange(first=(0,), size=(widths.hot,))
    one = context.only([f == widths.feature for f in range(context.schema.num_features)])
    return hot_rank(one.schema, widths.hot, context.device)


def _matrix(context: BuildContext, shape: tuple[int, ...], width: int) -> Tensor:
    """Draw a projection that keeps the variance of vectors of a width."""
    if context.device.type == "meta":
        return torch.empty(shape, device=context.device)
    bound = math.sqrt(3 / width)
    return (
        torch.empty(shape).uniform_(-bound, bound, generator=context.generator()).to(context.device)
    )


def write_feature(
    source: Source,
    widths: Widths,
    feature: int,
    scores: Tensor,
    directions: Tensor,
    bias: Tensor | None = None,
) -> None:
    """Set one feature's vectors to ``scores directions (+ bias)``, by as many columns as it has.

    Columns that ``scores`` does not have are zero, and their projections are left as they are.

    Args:
        source: of `projected_source`, with these widths.
        widths: columns of each feature.
        feature: f.
        scores: ``[n_f, c]``.
        directions: ``[c, D]``.
        bias: ``[D]``; only where the source has biases, or the feature no projection.
    """
    given, width = scores.shape[1], widths.sizes[feature]
    widened = source if isinstance(source, Widened) else None
    base = source if widened is None else widened.base
    group, own = next((g, own) for g, own in enumerate(widths.groups()) if feature in own[1])
    part = base.sources[group] if isinstance(base, Split) else base
    place = own[1].index(feature)
    first = part.get_submodule("address").offsets[place]  # type: ignore[index]
    table = part.get_submodule("rows").get_parameter("weight")[first : first + len(scores)]
    if not isinstance(part, Projected):
        table.copy_(scores @ directions + (0 if bias is None else bias))
        return
    kept = min(width, given)
    table.zero_()
    table[:, :kept] = scores[:, :kept]
    part.projection.get_parameter("weight")[place, :kept] = directions[:kept]
    if bias is not None:
        part.projection.get_parameter("bias")[place] = bias
    if widened is not None and widened.feature == feature:
        more = slice(width, width + widths.columns)
        _write_columns(widened, scores[:, more], directions[more])


def _write_columns(widened: Widened, scores: Tensor, directions: Tensor) -> None:
    """Write the columns of some ids from up to c of them; zeros where there are fewer."""
    given, table = scores.shape[1], widened.columns.get_parameter("weight")
    ids = torch.arange(len(scores), device=scores.device)
    rank = widened.hot(ids, torch.zeros_like(ids))
    table.zero_()
    table[rank[rank >= 0], :given] = scores[rank >= 0]
    widened.directions.data[:given] = directions
