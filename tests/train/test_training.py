"""Every recipe trains a few steps, its loss falls, and its export is whole; the loop resumes exactly; the losses see what they should."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from omnidecode.train import RECIPES, alphabet, checkpoint, find, loop, objectives
from omnidecode.train.__main__ import main
from omnidecode.train.decode import Rule, continue_text, denoise
from omnidecode.train.model import Llama, Shape
from omnidecode.train.recipe import questions

TEXT = [name for name in RECIPES if find(name).task.canvas]
SMALL = dict(hidden=32, intermediate=64, layers=2, heads=2)


def small(name):
    r = find(name)
    return replace(r, shape=r.shape | SMALL, batch=8, learning_rate=1e-2)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """recipe name -> (folder, losses) of 40 steps; each is trained once."""
    done = {}

    def get(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name] = folder, loop.train(small(name), folder, steps=40, progress=False)
        return done[name]

    return get


@pytest.mark.parametrize("name", TEXT)
def test_loss_falls_and_the_export_is_whole(name, trained):
    folder, losses = trained(name)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), losses
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama" and config["torch_dtype"] == "float16"
    assert config["vocab_size"] == len(alphabet.VOCABULARY)
    attention = find(name).shape["attention"]
    assert config.get("mask_token_id") == (None if attention == "causal" else alphabet.MASK)
    assert config.get("logit_shift") == (None if attention == "causal" else 0)
    assert config.get("attention", "causal") == attention
    assert ("block_size" in config) == (attention == "block")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"]["<mask>"] == alphabet.MASK
    facts = json.loads((folder / "training.json").read_text())
    assert facts["recipe"] == name and facts["seed"] == 0 and facts["done"] == 40
    assert not (folder / "state.pt").exists()

    model = checkpoint.load(folder)
    tensors = checkpoint.read_safetensors(folder / "model.safetensors")
    assert "model.layers.1.self_attn.q_proj.weight" in tensors and len(tensors) == len(dict(model.named_parameters()))
    assert model.shape == Shape(**small(name).shape)


def engine():
    """The engine's module, where it is built."""
    module = pytest.importorskip("omnidecode", reason="the engine is not built")
    return module if hasattr(module, "LLM") else pytest.skip("the engine is not built")


@pytest.mark.parametrize("name", TEXT)
def test_the_export_loads_in_the_engine_with_equal_outputs(name, trained):
    """Causal models: all logits. The answers of diffusion models are compared in `test_models`, where they mean something."""
    folder, _ = trained(name)
    task, attention = find(name).task, find(name).shape["attention"]
    question, answer = questions(task, "engine", 1, held=False)[0]
    ids = [alphabet.BOS, *alphabet.encode(question + answer)]
    with engine().LLM(folder, threads=1) as llm:
        assert llm.tokenize(question + answer) == ids
        assert llm.card["vocab"] == len(alphabet.VOCABULARY) and llm.card["eos"] == [alphabet.EOS]
        assert llm.card["mask"] == (None if attention == "causal" else alphabet.MASK)
        assert llm.card["bidirectional"] == (attention == "full")
        assert llm.card["block"] == (find(name).shape["block_size"] if attention == "block" else None)
        if attention == "causal":
            with torch.no_grad():
                want = checkpoint.load(folder)(torch.tensor([ids]))[0]
            torch.testing.assert_close(torch.from_dlpack(llm.logits(ids)), want, atol=0.05, rtol=0.01)


def test_transformers_reads_the_export(trained):
    transformers = pytest.importorskip("transformers")
    folder, _ = trained("chains-ar")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[alphabet.BOS, *alphabet.encode("3+4-2;=")]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, checkpoint.load(folder)(ids), atol=1e-4, rtol=1e-4)


def test_tokenizers_agrees_with_the_alphabet(trained):
    tokenizers = pytest.importorskip("tokenizers")
    folder, _ = trained("chains-ar")
    text = "3+4 = <x>;\nAz~"
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = theirs.encode(text).ids
    assert ids == [alphabet.BOS, *alphabet.encode(text)]
    assert theirs.decode(ids) == text
    assert theirs.encode("<mask>", add_special_tokens=False).ids == [alphabet.MASK]


