# Written by tools/stubs.py (`make stubs`).
"""
The compiled half of omnidecode. Use the package `omnidecode`, not this module.
"""

from _typeshed import SupportsGetItem
from collections.abc import Generator
from os import PathLike
from typing import Any, Final, SupportsFloat, SupportsIndex, final

__all__ = ["__version__", "Array", "Bell", "Candidate", "Canvas", "Chunk", "Detector", "Engine", "Flight", "Neurons", "Outcome", "Plan", "Row", "Seen", "Sequence", "Ticket", "Tree", "TrigramCounts", "View", "check_cuda", "check_strategy", "companions", "cuda", "gather", "listwise_labels", "listwise_order", "listwise_question", "listwise_windows", "machine", "roles", "strategies"]

__version__: Final[str]

@final
class Array:
    """
    A matrix of float32, shape (rows, columns), row-major, on the host. Speaks DLPack.
    """
    def __array__(self, /, dtype: "object" = None, copy: "bool | None" = None) -> "object":
        """
        The numpy array of these numbers; needs numpy.
        """
    def __dlpack__(self, /, *, stream: "object" = None, max_version: "object" = None, dl_device: "tuple[int, int] | None" = None, copy: "bool | None" = None) -> "object":
        """
        A capsule with a copy that the consumer owns; with `copy=False` it shares this memory, and must not be written to.
        """
    def __dlpack_device__(self, /) -> tuple[int, int]:
        """
        The device as DLPack counts: (1, 0) is the host.
        """
    def __len__(self, /) -> int: ...
    def __repr__(self, /) -> str: ...
    @property
    def dtype(self, /) -> str:
        """
        Always "float32".
        """
    def row(self, /, index: SupportsIndex) -> list[float]:
        """
        One row as a list of floats; negative numbers count from the end.
        """
    @property
    def shape(self, /) -> tuple[int, int]:
        """
        (rows, columns).
        """
    def tolist(self, /) -> list[list[float]]:
        """
        All rows as lists of floats.
        """

@final
class Bell:
    """
    What one thread waits at for news of many requests.
    """
    def __new__(cls, /) -> Bell: ...
    def wait(self, /) -> list[int]:
        """
        Wait, with the GIL released, until tickets have news; their keys.
        """

@final
class Candidate:
    """
    A text to be judged, whole or in part.

    `prompt_token_ids`, `prompt`: what was asked. `token_ids`, `text`: what was found so far, the prompt not included.
    `finished`: whether nothing will follow.
    """
    def __new__(cls, /, prompt_token_ids: SupportsGetItem[int, SupportsIndex], prompt: str, token_ids: SupportsGetItem[int, SupportsIndex], text: str, finished: bool) -> Candidate: ...
    def __repr__(self, /) -> str: ...
    @property
    def finished(self, /) -> bool:
        """
        Whether nothing will follow.
        """
    @property
    def prompt(self, /) -> str:
        """
        Text of the prompt.
        """
    @property
    def prompt_token_ids(self, /) -> list[int]:
        """
        Tokens of the prompt.
        """
    @property
    def text(self, /) -> str:
        """
        Their text.
        """
    @property
    def token_ids(self, /) -> list[int]:
        """
        Tokens after the prompt, an end-of-text token included.
        """

