"""Every error that capreward raises on purpose.

Each also inherits the built-in exception that it resembles, so ``except ValueError`` keeps working.
Messages give the name, what came, what is allowed and what to do.
"""


class CaprewardError(Exception):
    """Base of all errors raised on purpose by capreward."""


class InputError(CaprewardError, ValueError):
    """What the caller handed in cannot be used: a record, a file, a weight, a setting."""


class ComponentError(CaprewardError, RuntimeError):
    """A component, a gate, a judge, a metric or a stage broke its contract.

    By the wrong number of scores or replies, a score outside [0, 1] or an exception, say.
    """


class TooManyMissingError(CaprewardError, RuntimeError):
    """More scores are missing than `max_missing` allows."""


class NonFiniteError(CaprewardError, ArithmeticError):
    """Training went on giving losses or gradients that are no finite numbers."""


class ServerError(CaprewardError, ConnectionError):
    """A server of `capreward serve` cannot be reached, or could not answer."""


class MissingExtraError(CaprewardError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def missing_extra(feature: str, extra: str, error: ImportError) -> MissingExtraError:
    """The error for `feature` when importing what the extra `extra` brings failed with `error`."""
    return MissingExtraError(
        f"{feature} needs {error.name or error}, which is not installed; run: pip install 'capreward[{extra}]'"
    )


def require_positive(who: str, **numbers: float | None) -> None:
    """Nothing, if each number is above 0 or None.

    Raises:
        InputError: one is not; names `who` was given it.
    """
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise InputError(f"{who}: got {name}={number}, expected a number > 0")
