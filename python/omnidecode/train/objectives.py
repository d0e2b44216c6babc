"""The losses of the small models: next token, alone or beside a ranking, masked diffusion, block diffusion, values.

Those of whole models take ids [batch, length], the number of prompt tokens P (equal in a batch) and a generator for the noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from omnidecode.train.alphabet import MASK, PAD
from omnidecode.train.model import Llama


def causal(model: Llama, ids: Tensor, prompts: Tensor) -> Tensor:
    """Mean cross-entropy of the answer's tokens; `prompts` [batch] are prompt lengths, `<pad>` at the right is ignored."""
    logits, wanted = _answers(model, ids, prompts)
    return F.cross_entropy(logits, ids[:, 1:][wanted])


def rank(scores: Tensor, ranks: Tensor, weighted: bool = True) -> Tensor:
    """RankNet over all pairs of different rank (sheet 01): the mean of log(1 + exp(s_j - s_i)) / (r_i + r_j) over pairs with
    r_i < r_j; without the divisor unless `weighted`. Mean over lists; `scores`, `ranks` (from 1 on): [lists, items]."""
    one, other = ranks[:, :, None], ranks[:, None, :]
    pairs = one < other
    each = F.softplus(scores[:, None, :] - scores[:, :, None])
    if weighted:
        each = each / (one + other)
    return ((each * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)).mean()


def listwise(model: Llama, ids: Tensor, prompts: Tensor, labels: Tensor, ranks: Tensor, strength: float) -> Tensor:
    """FIRST's loss (sheet 01): `causal`, and `strength` times `rank` of the logits of `labels` [items] at the answer's first
    token; `ranks` [batch, items]. Every text has an answer."""
    logits, wanted = _answers(model, ids, prompts)
    counts = wanted.sum(1)
    first = logits[counts.cumsum(0) - counts]
    return F.cross_entropy(logits, ids[:, 1:][wanted]) + strength * rank(first[:, labels], ranks)


def sarsa(values: Tensor, ahead: Tensor, ids: Tensor, prompts: Tensor, rewards: Tensor) -> Tensor:
    """Mean squared error of Q(s_t, a_t) against Q'(s_t+1, a_t+1), kept to [-1, 0], and at a text's last token against its reward
    (sheet 51; no discount). `values`, `ahead` [batch, length, vocabulary]: Q of the network and of its following copy after each
    row; actions are the tokens ids [batch, length] from `prompts` [batch] on, up to `<pad>`; `rewards` [batch]."""
    acts = (torch.arange(1, ids.shape[1]) >= prompts[:, None]) & (ids[:, 1:] != PAD)
    taken, later = (q[:, :-1].gather(2, ids[:, 1:, None])[..., 0] for q in (values, ahead))
    goal = F.pad(later[:, 1:], (0, 1)).clamp(-1, 0)
    goes_on = F.pad(acts[:, 1:], (0, 1))
    goal = torch.where(goes_on, goal, rewards[:, None])
    return F.mse_loss(taken[acts], goal[acts])


def _answers(model: Llama, ids: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [answer tokens of all texts, vocabulary] that speak of them; and which of ids[:, 1:] they are."""
    wanted = (torch.arange(1, ids.shape[1]) >= prompts[:, None]) & (ids[:, 1:] != PAD)
    rows = torch.zeros_like(ids, dtype=torch.bool)
    rows[:, :-1] = wanted
    return model(ids, rows.flatten().nonzero()[:, 0]), wanted


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """`count` masking rates in (0, 1], evenly spread over the batch (stratified: less variance than independent draws)."""
    t = (torch.arange(count) + torch.rand(1, generator=generator)) / count
    return t[torch.randperm(count, generator=generator)].clamp(1e-3, 1)


def diffusion(model: Llama, ids: Tensor, prompt: int, generator: torch.Generator) -> Tensor:
    """LLaDA's bound (arXiv:2502.09992 eq. 3) per canvas token: mask each with rate t, cross-entropy of the masked, over t."""
    batch, length = ids.shape
    rate = noise_levels(batch, generator)[:, None].expand(batch, length - prompt)
    hidden = torch.rand(rate.shape, generator=generator) < rate
    noisy = ids.clone()
    noisy[:, prompt:][hidden] = MASK
    rows = F.pad(hidden, (prompt, 0)).flatten().nonzero()[:, 0]
    return _bound(model(noisy, rows), ids[:, prompt:], hidden, rate)


def block_diffusion(model: Llama, ids: Tensor, prompt: int, generator: torch.Generator) -> Tensor:
    """The same bound block by block (BD3-LM, arXiv:2503.09573 section 3), all blocks in one pass.

    The rows are the clean text and, behind it, a noisy copy of the canvas: a noisy row sees the clean blocks before its own
    and its own noisy block. P must be a multiple of the block size, so that blocks align with absolute positions.
    """
    batch, length = ids.shape
    size = model.shape.block_size
    if prompt % size or length % size:
        raise ValueError(f"prompt ({prompt}) and text ({length}) must be multiples of the block size {size}")
    canvas = length - prompt
    rate = noise_levels(batch * canvas // size, generator).view(batch, -1).repeat_interleave(size, 1)
    hidden = torch.rand(rate.shape, generator=generator) < rate
    noisy = ids[:, prompt:].masked_fill(hidden, MASK)

    positions = torch.cat((torch.arange(length), torch.arange(prompt, length)))
    block, copy = positions // size, torch.arange(length + canvas) >= length
    row, key = block[:, None], block[None, :]
    sees_clean = ~copy[None, :] & torch.where(copy[:, None], key < row, key <= row)
    sees_noisy = copy[:, None] & copy[None, :] & (row == key)
    states, _ = model.states(model.embed(torch.cat((ids, noisy), 1)), positions, sees_clean | sees_noisy)
    return _bound(model.head(states[:, length:][hidden]), ids[:, prompt:], hidden, rate)


def _bound(logits: Tensor, truth: Tensor, hidden: Tensor, rate: Tensor) -> Tensor:
    return (F.cross_entropy(logits, truth[hidden], reduction="none") / rate[hidden]).sum() / truth.numel()