@final
class Canvas:
    """
    A region of mask tokens in a sequence, denoised in place; made by `seq.canvas(start, end)`. Places are absolute, a
    window is a pair (start, end). What is settled is handed to the reader and never changes again; everything else may be
    committed, remasked and edited in any order. Leaving its `with` block forgets what was not settled; until then the
    sequence itself cannot be used.
    """
    def __enter__(self, /) -> Canvas: ...
    def __exit__(self, /, *_error: "object") -> "None": ...
    def ban(self, /, tokens: SupportsGetItem[int, SupportsIndex]) -> None:
        """
        Tokens that are never chosen for this canvas from now on; the mask token never is.
        """
    def close(self, /) -> None:
        """
        Forget what was not settled; the sequence can be used again.
        """
    def commit(self, /, place: SupportsIndex, token: SupportsIndex, confidence: SupportsFloat | SupportsIndex = 1.0) -> None:
        """
        Decide a place. `confidence`: what the strategy thinks of it, for reports.
        """
    def expand(self, /, count: SupportsIndex) -> None:
        """
        Append undecided places.
        """
    def fill(self, /, start: SupportsIndex, token: SupportsIndex) -> None:
        """
        Decide every place from `start` to the end alike (end of text).
        """
    @property
    def history(self, /) -> list[tuple[int, int, int, float]]:
        """
        Every change so far: (place, token, forward, confidence).
        """
    def look(self, /, places: "tuple[int, int] | list[int] | None" = None, *, refresh: "bool" = False, about: "list[int] | None" = None, drafts: "list[dict[int, int]] | None" = None, **options: "object") -> "Flight":
        """
        One forward of a window, or of these places; by default of the whole canvas. Await it for the `View`. `refresh`:
        keys and values replace what was there, or are forgotten. `about`: places whose predictions are read, by default
        all that are run. `drafts`: variants of the window run side by side, each {place: token}. Further keyword arguments
        are those of `Plan` that say who sees whom (`mask`, here "full" by default, `block`, `bits`, `keep`), what is read, and
        `noise` (give each forward its own, so that a place is not drawn with the same noise again).
        """
    @property
    def mask_token(self, /) -> int:
        """
        The mask token.
        """
    def masked(self, /, window: "tuple[int, int] | None" = None) -> list[int]:
        """
        Undecided places of a window, ascending; by default of the whole canvas.
        """
    @property
    def open_places(self, /) -> tuple[int, int]:
        """
        Places that are not handed over yet: (start, end).
        """
    @property
    def places(self, /) -> tuple[int, int]:
        """
        All places: (start, end).
        """
    def remask(self, /, place: SupportsIndex) -> None:
        """
        Make a place undecided again.
        """
    def settle(self, /, end: SupportsIndex) -> bool:
        """
        Everything before `end` is final: check stop conditions and hand it over. False when the answer has ended.
        """
    @property
    def tokens(self, /) -> list[int]:
        """
        What stands where, from place 0 on.
        """
    def truncate(self, /, end: SupportsIndex) -> None:
        """
        End the canvas here.
        """

@final
class Chunk:
    """
    What an answer gained since the last time.
    """
    @property
    def finish_reason(self, /) -> str | None:
        """
        "stop", "length", "abort", or `None` while it goes on.
        """
    @property
    def index(self, /) -> int:
        """
        Which of the answers.
        """
    @property
    def logprobs(self, /) -> list[list[tuple[int, float, int | None, str]]]:
        """
        For each token: (token, log-probability, rank, text) of the largest and of the token itself.
        """
    @property
    def marks(self, /) -> list[tuple[int, int, int, float, str]]:
        """
        Changes of the canvas, as (place, token, forward, confidence, text), of requests that watch it.
        """
    @property
    def notes(self, /) -> list[tuple[str, int, list[tuple[int, float, str]]]]:
        """
        At the end: what the strategy saw on its way, as (label, place, (token, weight, text) of each).
        """
    @property
    def origins(self, /) -> list[tuple[str, int, int, int, float | None]]:
        """
        Where each token came from: (source, forward, depth, branch, confidence); source is "target", "draft" or
        "canvas".
        """
    @property
    def others(self, /) -> list[tuple[list[int], str, float, str, int | str | None]]:
        """
        At the end: other texts that the strategy found, as (token ids, text, score, finish reason, stop reason), in its
        order.
        """
    @property
    def pieces(self, /) -> list[str]:
        """
        The text that each token completed, special tokens by name.
        """
    @property
    def python(self, /) -> tuple[int, float] | None:
        """
        At the end: how often Python code of the request was called, and the seconds that it took.
        """
    @property
    def score(self, /) -> float | None:
        """
        At the end: what the answer is worth on the strategy's own scale, where it says.
        """
    @property
    def stop_reason(self, /) -> int | str | None:
        """
        The stop token or stop string that ended it.
        """
    @property
    def text(self, /) -> str:
        """
        Text that became certain.
        """
    @property
    def token_ids(self, /) -> list[int]:
        """
        Committed tokens.
        """
    @property
    def usage(self, /) -> dict[str, int] | None:
        """
        At the end: what it cost, by name.
        """

@final
class Detector:
    """
    Reads MajorMark watermarks of one model, for one key.
    """
    def __new__(cls, /, path: str | PathLike[str], key: SupportsIndex, bits: SupportsIndex, blocks: SupportsIndex) -> Detector:
        """
        Open the tokenizer of a model.
        """
    def detect(self, /, token_ids: "list[int]", dedup: "bool") -> "tuple[str, float, float, bool | None, int, list[tuple[float, float]]]":
        """
        (message, p-value, z, std test, tokens counted, [(score, runner-up)]) of token ids.
        """
    def tokens(self, /, text: str) -> list[int]:
        """
        Token ids of a text, without special tokens.
        """

