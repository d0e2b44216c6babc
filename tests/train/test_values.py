"""Value models (sheet 51): SARSA's loss against a process whose chances are known, the recipe, its export in the engine."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnidecode.train import alphabet, checkpoint, find, loop, objectives, value
from omnidecode.train.recipe import questions

WRITER = Path(__file__).parents[2] / "models" / "sums-ar"


def test_sarsa_finds_the_chances_of_a_known_process():
    """Contract 9: Q of a table converges to -P(undesired) under the policy that wrote the texts."""
    tokens, length, bad = 4, 4, 3  # states are the last token; a text is undesired if it holds token 3
    first = alphabet.BOS + 1
    policy = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.5, 0.2, 0.2, 0.1], [0.2, 0.1, 0.3, 0.4], [0.3, 0.3, 0.3, 0.1]])
    texts = torch.tensor(list(itertools.product(range(tokens), repeat=length)))
    steps = torch.cat((torch.zeros(len(texts), 1, dtype=torch.long), texts), 1)  # from token 0
    chance = policy[steps[:, :-1], steps[:, 1:]].prod(1)
    rewards = -(texts == bad).any(1).float()
    exact = torch.zeros(length, tokens, tokens)  # after so many tokens, none of them 3, in this state, this action

    def spoils(place, state, action):
        if action == bad:
            return 1.0
        if place + 1 == length:
            return 0.0
        return sum(policy[action, a].item() * spoils(place + 1, action, a) for a in range(tokens))

    for place, state, action in itertools.product(range(length), range(tokens), range(tokens)):
        exact[place, state, action] = -spoils(place, state, action)

    table = torch.zeros(length, 2, tokens, tokens, requires_grad=True)  # and whether token 3 was there already
    copy, adam = table.detach().clone(), torch.optim.Adam([table], lr=0.02)
    source = torch.Generator().manual_seed(0)

    def values(q, drawn):
        told = torch.cat((torch.zeros(len(drawn), 1, dtype=torch.long), (drawn == bad).cumsum(1).clamp(max=1)), 1)
        before = steps_of(drawn)[:, :-1]
        rows = q[torch.arange(length)[None], told[:, :-1], before]
        return torch.cat((torch.zeros(len(drawn), 1, tokens), rows, torch.zeros(len(drawn), 1, tokens)), 1)[:, 1:]

    def steps_of(drawn):
        return torch.cat((torch.zeros(len(drawn), 1, dtype=torch.long), drawn), 1)

    for step in range(1500):
        for group in adam.param_groups:
            group["lr"] = 0.02 * (1 - step / 1500)
        at = torch.multinomial(chance, 256, replacement=True, generator=source)
        ids = steps_of(texts[at]) + first  # none of them is <pad>
        pad = torch.zeros(len(at), length + 1, first)
        q, ahead = (torch.cat((pad, values(t, texts[at])), 2) for t in (table, copy))
        loss = objectives.sarsa(q, ahead, ids, torch.ones(len(at), dtype=torch.long), rewards[at])
        adam.zero_grad()
        loss.backward()
        adam.step()
        copy.lerp_(table.detach(), 0.1)
    reached = [(p, s, a) for p, s, a in itertools.product(range(length), range(3), range(tokens)) if p or s == 0]
    for place, state, action in reached:
        found, want = table[place, 0, state, action].item(), exact[place, state, action].item()
        assert abs(found - want) < 0.06, (place, state, action, found, want)
    assert (table[1:, 1, :, :].detach()[:, bad, 0] < -0.9).all(), "what went wrong stays wrong"


def test_a_cap_can_make_things_worse():
    """The sheet's example: no law keeps the caps, and the caps themselves are worse than the model's own law."""
    law, bad = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.9]])
    capped = value.cap(law, -bad, 0.0)
    assert torch.allclose(capped, torch.tensor([[8 / 9, 1 / 9]]), atol=1e-5)
    assert (capped * bad).sum() > (law * bad).sum()
    law, values = torch.rand(50, 20).softmax(1), -torch.rand(50, 20) * 0.9
    capped = value.cap(law, values, 0.0)
    assert torch.allclose(capped.sum(1), torch.ones(50)) and (capped <= 1 + values + 1e-5).all()
    assert torch.allclose(value.cap(law, torch.zeros(50, 20), 0.0), law)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums-value")
    what = replace(find("sums-value"), target=WRITER, batch=16)
    return what, folder, loop.train(what, folder, steps=40, progress=False)


def test_the_end_is_learned_and_a_resumed_run_is_equal(trained, tmp_path):
    """The loss at a text's last token falls; that of all grows first, as rewards come back from the end."""
    what, folder, losses = trained
    ids, prompts, rewards = what.write(questions(what.asks, "ends", 64, held=True), 3)
    ends = (ids != alphabet.PAD).sum(1) - 1
    rows = torch.arange(len(ids))
    with torch.no_grad():
        said = what.load(folder)(ids)[rows, ends - 1, ids[rows, ends]]
    at_first = (rewards**2).mean()  # a new network says 0
    assert ((said - rewards) ** 2).mean() < 0.85 * at_first, (said, rewards)
    first = loop.train(what, tmp_path, steps=40, until=15, progress=False)
    assert first + loop.train(what, tmp_path, steps=40, resume=True, progress=False) == losses
    files = [(at / "model.safetensors").read_bytes() for at in (folder, tmp_path)]
    assert files[0] == files[1]


def test_the_export_loads_in_the_engine_with_equal_outputs(trained):
    what, folder, _ = trained
    module = pytest.importorskip("omnidecode", reason="the engine is not built")
    if not hasattr(module, "LLM"):
        pytest.skip("the engine is not built")
    question, answer = questions(what.asks, "engine", 1, held=True)[0]
    ids = [alphabet.BOS, *alphabet.encode(question + answer)]
    with torch.no_grad():
        want = checkpoint.load(folder)(torch.tensor([ids]))[0]
    with module.LLM(folder, threads=1) as llm:
        torch.testing.assert_close(torch.from_dlpack(llm.logits(ids)), want, atol=0.01, rtol=0.01)
    with module.LLM(WRITER, beside={"value": folder}, threads=1) as llm:
        params = module.SamplingParams(temperature=1.0, max_tokens=4, seed=0)
        usage = llm.generate([ids[:20]], params, companions=["rectification"])[0].usage
        assert usage.forwards == 2 * usage.target_forwards


def test_a_table_of_rates(trained):
    what, folder, _ = trained
    rows = what.evaluate(what.load(folder).eval(), 16)
    assert [row["law"] for row in rows] == ["its own", *(f"capped, epsilon {e}" for e in (0.0, 0.1, 0.3))]
    assert all(0 <= row["wrong"] <= 100 for row in rows) and math.isfinite(rows[0]["foreseen"])
    with pytest.raises(ValueError, match="--target"):
        replace(what, target=None).writer()
