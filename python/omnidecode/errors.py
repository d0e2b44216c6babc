"""Everything that omnidecode raises. Each message says what was expected, what was found and what to do."""

from __future__ import annotations

__all__ = [
    "Cancelled",
    "Closed",
    "ModelError",
    "OmnidecodeError",
    "OutOfPages",
    "RequestError",
    "StrategyError",
]


class OmnidecodeError(Exception):
    """The base of all of them."""


class ModelError(OmnidecodeError, ValueError):
    """A model, tokenizer, template or configuration could not be found, read or run."""


class RequestError(OmnidecodeError, ValueError):
    """A request asks for something impossible or unknown: a prompt, a sampling parameter, a strategy option."""


class OutOfPages(OmnidecodeError, MemoryError):
    """One request alone needs more key/value pages than the engine has."""


class StrategyError(OmnidecodeError, RuntimeError):
    """A strategy, a judge or a logits processor failed while it ran.

    When it is written in Python, ``__cause__`` is what it raised, and ``traceback`` the text of its traceback.
    """

    traceback: str = ""


class Cancelled(OmnidecodeError, RuntimeError):
    """The request was cancelled before it finished."""


class Closed(OmnidecodeError, RuntimeError):
    """The model was closed, or belongs to the process that this one was forked from."""
