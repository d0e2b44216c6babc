"""One engine that decodes a language model in every way that is known.

    from omnidecode import LLM, SamplingParams

    llm = LLM()
    answer = llm.chat([{"role": "user", "content": "Why is the sky blue?"}], strategy="token-recycling")[0]
    print(answer.outputs[0].text, answer.guarantee, answer.usage)

A strategy of your own is an async function over forwards: see :func:`strategy`.
"""

from __future__ import annotations

from . import strategies
from ._companion import companion, companions
from ._core import Array, Candidate, Canvas, Outcome, Plan, Row, Sequence, Tree, View, __version__, gather
from ._judge import judge
from ._strategy import Strategy, registry, strategy
from .denoising import Unmasker, unmasker
from .drafting import Drafter, drafter
from .errors import (
    Cancelled,
    Closed,
    ModelError,
    OmnidecodeError,
    OutOfPages,
    RequestError,
    StrategyError,
)
from .llm import LLM
from .outputs import CompletionOutput, Delta, Logprob, RequestOutput, Usage
from .sampling import SamplingParams
from .strategies import *  # noqa: F403

__all__ = [
    "LLM",
    "Array",
    "Cancelled",
    "Candidate",
    "Canvas",
    "Closed",
    "CompletionOutput",
    "Delta",
    "Drafter",
    "Logprob",
    "ModelError",
    "OmnidecodeError",
    "OutOfPages",
    "Outcome",
    "Plan",
    "RequestError",
    "RequestOutput",
    "Row",
    "SamplingParams",
    "Sequence",
    "Strategy",
    "StrategyError",
    "Tree",
    "Unmasker",
    "Usage",
    "View",
    "__version__",
    "companion",
    "companions",
    "drafter",
    "gather",
    "judge",
    "registry",
    "strategy",
    "unmasker",
]
__all__ += strategies.__all__
