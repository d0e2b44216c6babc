"""Strategies as objects: one class for each entry of the engine's registry, and those that users write in Python.

Wherever a strategy is expected, three forms mean the same::

    strategy="token-recycling"
    strategy={"name": "token-recycling", "k": 4}
    strategy=TokenRecycling(k=4)

The classes grow from the registry when this module is imported: their parameters, defaults, ranges and documentation
are the engine's own. They are found in :mod:`omnidecode.strategies` and in :mod:`omnidecode`.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, Union, get_args, get_origin

from . import _core
from ._companion import companions
from ._installed import installed
from .errors import RequestError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["BUILT_IN", "ENTRY_POINTS", "Strategy", "register", "registry", "resolve", "strategy"]

ENTRY_POINTS = "omnidecode.strategies"

#: What a user's strategy is: it gets the request's sequence, and its parameters by keyword.
Decode = Callable[..., Awaitable[None]]
_D = TypeVar("_D", bound=Decode)


class Strategy:
    """A strategy with its parameters; the base of all strategy classes.

    Parameters are checked when the object is made: an unknown name is a :class:`TypeError`, an impossible value a
    :class:`~omnidecode.RequestError`. Objects compare by name and parameters, and :meth:`to_dict` is ready for JSON.
    """

    #: What the registry knows: name, guarantee, needs, parameters, summary, source.
    spec: ClassVar[dict[str, Any]] = {}
    #: The coroutine function of a strategy written in Python.
    __wrapped__: ClassVar[Decode | None] = None
    __slots__ = ("_guarantee", "parameters")

    def __init__(self, **parameters: Any) -> None:
        spec = type(self).spec
        if not spec:
            raise TypeError("Strategy is the base of the strategy classes; take one of them, or its name")
        known = [parameter["name"] for parameter in spec["parameters"]]
        for name in parameters:
            if name not in known:
                raise TypeError(f"{spec['name']} has no parameter {name!r}; it has {', '.join(known) or 'none'}")
        self._guarantee: str = spec["guarantee"]
        if type(self).__wrapped__ is None:
            self._guarantee = _core.check_strategy(spec["name"], json.dumps(parameters))
        for parameter in spec["parameters"] if type(self).__wrapped__ is not None else ():
            if parameter["name"] in parameters:
                _check(spec["name"], parameter, parameters[parameter["name"]])
        self.parameters: dict[str, Any] = parameters

    @property
    def name(self) -> str:
        """The name in the registry, as in ``strategy="token-recycling"``."""
        return str(self.spec["name"])

    @property
    def guarantee(self) -> str:
        """``"exact"``, ``"distribution"`` or ``"approximate"``, with these parameters."""
        return self._guarantee

    def to_dict(self) -> dict[str, Any]:
        """``{"name": ..., parameter: value, ...}`` with what was given; defaults are left out."""
        return {"name": self.name, **self.parameters}

    def __getattr__(self, name: str) -> Any:
        for parameter in type(self).spec.get("parameters", ()):
            if parameter["name"] == name:
                return self.parameters.get(name, parameter["default"])
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.parameters.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Strategy) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True, default=repr))


def _class_name(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.replace("_", "-").split("-"))


def _make(spec: dict[str, Any], decode: Decode | None, module: str) -> type[Strategy]:
    """The class of one registry entry."""
    lines = [spec["summary"], "", f"Guarantee: {spec['guarantee']}. Source: {spec['source']}.", ""]
    for parameter in spec["parameters"]:
        bounds = f", {parameter['range']}" if parameter.get("range") is not None else ""
        lines.append(f"``{parameter['name']}`` ({parameter['type']}{bounds}, default {parameter['default']!r}): ")
        lines[-1] += parameter["doc"]
    signature = inspect.Signature(
        [
            inspect.Parameter(parameter["name"], inspect.Parameter.KEYWORD_ONLY, default=parameter["default"])
            for parameter in spec["parameters"]
        ]
    )
    return type(
        _class_name(spec["name"]),
        (Strategy,),
        {
            "__doc__": "\n".join(lines).rstrip(),
            "__module__": module,
            "__signature__": signature,
            "__slots__": (),
            "spec": spec,
            "__wrapped__": staticmethod(decode) if decode is not None else None,
        },
    )


_CLASSES: dict[str, type[Strategy]] = {
    spec["name"]: _make(spec, None, "omnidecode.strategies") for spec in json.loads(_core.strategies())
}
#: The engine's own strategies; their names cannot be taken.
BUILT_IN: Mapping[str, type[Strategy]] = dict(_CLASSES)


def registry() -> list[dict[str, Any]]:
    """What is known of every strategy: the engine's own, those of installed packages, and those registered here.

    Each entry has ``name``, ``guarantee``, ``needs``, ``parameters`` (each with ``name``, ``type``, ``range``,
    ``default``, ``doc``), ``summary`` and ``source``.
    """
    for entry in installed(ENTRY_POINTS):
        if entry.name not in _CLASSES:
            try:
                _load(entry)
            except Exception as error:  # one broken package does not take the others away
                warnings.warn(f"strategy {entry.name} of {entry.value} cannot be loaded: {error!r}", stacklevel=2)
    return [cls.spec for cls in _CLASSES.values()]


def resolve(given: str | Mapping[str, Any] | Strategy | None) -> Strategy:
    """A strategy from any of its forms; ``None`` is plain decoding. Unknown ones raise
    :class:`~omnidecode.RequestError`."""
    if given is None:
        given = "plain"
    if isinstance(given, Strategy):
        return given
    if isinstance(given, type) and issubclass(given, Strategy):
        return given()
    if isinstance(given, str):
        name, parameters = given, {}
    elif isinstance(given, Mapping):
        parameters = dict(given)
        name = parameters.pop("name", None)
        if not isinstance(name, str):
            raise RequestError(f"strategy: expected a dictionary with a 'name', found {dict(given)!r}")
    else:
        raise RequestError(f"strategy: expected a name, a dictionary or a strategy object, found {given!r}")
    if name not in _CLASSES:
        for entry in installed(ENTRY_POINTS, name=name):
            try:
                _load(entry)
            except Exception as error:
                raise RequestError(f"strategy {name}: {entry.value} cannot be loaded: {error!r}") from error
    if name not in _CLASSES:
        if any(entry["name"] == name for entry in companions()):
            raise RequestError(
                f"strategy: expected a strategy, found the companion {name!r}; give it in companions=[...]"
            )
        raise RequestError(f"strategy: expected one of {', '.join(sorted(_CLASSES))}; found {name!r}")
    try:
        return _CLASSES[name](**parameters)
    except TypeError as error:
        raise RequestError(str(error)) from None


def strategy(
    name: str,
    *,
    guarantee: str = "approximate",
    source: str = "user",
    needs: Sequence[str] = (),
    judged: bool = False,
) -> Callable[[_D], type[Strategy]]:
    """Register a strategy written in Python; a decorator for ``async def decode(seq, *, parameter=default)``.

    The decorated function becomes a :class:`Strategy` class, usable as an object and by name. ``guarantee`` is the
    author's promise and is reported as given; :func:`omnidecode.testing.check_laws` holds the strategy to it. ``needs``:
    roles of the models that it calls by ``seq.sibling(role)``, for ``LLM(beside={role: path})``. ``judged``: whether it asks
    the request's judge, by ``seq.judge(branches)``; others refuse one. Keyword-only arguments with defaults are its parameters; their types
    (``bool``, ``int``, ``float``, ``str``) come from annotations, or else from the defaults.

    Raises :class:`~omnidecode.RequestError` for a name that is taken by the engine, and for anything but an async
    function of one sequence.
    """
    _free(name, guarantee)

    def add(decode: _D) -> type[Strategy]:
        if not inspect.iscoroutinefunction(decode):
            raise RequestError(f"strategy: expected an `async def` function, found {decode!r}")
        return register(name, decode, guarantee=guarantee, source=source, needs=needs, judged=judged)

    return add


def register(
    name: str,
    decode: Decode,
    *,
    like: Callable[..., Any] | None = None,
    guarantee: str = "approximate",
    source: str = "user",
    needs: Sequence[str] = (),
    judged: bool = False,
) -> type[Strategy]:
    """The class of a strategy in Python, known by its name from now on. Its parameters are those of ``like``, a function or
    class, or of ``decode`` itself."""
    _free(name, guarantee)
    spec = {
        "name": name,
        "guarantee": guarantee,
        "needs": list(needs),
        "judged": judged,
        "parameters": _parameters(name, decode if like is None else like),
        "summary": inspect.cleandoc(decode.__doc__ or "").split("\n\n")[0].replace("\n", " "),
        "source": source,
    }
    cls = _make(spec, decode, getattr(decode, "__module__", __name__))
    _CLASSES[name] = cls
    return cls


def _free(name: str, guarantee: str) -> None:
    if guarantee not in ("exact", "distribution", "approximate"):
        raise RequestError(f"guarantee: expected 'exact', 'distribution' or 'approximate', found {guarantee!r}")
    if name in BUILT_IN:
        raise RequestError(f"strategy: {name!r} is the engine's own; choose another name")


def _check(owner: str, parameter: dict[str, Any], value: object) -> None:
    """The type of a Python strategy's parameter; the engine checks those of its own."""
    kind = parameter["type"]
    if kind == "any" or (value is None and kind.endswith("?")):
        return
    wanted = {name: type for type, name in _TYPES.items()}[kind.removesuffix("?")]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise RequestError(f"{owner}: parameter `{parameter['name']}` expects {kind}, found {value!r}")