def test_safetensors_reads_the_export(trained):
    safetensors = pytest.importorskip("safetensors.torch")
    path = trained("chains-ar")[0] / "model.safetensors"
    theirs, ours = safetensors.load_file(path), checkpoint.read_safetensors(path)
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[k], ours[k]) for k in ours)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    what = small("chains-diffusion")
    whole = loop.train(what, tmp_path / "whole", steps=12, progress=False)
    first = loop.train(what, tmp_path / "cut", steps=12, until=5, progress=False)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="was begun as"):
        loop.train(what, tmp_path / "cut", steps=12, seed=1, resume=True, progress=False)
    rest = loop.train(what, tmp_path / "cut", steps=12, resume=True, progress=False)
    assert first + rest == whole
    files = [(tmp_path / d / "model.safetensors").read_bytes() for d in ("whole", "cut")]
    assert files[0] == files[1]
    with pytest.raises(ValueError, match="nothing to resume"):
        loop.train(what, tmp_path / "cut", steps=12, resume=True, progress=False)


def test_seeds_differ(tmp_path):
    what = small("chains-ar")
    runs = [loop.train(what, tmp_path / str(s), steps=3, seed=s, progress=False) for s in (0, 1)]
    assert runs[0] != runs[1]


def test_block_diffusion_in_one_pass_equals_block_by_block():
    """The two-copy mask against what decoding does: clean blocks, then one noisy block, one forward each."""
    torch.manual_seed(3)
    model = Llama(Shape(**SMALL, attention="block", block_size=4))
    ids = torch.randint(8, 104, (3, 16))
    noise = torch.Generator().manual_seed(5)
    loss = objectives.block_diffusion(model, ids, 8, noise)

    noise = torch.Generator().manual_seed(5)
    rate = objectives.noise_levels(6, noise).view(3, 2).repeat_interleave(4, 1)
    hidden = torch.rand(rate.shape, generator=noise) < rate
    total = 0.0
    for b, end in enumerate((12, 16)):
        noisy = ids[:, :end].clone()
        part = slice(4 * b, 4 * b + 4)
        noisy[:, end - 4 :][hidden[:, part]] = alphabet.MASK
        logits = model(noisy)[:, end - 4 :][hidden[:, part]]
        ce = torch.nn.functional.cross_entropy(logits, ids[:, end - 4 : end][hidden[:, part]], reduction="none")
        total = total + (ce / rate[:, part][hidden[:, part]]).sum()
    torch.testing.assert_close(loss, total / (3 * 8), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="multiples of the block size"):
        objectives.block_diffusion(model, ids, 6, noise)


def test_the_diffusion_loss_hides_exactly_what_it_asks_for():
    torch.manual_seed(0)
    model = Llama(Shape(**SMALL, attention="full"))
    ids = torch.randint(8, 104, (64, 12))
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    loss = objectives.diffusion(model, ids, 4, torch.Generator().manual_seed(1))
    noisy, selected = seen[0]
    hidden = torch.zeros(ids.numel(), dtype=torch.bool)
    hidden[selected] = True
    hidden = hidden.view_as(ids)
    assert (noisy[hidden] == alphabet.MASK).all() and torch.equal(noisy[~hidden], ids[~hidden])
    assert not hidden[:, :4].any(), "the prompt is never hidden"
    assert 0.4 < hidden[:, 4:].float().mean() < 0.6 and hidden[:, 4:].float().mean(1).max() > 0.9
    # 1/t makes every rate weigh the same: an ignorant model costs log(vocabulary) a token
    assert 0.7 < loss.item() / torch.tensor(104.0).log().item() < 1.6


def test_causal_loss_ignores_prompt_and_padding():
    torch.manual_seed(0)
    model = Llama(Shape(**SMALL))
    ids = torch.tensor([[3, 20, 21, 22, 2, 0, 0], [3, 20, 30, 31, 32, 33, 2]])
    loss = objectives.causal(model, ids, torch.tensor([3, 4]))
    log = model(ids).log_softmax(-1)
    wanted = [(0, 3), (0, 4), (1, 4), (1, 5), (1, 6)]
    by_hand = -sum(log[b, i - 1, ids[b, i]] for b, i in wanted) / len(wanted)
    torch.testing.assert_close(loss, by_hand)


