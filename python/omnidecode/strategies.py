"""The strategy classes of the engine's registry, one each: ``TokenRecycling(k=8)``. Grown at import; see ``_strategy``."""

from ._strategy import BUILT_IN

__all__ = sorted(cls.__name__ for cls in BUILT_IN.values())

globals().update({cls.__name__: cls for cls in BUILT_IN.values()})