@final
class Engine:
    """
    A model with its engine thread.
    """
    def __new__(cls, /, path: str | PathLike[str], *, beside: SupportsGetItem[int, tuple[str, str | PathLike[str]]] = ..., threads: SupportsIndex | None = None, context: SupportsIndex | None = None, kv_tokens: SupportsIndex | None = None, kv_dtype: str | None = None, device: str = "cpu", row_invariant: bool = True, prefix_cache: bool = True) -> Engine:
        """
        Open a model; `beside`: further models, as (role, path).
        """
    def card(self, /) -> str:
        """
        The model's facts, as JSON.
        """
    def check(self, /, job: "object") -> "None":
        """
        Raise what is wrong with a job's request, without running it.
        """
    def close(self, /) -> None:
        """
        Stop the engine and free the model.
        """
    def detokenize(self, /, token_ids: SupportsGetItem[int, SupportsIndex], skip_special_tokens: bool) -> str:
        """
        Text of token ids.
        """
    def generation_config(self, /) -> str | None:
        """
        The author's sampling defaults in transformers' names, as JSON; `None` where there are none.
        """
    def logits(self, /, token_ids: SupportsGetItem[int, SupportsIndex]) -> Array:
        """
        Logits of every row: float32 (rows, vocabulary).
        """
    def render(self, /, messages: str, options: str) -> str:
        """
        The prompt of a conversation: messages and template variables as JSON.
        """
    def score(self, /, prompt: SupportsGetItem[int, SupportsIndex], labels: SupportsGetItem[int, SupportsIndex]) -> list[float]:
        """
        Log-probabilities of labels as the next token.
        """
    def score_canvas(self, /, prompt: SupportsGetItem[int, SupportsIndex], answer: SupportsGetItem[int, SupportsIndex], draws: SupportsIndex, seed: SupportsIndex) -> float:
        """
        Estimate of the log-likelihood of an answer on a canvas, in nats.
        """
    def stats(self, /) -> str:
        """
        What the engine did since it started, as JSON.
        """
    def submit(self, /, job: "object") -> "Ticket":
        """
        Run a job: as many answers as its sampling parameters say.
        """
    def tokenize(self, /, text: str, add_special_tokens: bool) -> list[int]:
        """
        Token ids of a text.
        """

@final
class Flight:
    """
    A forward on its way; await it once.
    """
    def __await__(self, /) -> Generator[Flight, None, Any]: ...
    def __iter__(self, /) -> Flight: ...
    def __next__(self, /) -> Flight: ...

@final
class Neurons:
    """
    The weights of a model, and how its neurons are read.
    """
    def __new__(cls, /, path: str | PathLike[str], part: str, *, negative: bool = False, fold_input: bool = False, fold_output: bool = False, length: SupportsFloat | SupportsIndex | None = None, cosine: bool = False, random: SupportsIndex | None = None, threads: SupportsIndex | None = None) -> Neurons:
        """
        Open a model's files. `part`: "up", "gate" or "down".
        """
    def decode(self, /, top: "int", each: "object") -> "None":
        """
        For every layer (token ids [neurons, top], probabilities [neurons, top], entropy, log-sum-exp), handed to `each`
        as it is found; `each` may raise to stop.
        """
    def logits_of(self, /, token_ids: SupportsGetItem[int, SupportsIndex]) -> list[Array]:
        """
        Logits of tokens, by layer: [layers][neurons, tokens].
        """
    def shape(self, /) -> tuple[int, int]:
        """
        Layers, and neurons of each.
        """

@final
class Outcome:
    """
    What came back of a forward: `outcome.root` at the last committed token, `outcome[i]` at row `i` of the plan.
    """
    def __getitem__(self, row: SupportsIndex, /) -> Seen: ...
    def __len__(self, /) -> int: ...
    def __repr__(self, /) -> str: ...
    def at(self, /, node: SupportsIndex | None) -> Seen:
        """
        What was seen at a tree node, `None` being the last committed token.
        """
    def place(self, /, place: SupportsIndex) -> Seen | None:
        """
        What was seen at a committed place, with `read="all"`; `None` where it was not computed in this forward.
        """
    @property
    def root(self, /) -> Seen:
        """
        What was seen at the last committed token.
        """

