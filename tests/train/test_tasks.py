"""The generators and judges: a judge that accepts everything, or a question without its answer, would make every figure wrong."""

import random

import pytest

from omnidecode.train import RECIPES, alphabet, find
from omnidecode.train.prompts import Maker
from omnidecode.train.rank import agreement
from omnidecode.train.recipe import canvas_text, held_out, questions
from omnidecode.train.sums import rate

TASKS = {r: find(r).task for r in RECIPES if isinstance(find(r).task.canvas, int) and find(r).task.canvas}


@pytest.mark.parametrize("name", TASKS)
def test_the_judge_accepts_the_given_answer_and_rejects_a_changed_one(name):
    task, source = TASKS[name], random.Random(7)
    for _ in range(50):
        question, answer = task.sample(source)
        assert task.judge(question, answer), (question, answer)
        assert len(alphabet.encode(answer)) <= task.canvas
        assert not task.judge(question, "")
        at = max(i for i, c in enumerate(answer) if c.isalnum())
        other = next(
            c
            for c in ("0123456789" if answer[at].isdigit() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
            if c not in question + answer or c.isdigit() and c != answer[at]
        )
        assert not task.judge(question, answer[:at] + other + answer[at + 1 :]), (question, answer)


@pytest.mark.parametrize("name", TASKS)
def test_questions_repeat_with_their_seed_and_the_two_sides_never_meet(name):
    task = TASKS[name]
    assert questions(task, "a", 5, held=False) == questions(task, "a", 5, held=False)
    assert questions(task, "a", 5, held=False) != questions(task, "b", 5, held=False)
    assert not any(held_out(q) for q, _ in questions(task, "a", 40, held=False))
    assert all(held_out(q) for q, _ in questions(task, "a", 3, held=True))


def test_judges_know_right_from_wrong():
    assert find("chains-ar").task.judge("3+4-2;5-1;..=", "3>7>5;5>4;")
    assert not find("chains-ar").task.judge("3+4-2;5-1;..=", "3>7>5;5>4")
    countdown = find("countdown-ar").task
    assert countdown.judge("1,2,12,25=", "2*12=24,1+24=25")
    assert countdown.judge("1,2,12,25=", "12*2=24,24+1=25")
    for wrong in ("2*12=24,2+24=26", "2*12=25", "1+24=25", "12+12=24,1+24=25", "2*12=24,1+24=25,", "2*12=24,24-1=25"):
        assert not countdown.judge("1,2,12,25=", wrong), wrong
    sudoku = find("sudoku-ar").task
    assert sudoku.judge("1234341221434320=", "1234341221434321")
    assert not sudoku.judge("4234341221434320=", "1234341221434321"), "a given digit was changed"
    assert not sudoku.judge("0000000000000000=", "1234123412341234")
    graphs = find("prosqa-cot").task
    assert graphs.judge("EB,CD,BA:E?A|D", "EB,BA,#A") and graphs.judge("EB,CD,BA:E?A|D", "#A")
    assert not graphs.judge("EB,CD,BA:E?A|D", "CD,#D") and not graphs.judge("EB,CD,BA:E?A|D", "#B"), "not asked for"
    sums = find("sums-ar").task
    assert sums.judge("2+7-8....=", "2,9,1")
    assert not sums.judge("2+7-8=", "2,8,1") and not sums.judge("2+7-8=", "2,9")


def test_orders_and_how_far_they_agree():
    assert find("rank-first").task.judge(">A41B07C93D01E02F03=", "CABFED")
    assert not find("rank-first").task.judge("<A41B07C93D01E02F03=", "CABFED")
    assert agreement("ABC", "ABC") == 1 and agreement("ABC", "CBA") == -1
    assert abs(agreement("ABC", "ACB") - 1 / 3) < 1e-12


def test_prompts_repeat_with_their_seed_and_differ():
    one, two = ([p for _, p in zip(range(400), Maker(seed))] for seed in (0, 1))
    assert one == [p for _, p in zip(range(400), Maker(0))] and len(set(one)) == 400
    assert len(set(one) & set(two)) < 200
    assert not any(c in p for p in one for c in "{}|"), "every blank is filled"
    kinds = ("Translate German", "Summarize", "Passage: ", "function", "How many", "email")
    assert all(any(kind in p for p in one) for kind in kinds)


def test_a_text_on_the_way_is_rated_by_its_whole_steps():
    for text, finished, worth in [
        ("65,72,64", True, 1.0),
        ("65,72", True, 0.0),
        ("65,72,6", False, 1.0),
        ("65,73,6", False, 0.0),
        ("", False, 1.0),
        ("65,72,64,1,", False, 0.0),
    ]:
        assert rate("65+7-8=", text, finished) == worth, text


def test_the_canvas_is_filled_with_eos_and_lengths_are_checked():
    task = find("chains-ar").task
    question, answer = task.sample(random.Random(1))
    ids = canvas_text(task, question, answer)
    assert len(ids) == task.prompt + task.canvas
    assert ids[task.prompt :] == alphabet.encode(answer) + [alphabet.EOS] * (task.canvas - len(answer))
    with pytest.raises(ValueError, match="expected a prompt of 64 tokens"):
        canvas_text(task, question + "=", answer)


def test_the_alphabet_refuses_what_it_cannot_write():
    assert alphabet.decode(alphabet.encode("a Z~\n")) == "a Z~\n"
    with pytest.raises(ValueError, match="'é' is not in the alphabet"):
        alphabet.encode("é")


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(ValueError, match="sudoku-diffusion"):
        find("sudoku")
