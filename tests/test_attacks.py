from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from dataclasses import replace

import pytest

from capreward import Item, Rollout, attacks
from capreward.attacks import ATTACKS, NAMES, Material
from capreward.errors import InputError
from capreward.records import count_words
from capreward.samples import injections

CAPTION = "A small red cup stands on the left of a brown table. Two spoons lie next to it."


@pytest.fixture
def material(cup: Item) -> Material:
    others = ("A grey cat looks to the right.", "A rocket lifts off at night.")
    return Material(Rollout(item=cup, caption=CAPTION, id="cup/1"), random.Random(0), others=others)


@pytest.fixture
def bare() -> Material:
    """An item that has nothing, and is alone."""
    return Material(Rollout(item=Item(id="bare"), caption=CAPTION), random.Random(0))


def again(material: Material) -> Material:
    return replace(material, chance=random.Random(0))


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.variant in ("", "json-rate")], ids=lambda a: a.name)
def test_is_seeded_says_what_it_imitates_and_what_to_do(attack: attacks.Attack, material: Material) -> None:
    made = attack.make(material)
    assert made == attack.make(again(material))
    assert made is not None
    assert made != material.honest
    assert attack.advice
    assert (attack.make.func if attack.variant else attack.make).__doc__  # type: ignore[attr-defined]


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.keeps], ids=lambda a: f"{a.name} {a.variant}")
def test_what_keeps_the_text_keeps_it(attack: attacks.Attack, material: Material) -> None:
    made = attack.make(material)
    assert made
    hidden = attack.name in ("invisible characters", "homoglyphs", "right-to-left marks")
    assert (material.honest in made) is not hidden


def test_what_needs_more_than_a_caption_is_not_made_without_it(bare: Material) -> None:
    not_made = {attack.name for attack in ATTACKS if attack.make(bare) is None}
    assert not_made == {"options listed", "options added", "other image", "shotgun", "padding to the band"}


def test_all_injections_stand_behind_and_in_front() -> None:
    for how in ("appended", "prepended"):
        variants = [attack.variant for attack in ATTACKS if attack.name == f"injection {how}"]
        assert variants == [injection.id for injection in injections()]


def test_loops(material: Material) -> None:
    looped = attacks.repeated_sentence(material)
    assert set(attacks.sentences(looped)) == {"A small red cup stands on the left of a brown table."}
    assert count_words(looped) >= count_words(CAPTION)
    assert attacks.repeated_caption(material).split("\n") == [CAPTION] * 3


def test_hedges_each_of_what_can_be_told_apart(material: Material) -> None:
    hedged = attacks.hedged(material)
    assert hedged.count(" or ") == 2 * len(["small", "red", "left", "brown", "Two"])
    assert hedged.startswith("A small or ")
    plain = replace(material, rollout=material.rollout.model_copy(update={"caption": "A dog sleeps."}))
    assert attacks.hedged(plain).startswith("A dog sleeps. It may be red or blue")


def test_options(material: Material) -> None:
    assert attacks.options_listed(material) == "What colour is the cup? blue or white."
    added = attacks.options_added(material)
    assert added == f"{CAPTION} What colour is the cup? blue. What colour is the cup? white."


def test_words_alone(material: Material) -> None:
    assert attacks.one_word(material) == "stands"
    assert attacks.keyword_soup(material) == "small, stands, left, brown, table, spoons, next"


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (attacks.padding, 3 * count_words(CAPTION)),
        (attacks.padding_to_the_band, 26),
        (attacks.very_long, attacks.LONG),
    ],
)
def test_padding_ends_just_below_its_limit(
    material: Material, make: Callable[[Material], str | None], limit: int
) -> None:
    made = make(material)
    assert made is not None
    assert limit - 9 < count_words(made) <= limit
    sentences = attacks.sentences(made)
    assert len(set(sentences)) > 0.95 * len(sentences)


def test_padding_to_the_band_knows_the_bound(material: Material) -> None:
    assert attacks.padding_to_the_band(replace(material, high=1.0)) is None  # it is as long already
    longer = attacks.padding_to_the_band(replace(material, high=4.0))
    assert longer is not None
    assert 43 < count_words(longer) <= 52


def test_disguises_look_like_the_text(material: Material) -> None:
    hidden, marked = attacks.invisible(material), attacks.right_to_left(material)
    for made in (hidden, marked):
        assert "".join(c for c in made if unicodedata.category(c) != "Cf") == CAPTION
    alike = attacks.homoglyphs(material)
    assert len(alike) == len(CAPTION)
    changed = [(a, b) for a, b in zip(CAPTION, alike, strict=True) if a != b]
    assert changed
    assert all(unicodedata.name(b).startswith("CYRILLIC") for _, b in changed)
    assert set(attacks.disguised_repetition(material).split("\n")[1].split()).isdisjoint({"stands", "brown"})


def test_fake_json_is_json(material: Material) -> None:
    assert json.loads(attacks.fake_json(material))["ratings"] == [{"number": 1, "rating": 5}]


def test_by_name() -> None:
    assert [attack.name for attack in attacks.named(["shotgun", "empty"])] == ["empty", "shotgun"]
    assert len(attacks.named(["injection appended"])) == 50
    with pytest.raises(InputError, match=r"attacks: got 'bribe', expected some of empty, one word, .*"):
        attacks.named(["empty", "bribe"])
    assert len(NAMES) == 25