@final
class Plan:
    """
    One forward of one sequence: what is committed but not yet computed, then these rows.

    `rows`: token ids or `Row` objects. Who sees whom among them: `mask` "causal" or "full", or `parents` (one for each
    row, `None` is the last committed token), `block` (block-causal), `copies` (so many equal windows), or `bits` (a list of
    booleans for each row). `kv`: "append" (in flight until `accept` or the next forward), "extend" (behind the rows in
    flight), "rerun" (the rows in flight from number `first` on, as hidden states through further layers), "overwrite" (over the committed places from `at` on), "discard". `at`: place of the first row.
    `offsets`, `positions`: place and rotary position of each row. `keep`: ranges of committed places that the rows may see.
    `layers`: (start, end). `leave`: committed tokens at the end to leave uncomputed. `root`: see the last committed token.
    `noise`: mixed into the seed, for loops that draw more than once at a position.

    What is read: `choice` (the model's own next token), `logprob` (of the choice), `top` (so many largest logits), `stats`, `logprobs` (of these
    tokens), `logits`, `hidden` (states before these layers), `mass` (attention of these layers). `top`, `stats` and
    `logprobs` are of the raw law; `choice` and `logits` of the law that the request's processors bent. Where: `read`
    "own" (the last committed token and every row), "last", "all" (places being computed too), or a list of rows.
    """
    def __new__(cls, /, rows: "list[int | Row] | None" = None, *, mask: "str" = "causal", parents: "list[int | None] | None" = None, block: "int | None" = None, copies: "int | None" = None, bits: "list[list[bool]] | None" = None, kv: "str" = "append", first: "int" = 0, at: "int | None" = None, offsets: "list[int] | None" = None, positions: "list[int] | None" = None, keep: "list[tuple[int, int]] | None" = None, layers: "tuple[int, int] | None" = None, leave: "int" = 0, root: "bool" = True, noise: "int" = 0, choice: "bool" = True, logprob: "bool" = False, top: "int" = 0, stats: "bool" = False, logprobs: "list[int] | None" = None, logits: "bool" = False, hidden: "list[int] | None" = None, mass: "list[int] | None" = None, read: "str | list[int] | None" = None) -> Plan: ...
    def __repr__(self, /) -> str: ...
    @staticmethod
    def chain(tokens: "list[int]", **options: "object") -> "Plan":
        """
        Tokens that follow the committed ones; keyword arguments as those of `Plan`.
        """
    @staticmethod
    def tree(tree: "Tree", **options: "object") -> "Plan":
        """
        A draft tree, each node seeing its ancestors; keyword arguments as those of `Plan`.
        """
    @staticmethod
    def window(tokens: "list[int]", at: "int", **options: "object") -> "Plan":
        """
        Rows that all see each other, standing at place `at` and after; keyword arguments as those of `Plan`.
        """

@final
class Row:
    """
    A row that holds no token: a vector in place of an embedding, a weighted sum of embeddings, or a hidden state.
    """
    @staticmethod
    def embedding(vector: SupportsGetItem[int, SupportsFloat | SupportsIndex]) -> Row:
        """
        A vector in place of an embedding: `hidden` floats.
        """
    @staticmethod
    def hidden(vector: SupportsGetItem[int, SupportsFloat | SupportsIndex]) -> Row:
        """
        The residual stream entering the plan's first layer: `hidden` floats.
        """
    @staticmethod
    def mix(weights: "dict[int, float]") -> Row:
        """
        A weighted sum of token embeddings: {token id: weight}.
        """

@final
class Seen:
    """
    What was read at one row. Asking for what the plan did not read raises `RequestError`.
    """
    @property
    def choice(self, /) -> int:
        """
        The model's own choice of the next token: the largest logit, or a sample keyed by (seed, position).
        """
    @property
    def hidden(self, /) -> Array:
        """
        Hidden states: an Array of shape (layers asked for, hidden).
        """
    @property
    def logits(self, /) -> Array:
        """
        All logits, bent by the request's processors: an Array of shape (1, vocabulary).
        """
    @property
    def logprob(self, /) -> float:
        """
        Raw log-probability of the choice.
        """
    @property
    def logprobs(self, /) -> list[float]:
        """
        Raw log-probabilities of the tokens asked for, in their order.
        """
    @property
    def mass(self, /) -> list[float]:
        """
        Attention weights of the layers asked for, in ascending order, each over the keys that the row sees.
        """
    @property
    def stats(self, /) -> tuple[int, float, float, float, float]:
        """
        Of the raw logits: (arg-max, largest, second largest, log-sum-exp, entropy in nats).
        """
    @property
    def top(self, /) -> list[tuple[int, float]]:
        """
        The largest raw logits, descending: (token, logit).
        """

