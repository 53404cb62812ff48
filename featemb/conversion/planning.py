"""Which tables are converted, and by which codec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from featemb.budget import parse_bytes
from featemb.codecs.base import Codec, codec_by_name
from featemb.conversion.choices import solve
from featemb.conversion.finding import Found, named
from featemb.errors import BudgetError, ConfigError
from featemb.grammar import write

Codecs = str | Codec | Sequence[str] | Mapping[str, str]
Plan = list[tuple[Found, Codec | None]]


class Wish(NamedTuple):
    """What `featemb.convert` was asked for; its arguments tell more."""

    codec: Codecs | None
    tables: list[str] | None
    skip: list[str] | None
    min_bytes: int | str | None
    budget: int | str | None
    ratio: float | None


def patterns(given: str | Iterable[str] | None) -> list[str] | None:
    """Return patterns as a list; None is no wish."""
    if given is None:
        return None
    return [given] if isinstance(given, str) else list(given)


def _fits(one: Found, pattern: str) -> bool:
    return any(fnmatchcase(path, pattern) for path in one.paths)


def _choose(found: list[Found], wish: Wish) -> dict[str, str]:
    """Return why tables stay, by name; all others are to be converted.

    Raises:
        ConfigError: a pattern fits no table, nothing is chosen, or what is chosen is refused.
    """
    for pattern in (*(wish.tables or ()), *(wish.skip or ())):
        if not any(_fits(one, pattern) for one in found):
            raise ConfigError(f"no table is named {pattern!r}; {named(found)}")
    least = 0 if wish.min_bytes is None else parse_bytes(wish.min_bytes)
    stays: dict[str, str] = {}
    for one in found:
        if wish.tables is not None and not any(_fits(one, p) for p in wish.tables):
            stays[one.name] = "not chosen"
        elif any(_fits(one, pattern) for pattern in wish.skip or ()):
            stays[one.name] = "skipped"
        elif one.held.before < least:
            stays[one.name] = f"smaller than {least:,} bytes"
    chosen = [one for one in found if one.name not in stays]
    refused = [f"{one.name!r}: {one.refusal}" for one in chosen if one.refusal]
    if refused:
        raise ConfigError(
            f"cannot convert {'; '.join(refused)}. Leave such a table as it is by skip=[its name]"
        )
    if not chosen:
        why = f"; all stay: {named(found)}, min_bytes={least:,}" if found else ""
        raise ConfigError(f"the model has no embedding table to convert{why}")
    return stays


def _limit(found: list[Found], budget: int | str | None, ratio: float | None) -> int | None:
    if budget is not None and ratio is not None:
        raise ConfigError("give a budget or a ratio, not both")
    if budget is not None:
        return parse_bytes(budget)
    if ratio is None:
        return None
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 1 <= ratio < 1e12:
        raise ConfigError(f"ratio must be a number of at least 1, got {ratio!r}")
    return int(sum(one.held.before for one in found) / ratio)


def planned(found: list[Found], wish: Wish) -> list[tuple[Found, Codec | None, str]]:
    """Return the codec of each table; or None, and why it stays as it is.

    Raises:
        ConfigError: no table fits, a chosen one cannot be converted, or an argument is wrong.
        BudgetError: the tables cannot get that small.
    """
    stays = _choose(found, wish)
    limit = _limit(found, wish.budget, wish.ratio)
    if limit is None:
        plan = _by_text(found, stays, wish.codec)
    else:
        plan = _within(found, stays, limit, wish.codec)
    return [(one, codec, "" if codec is not None else stays[one.name]) for one, codec in plan]


def _by_text(found: list[Found], stays: dict[str, str], codec: Codecs | None) -> Plan:
    """Return the codec of each table as it is asked for; what it would not make smaller stays."""
    plan: Plan = []
    if isinstance(codec, Mapping):
        _check_patterns(found, codec)
    elif codec is not None and not isinstance(codec, (str, Codec)):
        raise ConfigError("several codecs to choose from need a budget or a ratio")
    for one in found:
        wanted = None if one.name in stays else _wanted(one, codec)
        if wanted is None:
            stays.setdefault(one.name, "no pattern of codecs fits its name")
        elif (size := one.held.stored_bytes(wanted)) > one.held.before:
            stays[one.name] = f"{write(wanted)} would take {size:,} bytes"
            wanted = None
        plan.append((one, wanted))
    return plan


def _check_patterns(found: list[Found], codecs: Mapping[str, str]) -> None:
    for pattern, text in codecs.items():
        codec_by_name(text)
        if not any(_fits(one, pattern) for one in found):
            raise ConfigError(f"no table is named {pattern!r}; {named(found)}")


def _wanted(one: Found, codec: Any) -> Codec | None:
    if isinstance(codec, Codec):
        return codec
    if isinstance(codec, Mapping):
        texts = [text for pattern, text in codec.items() if _fits(one, pattern)]
        return codec_by_name(texts[0]) if texts else None
    return codec_by_name(codec or "int8")


def _within(found: list[Found], stays: dict[str, str], limit: int, codec: Codecs | None) -> Plan:
    """Return a codec for each table so that all are within a limit."""
    if isinstance(codec, (Mapping, Codec)):
        raise ConfigError(
            "with a budget or a ratio, codec is a text or a list of texts to choose from"
        )
    texts = [codec] if isinstance(codec, str) else codec
    for text in texts or ():
        codec_by_name(text)
    free = [one for one in found if one.name not in stays]
    kept = sum(one.held.before for one in found if one.name in stays)
    try:
        codecs = solve([one.held for one in free], limit - kept, texts)
    except BudgetError as error:
        floor = error.floor + kept
        beside = f" ({kept:,} of them stay as they are)" if kept else ""
        raise BudgetError(
            f"the tables need at least {floor:,} bytes by these codecs{beside}, "
            f"the limit is {limit:,}",
            floor,
        ) from error
    by_name = {one.name: text for one, text in zip(free, codecs, strict=True)}
    plan: Plan = []
    for one in found:
        chosen = by_name.get(one.name)
        if chosen is None:
            stays.setdefault(one.name, "the limit has room for it as it is")
        plan.append((one, None if chosen is None else codec_by_name(chosen)))
    return plan
