from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from capreward import LiteJudge
from capreward.errors import InputError
from capreward.judges import Reply, Request, Task
from capreward.judges.lite import function_word_share, plain, repeated_share

CUP = "A white cup stands on a brown table. A silver spoon lies next to it."
ASPECTS = ("clarity", "fluency", "coherence")


def ask(judge: LiteJudge, *requests: Request) -> list[Any]:
    return asyncio.run(judge.ask(requests))


def rate(judge: LiteJudge, text: str) -> dict[str, float]:
    (reply,) = ask(judge, Request(Task.RATE, text, ASPECTS))
    return dict(zip(ASPECTS, reply.values, strict=True))


def test_can_do_what_needs_no_image_and_no_opinion(lite: LiteJudge) -> None:
    assert lite.tasks == {Task.CHOOSE, Task.SUPPORT, Task.RATE, Task.EXTRACT}
    assert not lite.images


def test_name_names_the_model(lite: LiteJudge) -> None:
    assert "minilm" in lite.name.lower()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a wh\u200bi\u00adte \u202bcup\u202c\ufeff", "a white cup"),
        ("\u0430 \u0441u\u0440 \u039fn", "a cup On"),
        ("\uff21\u3000cup\u2026", "A cup..."),
        ("a cup\u2019s rim", "a cup\u2019s rim"),
        ("a w\u115fh\u3164i\ufe0ft\u034fe\u2800cup", "a white cup"),
        ("a caf\u0065\u200d\u0301", "a caf\u00e9"),
    ],
)
def test_a_text_is_read_as_it_looks(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_so_are_options_and_questions(lite: LiteJudge) -> None:
    """The captions that an arena compares are options."""
    options = ("a white cup on a brown table", "a white cup on a wooden table")
    context, question = "A white cup stands on a brown table.", "Which describes this image?"
    disguise = str.maketrans("aeop", "\u0430\u0435\u043e\u0440")
    plainly, disguised = (
        Request(Task.CHOOSE, context, (options[0].translate(table), options[1]), question.translate(table))
        for table in ({}, disguise)
    )
    assert disguised != plainly
    assert ask(lite, disguised) == ask(lite, plainly)


def test_embeddings(lite: LiteJudge) -> None:
    found = lite.embed(["A red ball.", "a ball that is red", "Two cats sleep."])
    assert found.shape == (3, 384)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    likeness = found @ found.T
    assert likeness[0, 1] > 0.8 > 0.3 > likeness[0, 2]


class TestChoose:
    @pytest.mark.parametrize(
        ("question", "options", "right"),
        [
            ("What stands on the table?", ("a dog", "a cup", "a candle"), 1),
            ("What colour is the cup?", ("white", "blue", "red"), 0),
            ("What is the spoon made of?", ("plastic", "wood", "silver"), 2),
            ("Where is the cup?", ("on a shelf", "in the sink", "on a brown table"), 2),
        ],
    )
    def test_option_that_the_caption_names(
        self, lite: LiteJudge, question: str, options: tuple[str, ...], right: int
    ) -> None:
        (reply,) = ask(lite, Request(Task.CHOOSE, CUP, options, question))
        assert max(range(len(options)), key=reply.values.__getitem__) == right
        assert sum(reply.values) == pytest.approx(1)

    def test_the_question_counts(self, lite: LiteJudge) -> None:
        cup, spoon = ask(
            lite,
            Request(Task.CHOOSE, CUP, ("brown", "white"), "What colour is the cup?"),
            Request(Task.CHOOSE, CUP, ("brown", "white"), "What colour is the spoon?"),
        )
        assert abs(cup.values[0] - spoon.values[0]) > 0.05

    def test_nothing_to_go_by_favours_no_option(self, lite: LiteJudge) -> None:
        (reply,) = ask(lite, Request(Task.CHOOSE, "", ("a dog", "a cup"), "What is it?"))
        assert reply.values == (0.5, 0.5)


class TestSupport:
    def test_stated_facts_from_absent_ones(self, lite: LiteJudge) -> None:
        statements = (
            "A cup stands on a table.",
            "There is a spoon next to the cup.",
            "A dog sleeps on the grass.",
            "A train crosses a bridge.",
        )
        (reply,) = ask(lite, Request(Task.SUPPORT, CUP, statements))
        assert [value >= 0.5 for value in reply.values] == [True, True, False, False]

    def test_a_sentence_supports_itself_wherever_it_stands(self, lite: LiteJudge) -> None:
        (reply,) = ask(lite, Request(Task.SUPPORT, f"A dog sleeps. {CUP}", ("A silver spoon lies next to it.",)))
        assert reply.values[0] > 0.99

    def test_empty_context_supports_nothing(self, lite: LiteJudge) -> None:
        (reply,) = ask(lite, Request(Task.SUPPORT, " \n", ("A cup.", "A dog.")))
        assert max(reply.values) < 0.01


class TestRate:
    def test_good_prose(self, lite: LiteJudge) -> None:
        assert rate(lite, CUP) == {"clarity": 1, "fluency": 1, "coherence": 1}

    def test_keyword_list_is_incoherent(self, lite: LiteJudge) -> None:
        assert rate(lite, "white cup, brown table, silver spoon, window light")["coherence"] == 0

    def test_loop_is_unclear(self, lite: LiteJudge) -> None:
        assert rate(lite, "A cup stands on a table. " * 20)["clarity"] < 0.1

    @pytest.mark.parametrize("sentence", ["He have a dog.", "They was happy.", "This is a apple.", "I see an dog."])
    def test_agreement_and_article_errors(self, lite: LiteJudge, sentence: str) -> None:
        assert lite.grammar(sentence) == 0
        assert lite.grammar(f"{CUP} {sentence}") == pytest.approx(2 / 3)

    @pytest.mark.parametrize("sentence", ["A thylacine lies by the escritoire.", "The colour is very grey."])
    def test_rare_words_and_taste_are_no_errors(self, lite: LiteJudge, sentence: str) -> None:
        assert lite.grammar(sentence) == 1

    def test_loop_in_disguise_is_unclear(self, lite: LiteJudge) -> None:
        disguised = CUP.replace("a", "\u0430").replace("e", "e\u200b")
        assert rate(lite, f"{CUP} {disguised}") == rate(lite, f"{CUP} {CUP}")

    def test_empty_text_is_not_fluent(self, lite: LiteJudge) -> None:
        ratings = rate(lite, "")
        assert (ratings["fluency"], ratings["coherence"]) == (0, 0)

    def test_only_the_aspects_asked_in_their_order(self, lite: LiteJudge) -> None:
        text = "He have a dog. " * 3
        (reply,) = ask(lite, Request(Task.RATE, text, ("fluency", "clarity")))
        assert reply.values == (rate(lite, text)["fluency"], rate(lite, text)["clarity"])

    def test_unknown_aspect(self, lite: LiteJudge) -> None:
        with pytest.raises(InputError, match="rates clarity, fluency and coherence, not 'style'"):
            ask(lite, Request(Task.RATE, CUP, ("clarity", "style")))


class TestExtract:
    def test_sentences(self, lite: LiteJudge) -> None:
        (reply,) = ask(lite, Request(Task.EXTRACT, f"{CUP}\nNo dog; no cat.\n\n {CUP}"))
        assert reply.texts == (
            "A white cup stands on a brown table.",
            "A silver spoon lies next to it.",
            "No dog",
            "no cat.",
        )

    @pytest.mark.parametrize("text", ["", "  \n\n", ";;"])
    def test_none(self, lite: LiteJudge, text: str) -> None:
        assert ask(lite, Request(Task.EXTRACT, text)) == [Reply()]


class TestBatches:
    REQUESTS = (
        Request(Task.CHOOSE, CUP, ("white", "blue"), "What colour is the cup?"),
        Request(Task.SUPPORT, CUP, ("A cup stands on a table.", "A dog sleeps.")),
        Request(Task.RATE, "He have a cup, cup, cup.", ASPECTS),
        Request(Task.EXTRACT, CUP),
        Request(Task.SUPPORT, "A dog sleeps on the grass.", ("A dog sleeps.",)),
    )

    def test_same_answer_when_asked_again(self, lite: LiteJudge) -> None:
        assert ask(lite, *self.REQUESTS) == ask(lite, *self.REQUESTS)

    def test_order_and_company_do_not_matter(self, lite: LiteJudge) -> None:
        together = ask(LiteJudge(), *self.REQUESTS)  # a judge of their own each, since embeddings are kept
        apart = [ask(LiteJudge(), request)[0] for request in self.REQUESTS]
        reverse = ask(LiteJudge(), *self.REQUESTS[::-1])[::-1]
        for one, *others in zip(together, apart, reverse, strict=True):
            for other in others:
                assert other.values == pytest.approx(one.values, abs=1e-4)
                assert other.texts == one.texts

    def test_forgetting_embeddings_changes_nothing(self, lite: LiteJudge, monkeypatch: pytest.MonkeyPatch) -> None:
        before = ask(lite, *self.REQUESTS)
        monkeypatch.setattr("capreward.judges.lite.CACHED_TEXTS", 0)
        for one, other in zip(before, ask(lite, *self.REQUESTS), strict=True):
            assert other.values == pytest.approx(one.values, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0), ("cup table spoon", 0), ("the of and", 1), ("A cup is on the table.", 4 / 6), ("The the THE cup", 3 / 4)],
)
def test_function_word_share(text: str, share: float) -> None:
    assert function_word_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "n", "share"),
    [
        ("", 4, 0),
        ("a b c", 4, 0),
        ("a b c d", 4, 0),
        ("a b c d a b c d", 4, 1 / 5),  # abcd bcda cdab dabc abcd
        ("a a a a a", 4, 1 / 2),
        ("a b a b a b", 2, 3 / 5),  # ab ba ab ba ab
        ("A cup. a CUP!", 1, 1 / 2),
    ],
)
def test_repeated_share(text: str, n: int, share: float) -> None:
    assert repeated_share(text, n) == pytest.approx(share)