@final
class Sequence:
    """
    The tokens of one line of thought of a request, and what is computed of them. Lives as long as its request runs.
    """
    def __len__(self, /) -> int: ...
    def accept(self, /, path: SupportsGetItem[int, SupportsIndex]) -> None:
        """
        Commit a path of rows of the last forward, going down from the last committed token, without computing them again;
        the other rows are forgotten. Stops at a stop condition inside the path.
        """
    def adopt(self, /, branch: Sequence) -> None:
        """
        The branch becomes the answer; what the reader has not seen of it is handed over. The branch is used up.
        """
    def canvas(self, /, start: SupportsIndex | None = None, end: SupportsIndex | None = None) -> Canvas:
        """
        Lay out a canvas over the places from `start` to `end`: it begins inside what is committed or behind it (of a
        bidirectional model usually at 0, so that the prompt sees the answer) and goes on with mask tokens, by default as far as
        tokens may be committed. The model must have a mask token.
        """
    @property
    def card(self, /) -> Any:
        """
        Facts of the sequence's model: sizes, special tokens, what it sees.
        """
    def cost(self, /, rows: SupportsIndex) -> float:
        """
        Time of a forward of so many rows, relative to one row.
        """
    def extend(self, /, token: SupportsIndex) -> None:
        """
        Append a token without stop conditions: to a fork, or to the prompt before the answer has begun.
        """
    def extend_row(self, /, row: Row) -> None:
        """
        Append a row that holds no token (a latent thought); as `extend`.
        """
    @property
    def finished(self, /) -> bool:
        """
        Whether a stop condition was met.
        """
    def follow(self, /, other: Sequence) -> None:
        """
        Make this sequence's tokens those of `other`, keeping what is computed of the common prefix.
        """
    def fork(self, /, role: SupportsIndex = 0) -> Sequence:
        """
        A branch: same tokens, shared pages, its own noise keyed by `role` (0 keeps the noise). It streams nothing.
        """
    def forward(self, /, plan: "Plan | None" = None) -> "Flight":
        """
        One forward: what is committed but not computed, then the plan's rows. Await it for the `Outcome`. Without a plan,
        the model's own next token is read. Errors are raised at the `await`.
        """
    @property
    def generated(self, /) -> list[int]:
        """
        Tokens after the prompt.
        """
    def judge(self, /, branches: SupportsGetItem[int, Sequence]) -> list[float]:
        """
        Ask the request's judge about branches, or this sequence itself: one float each, more is better. One batch, one
        call, counted.
        """
    def offer(self, /, token_ids: SupportsGetItem[int, SupportsIndex], score: SupportsFloat | SupportsIndex) -> None:
        """
        Tell of another text that was found, with its score; it follows the answers in `RequestOutput.outputs`.
        """
    def prefill(self, /) -> "Flight":
        """
        Compute all but the last committed token, so that forks share it.
        """
    def push(self, /, token: SupportsIndex) -> int | None:
        """
        Commit one token; `None` when there is nothing more to say.
        """
    def rate(self, /, score: SupportsFloat | SupportsIndex) -> None:
        """
        Say what the answer is worth on the strategy's own scale: its `score`.
        """
    def rollback(self, /, length: SupportsIndex) -> None:
        """
        Forget all but the first `length` places. Of the answer, only what the reader has not seen.
        """
    @property
    def room(self, /) -> int:
        """
        How many more tokens may be committed.
        """
    @property
    def seed(self, /) -> int:
        """
        Seed of this sequence's noise.
        """
    def sibling(self, /, role: str) -> Sequence:
        """
        The same tokens on the model with this role (`"draft"`), nothing computed yet.
        """
    @property
    def temperature(self, /) -> float:
        """
        Temperature of its choices; 0 is greedy.
        """
    @property
    def text(self, /) -> str:
        """
        Text after the prompt so far, without half characters.
        """
    @property
    def tokens(self, /) -> list[int]:
        """
        Committed tokens, the prompt's first.
        """
    def worth(self, /, chances: SupportsGetItem[int, SupportsFloat | SupportsIndex]) -> int:
        """
        How many drafted rows pay in the next forward, of those that are accepted with these chances, best first: by the
        measured time of rows and by who else is in the batch. 0 where no draft pays.
        """

