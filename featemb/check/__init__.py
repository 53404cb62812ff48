"""The contract of an embedding method, as checks that anybody can run over a method of their own.

::

    import featemb as fe
    fe.check.check_method("unified(lookups=2)")     # raises CheckError, or returns

With pytest, one test a check::

    @pytest.mark.parametrize("check", fe.check.checks(), ids=lambda check: check.__name__)
    def test_contract(check):
        check(fe.check.Case("my_method(rows=12)"))
"""

from __future__ import annotations

from collections.abc import Callable

from featemb.check import answers, bad_input, learning, sizes, storage
from featemb.check.case import Case, CheckError

__all__ = ["Case", "CheckError", "check_method", "checks"]


def checks() -> list[Callable[[Case], None]]:
    """Return every check; a check takes a `Case` and raises `CheckError`."""
    return [
        value
        for module in (answers, learning, storage, sizes, bad_input)
        for name, value in vars(module).items()
        if name.startswith("check_")
    ]


def check_method(spec: str, dim: int = 8) -> None:
    """Run every check over a spec.

    Args:
        spec: such as ``"unified(lookups=2)"``; small sizes make it fast.
        dim: output width used by the checks.

    Raises:
        CheckError: the first check that does not hold, by name.
    """
    case = Case(spec, dim)
    for check in checks():
        try:
            check(case)
        except CheckError as error:
            raise CheckError(f"{spec}: {check.__name__}: {error}") from error