def test_the_ranking_loss_is_that_of_the_sheet():
    """FIRST (sheet 01, contract 7), by hand: scores 1, 3, 2 with ranks 2, 1, 3."""
    scores, ranks = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True), torch.tensor([[2, 1, 3]])
    # Pairs (better, worse): (3, 1) with ranks 1 and 2, (3, 2) with 1 and 3, (1, 2) with 2 and 3.
    log = [math.log1p(math.exp(gap)) for gap in (1 - 3, 2 - 3, 2 - 1)]
    by_hand = (log[0] / 3 + log[1] / 4 + log[2] / 5) / 3
    assert abs(by_hand - 0.127759) < 1e-6
    loss = objectives.rank(scores, ranks)
    assert abs(loss.item() - by_hand) < 1e-6
    assert abs(objectives.rank(scores, ranks, weighted=False).item() - sum(log) / 3) < 1e-6, "RankNet"
    torch.testing.assert_close(objectives.rank(scores + 5, ranks), loss)
    loss.backward()
    assert scores.grad[0, 1] < 0 < scores.grad[0, 2], "the best is raised, the worst lowered"
    equal = torch.tensor([[1.0, 3.0]], requires_grad=True)
    objectives.rank(equal, torch.tensor([[1, 1]])).backward()
    assert not equal.grad.any(), "of equal rank"
    both = objectives.rank(torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]]), torch.tensor([[2, 1, 3], [1, 1, 1]]))
    torch.testing.assert_close(both, loss.detach() / 2)


def test_the_ranking_is_read_where_the_first_letter_is_predicted():
    torch.manual_seed(0)
    model = Llama(Shape(**SMALL))
    ids = torch.tensor([[3, 20, 21, 42, 43, 2, 0], [3, 20, 21, 22, 43, 42, 2]])
    prompts, labels, ranks = torch.tensor([3, 4]), torch.tensor([42, 43]), torch.tensor([[1, 2], [2, 1]])
    scores = model(ids)[torch.arange(2), prompts - 1][:, labels]
    want = objectives.causal(model, ids, prompts) + 10 * objectives.rank(scores, ranks)
    torch.testing.assert_close(objectives.listwise(model, ids, prompts, labels, ranks, 10.0), want)