@final
class Ticket:
    """
    The answers to one prompt, on their way.
    """
    def attach(self, /, bell: Bell, key: SupportsIndex) -> None:
        """
        Let news ring `bell` with `key` from now on.
        """
    def cancel(self, /) -> None:
        """
        Stop the answers that have not ended; nothing more comes of them.
        """
    def next(self, /) -> Chunk | None:
        """
        The next chunk of any answer, waiting for it with the GIL released; `None` when all have ended. Raises what ended
        an answer early.
        """
    def poll(self, /) -> tuple[Chunk | None, bool]:
        """
        The next chunk if there is one, and whether all answers have ended.
        """
    @property
    def seeds(self, /) -> list[int]:
        """
        The seed of each answer.
        """

@final
class Tree:
    """
    A token tree below the last committed token, which is its root (`None`). Siblings keep their order.
    """
    def __len__(self, /) -> int: ...
    def __new__(cls, /) -> Tree:
        """
        An empty tree.
        """
    def __repr__(self, /) -> str: ...
    def add(self, /, token: SupportsIndex, parent: SupportsIndex | None = None) -> int:
        """
        Hang a token below `parent` (`None`: the root) as its last child; returns the new node's number.
        """
    def children(self, /, node: SupportsIndex | None = None) -> list[int]:
        """
        Children of a node (`None`: the root), in the order they were added.
        """
    def match(self, /, seen: Outcome) -> tuple[list[int], int]:
        """
        Walk down as long as the model's own choice is in the tree: the path to accept, and the token after it. Lossless,
        greedy and sampled.
        """
    @property
    def parents(self, /) -> list[int | None]:
        """
        Parents, by node; `None` is the root.
        """
    def path(self, /, node: SupportsIndex) -> list[int]:
        """
        Nodes from the first level down to `node`.
        """
    @property
    def tokens(self, /) -> list[int]:
        """
        Tokens, by node.
        """

@final
class TrigramCounts:
    """
    Counts of tri-grams, text after text.
    """
    def __new__(cls, /) -> TrigramCounts: ...
    def add(self, /, token_ids: SupportsGetItem[int, SupportsIndex]) -> None:
        """
        Count the token ids of a text.
        """
    def write(self, /, path: str | PathLike[str], vocab: SupportsIndex, least: SupportsIndex) -> tuple[int, int, int]:
        """
        Write the table for a model of `vocab` tokens; tri-grams seen fewer than `least` times are left out. Returns
        (tokens counted, pairs, tri-grams written).
        """

@final
class View:
    """
    What a look saw: `view[place]`, or `view.at(place, draft)`.
    """
    def __getitem__(self, place: SupportsIndex, /) -> Seen: ...
    def at(self, /, place: SupportsIndex, draft: SupportsIndex = 0) -> Seen:
        """
        The prediction for a place, in a draft.
        """

def check_cuda(device: str) -> str:
    """
    Run every check of the kernels on a GPU, as JSON: a list of {name, seconds, error}.
    """

def check_strategy(name: str, parameters: str) -> str:
    """
    What a strategy guarantees with these parameters, given as a JSON object; raises what is wrong with them.
    """

def companions() -> str:
    """
    The registry of companions, as JSON: a list of {name, bends, summary, source, parameters}.
    """

def cuda() -> str:
    """
    What of CUDA is in this build and on this machine, as JSON: {built, kernels, driver, devices, missing, library}. Opens the driver.
    """

def gather(*flights: "Flight") -> "Flight":
    """
    Several forwards at once, in one batch: `a, b = await gather(x.forward(), y.forward())`.
    """

def listwise_labels(engine: Engine, n: SupportsIndex) -> list[int]:
    """
    Token ids of the first `n` identifiers behind an opening bracket.
    """

def listwise_order(answer: str, n: SupportsIndex) -> list[int]:
    """
    The order that a generated answer gives: a permutation of `0..n`.
    """

def listwise_question(query: str, passages: SupportsGetItem[int, str], words: SupportsIndex) -> str:
    """
    The question about one window, each passage cut to so many words.
    """

def listwise_windows(n: SupportsIndex, window: SupportsIndex, step: SupportsIndex) -> list[tuple[int, int]]:
    """
    Windows (start, end) over a list of `n`, the last places first.
    """

def machine() -> str:
    """
    What the engine sees of this machine, as JSON.
    """

def roles() -> list[tuple[str, str]]:
    """
    Roles that models beside the main one may have: (role, what asks for it).
    """

def strategies() -> str:
    """
    The registry of strategies, as JSON: a list of {name, guarantee, needs, summary, source, parameters}.
    """