_TYPES: dict[Any, str] = {bool: "bool", int: "int", float: "float", str: "str"}


def _parameters(name: str, of: Callable[..., Any]) -> list[dict[str, Any]]:
    rest = list(inspect.signature(of, eval_str=True).parameters.values())
    if not isinstance(of, type):  # a class is called without its instance
        first = rest.pop(0) if rest else None
        if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
            raise RequestError(f"strategy {name}: expected a function of a sequence, found no positional argument")
    found = []
    for parameter in rest:
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise RequestError(
                f"strategy {name}: expected its parameters keyword-only and with defaults (`*, k=8`), "
                f"found `{parameter}`"
            )
        annotation = parameter.annotation
        if annotation is parameter.empty:
            annotation = type(parameter.default)
        optional = get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"
        inner = [a for a in get_args(annotation) if a is not type(None)] if optional else [annotation]
        kind = _TYPES.get(inner[0], "any") + ("?" if optional else "") if len(inner) == 1 else "any"
        found.append({"name": parameter.name, "type": kind, "default": parameter.default, "range": None, "doc": ""})
    return found


def _load(entry: EntryPoint) -> None:
    """Import what an installed package offers under the entry-point group ``omnidecode.strategies``.

    An entry point names a strategy class under its own name, or an async function, a ``Drafter`` or an ``Unmasker`` that is
    then registered under the entry's.
    """
    from .denoising import Unmasker, unmasker
    from .drafting import Drafter, drafter

    loaded = entry.load()
    if inspect.iscoroutinefunction(loaded):
        strategy(entry.name, source=entry.value)(loaded)
    elif isinstance(loaded, type) and issubclass(loaded, Drafter):
        drafter(entry.name, source=entry.value)(loaded)
    elif isinstance(loaded, type) and issubclass(loaded, Unmasker):
        unmasker(entry.name, source=entry.value)(loaded)
    elif not (isinstance(loaded, type) and issubclass(loaded, Strategy) and loaded.spec["name"] == entry.name):
        raise RequestError(
            f"expected a strategy named {entry.name}, an async function, a Drafter or an Unmasker; found {loaded!r}"
        )
