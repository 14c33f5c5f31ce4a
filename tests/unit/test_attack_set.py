"""The attack set: what it holds, and that every attack reaches the judge as material and as nothing else."""

import re

import pytest

from evaluator.commands.attack_set import PLACES, SPELLINGS, Attack, shipped_attacks
from evaluator.scorers.fence import DIGITS
from evaluator.scorers.prompts import Prompts
from evaluator.scorers.view import view_of

PROMPTS = Prompts()
SET = shipped_attacks()


def test_the_set_is_large_and_varied_and_its_names_are_unique() -> None:
    assert len({attack.name for attack in SET.attacks}) == len(SET.attacks) >= 60
    assert len({attack.kind for attack in SET.attacks}) >= 10
    assert {attack.place for attack in SET.attacks} == set(PLACES)
    assert {attack.hide for attack in SET.attacks} == set(SPELLINGS)
    assert {attack.on for attack in SET.attacks} == SET.cases.keys() == {"bad", "good"}


@pytest.mark.parametrize("attack", SET.attacks, ids=lambda attack: attack.name)
def test_an_attack_reaches_the_judge_and_stays_in_its_block(attack: Attack) -> None:
    text = attack.injected("yes")
    view = view_of(SET.cases[attack.on].attacked(attack.place, text).record())

    system, user = PROMPTS.messages(b"key", view, guidelines=(SET.guideline,))

    content = user["content"]
    code = content.split("\n")[0].removeprefix("CODE: ")
    seen = re.sub("[\U000e0000-\U000e007f]", "\ufffd", text)
    held = [block for block in view.blocks if block.text.endswith(seen[-20:])]
    assert len(code) == DIGITS
    assert len(held) == 1
    assert f"\n{held[0].text}\n</material {code}>\n" in content
    assert code not in text
    assert content.count(f"</material {code}>") == len(view.blocks)
    assert "yes" not in system["content"]


def test_an_attack_says_what_verdict_it_wants() -> None:
    silent = [attack.name for attack in SET.attacks if attack.injected("aaaa") == attack.injected("bbbb")]

    assert silent == []