def test_a_thought_is_the_last_state_after_the_final_norm():
    """Coconut against a loop without cache or padding (sheet 34, contracts 1, 3, 5, 6, 7)."""
    from omnidecode.train import prosqa

    torch.manual_seed(0)
    model = Llama(Shape(**SMALL))
    prompts = [[3, 41, 42, 5], [3, 41, 43, 44, 45, 5]]
    for thoughts in (0, 3):
        outs = prosqa.think(model, prompts, thoughts, 5)
        for prompt, out in zip(prompts, outs):
            with torch.no_grad():
                x = model.embed(torch.tensor([prompt]))

                def states(x):
                    n = x.shape[1]
                    return model.states(x, torch.arange(n), torch.ones(n, n, dtype=torch.bool).tril())[0]

                for _ in range(thoughts):
                    x = torch.cat((x, states(x)[:, -1:]), 1)
                token, want = alphabet.END_LATENT, []
                for _ in range(len(out)):
                    x = torch.cat((x, model.embed(torch.tensor([[token]]))), 1)
                    token = int(model.head(states(x)[:, -1]).argmax())
                    want.append(token)
            assert out == want
    losses = [prosqa.latent_loss(model, [p], 2, [t])[0] for p, t in zip(prompts, ([50, 2], [51, 52, 2]))]
    both, _ = prosqa.latent_loss(model, prompts, 2, [[50, 2], [51, 52, 2]])
    torch.testing.assert_close(both, (2 * losses[0] + 3 * losses[1]) / 5)
    # Questions that share the rows of a graph are questions with a graph each.
    graphs, queries = [[3, 41, 42], [3, 41, 43, 44, 45]], [[50, 5], [51, 5], [52, 5], [53, 5]]
    texts = [[50, 2], [51, 52, 2], [60, 2], [40, 41, 42, 2]]
    apart = [graphs[i // 2] + query for i, query in enumerate(queries)]
    shared, rows = prosqa.latent_loss(model, graphs, 2, texts, queries)
    torch.testing.assert_close(shared, prosqa.latent_loss(model, apart, 2, texts)[0])
    assert rows == 2 * 5 + 4 * (2 + 2 + 4)


def test_gradients_flow_through_the_thoughts():
    """Finite differences of the embedding of the token before two thoughts (sheet 34, contract 9)."""
    from omnidecode.train import prosqa

    torch.manual_seed(0)
    model = Llama(Shape(**SMALL)).double()

    def loss():
        return prosqa.latent_loss(model, [[3, 41, 42, 5]], 2, [[50, 2]])[0]

    loss().backward()
    weight, at = model.model.embed_tokens.weight, (5, 7)
    with torch.no_grad():
        slope = []
        for e in (1e-5, -2e-5):
            weight[at] += e
            slope.append(loss())
    assert abs((slope[0] - slope[1]).item() / 2e-5 - weight.grad[at].item()) < 1e-6


def test_denoising_counts_forwards_and_left_prompts_alone():
    torch.manual_seed(0)
    model = Llama(Shape(**SMALL, attention="full"))
    prompts = torch.randint(8, 104, (3, 5))
    text, forwards = denoise(model, prompts, 12, 12, Rule(count=1))
    assert text.shape == (3, 12) and not (text == alphabet.MASK).any()
    assert forwards.tolist() == [12, 12, 12]
    sure, forwards = denoise(model, prompts, 12, 12, Rule(threshold=0.0))
    assert forwards.tolist() == [1, 1, 1]
    never, forwards = denoise(model, prompts, 12, 12, Rule(threshold=1.1))
    assert forwards.tolist() == [12, 12, 12] and torch.equal(never, text)


def test_continuing_with_a_cache_equals_dense_forwards():
    torch.manual_seed(0)
    model = Llama(Shape(**SMALL))
    prompts = [[3, 20, 21], [3, 40, 41, 42, 43]]
    for prompt, out in zip(prompts, continue_text(model, prompts, 6)):
        ids = list(prompt)
        for _ in range(6):
            logits = model(torch.tensor([ids]))[0, -1]
            logits[[alphabet.PAD, alphabet.BOS, alphabet.MASK]] = -torch.inf
            ids.append(int(logits.argmax()))
        want = ids[len(prompt) :]
        assert out == (want[: want.index(alphabet.EOS)] if alphabet.EOS in want else want)


def test_grouped_queries_equal_keys_written_out():
    torch.manual_seed(0)
    grouped = Llama(Shape(**SMALL | dict(heads=4), kv_heads=2))
    whole = Llama(Shape(**SMALL | dict(heads=4)))
    weights = grouped.state_dict()
    for name, w in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = w.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
    whole.load_state_dict(weights)
    ids = torch.randint(8, 104, (2, 9))
    torch.testing.assert_close(grouped(ids), whole(ids))
    assert Shape.of(grouped.shape.config()) == grouped.shape and Shape.of(whole.shape.config()) == whole.shape


def test_the_command_line(tmp_path, capsys, monkeypatch):
    assert main(["sudoku-ar", "--out", str(tmp_path), "--steps", "2", "--count", "4"]) == 0
    assert "greedy" in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation.json").read_text())["table"][0]["decoding"] == "greedy"
    assert main(["sudoku-ar", "--out", str(tmp_path), "--text", "x"]) == 1
    assert "are for drafters" in capsys.readouterr().err
    assert main(["sudoku-ar", "--out", str(tmp_path), "--resume"]) == 1
    assert "nothing to resume" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["sudoku-ar", "--out", str(tmp_path)]) == 2
    assert "omnidecode[train]" in capsys.readouterr().err
