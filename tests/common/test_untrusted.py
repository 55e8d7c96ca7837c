"""JSON of somebody else: what is taken, and how the rest is refused, by file and key."""

import json

import pytest

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.untrusted import Fields, is_text, parse_json, read_json_object, show

NOT_JSON = {
    "empty": b"",
    "cut short": b'{"a": ',
    "no UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "a number of 5000 digits": b'{"a": 1' + b"0" * 5000 + b"}",
    "deeper than the parser goes": b"[" * 100_000,
    "deep": b"[" * 200 + b"]" * 200,
    "half of a pair": b'{"a": "\\ud800"}',
    "the other half": b'{"a": ["\\udc00"]}',
    "halves the wrong way round": b'{"a": "\\udc00\\ud800"}',
    "half of a pair as a key": b'{"\\ud83d": 1}',
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_no_json_is_refused_by_file(content):
    with pytest.raises(FormatError) as refused:
        parse_json(content, "some/config.json")
    assert refused.value.path == "some/config.json"
    refused.value.message.encode("utf-8")


def test_a_lone_surrogate_is_refused_by_its_key():
    with pytest.raises(
        FormatError, match=r"^f.json: name: 'x\\udcff' has half of a surrogate pair"
    ):
        parse_json(b'{"a": {"name": "x\\udcff"}}', "f.json")


TAKEN = {
    "a whole pair": (b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
    "the text of an escape": (b'{"a": "\\\\ud800"}', {"a": "\\ud800"}),
    "a length of transformers": (b'{"a": 1000000000000000019884624838656}', {"a": int(1e30)}),
    "infinity": (b'{"a": Infinity}', {"a": float("inf")}),
    "a hundred levels": (b"[" * 100 + b"]" * 100, json.loads("[" * 100 + "]" * 100)),
}  # fmt: skip


@pytest.mark.parametrize(("content", "value"), TAKEN.values(), ids=TAKEN.keys())
def test_what_libraries_write_is_taken(content, value):
    assert parse_json(content, "f.json") == value


def test_an_object_is_asked_for(tmp_path):
    (tmp_path / "f.json").write_text("[1]")
    with pytest.raises(FormatError, match=r"f\.json: not a JSON object"):
        read_json_object(tmp_path / "f.json")


VALUES = {
    "size": 3, "none": None, "flag": True, "negative": -1, "float": 2.0, "text": "3", "list": ["a"],
    "huge": 1 << 48 | 1, "huger": 10**400, "nan": float("nan"), "inf": float("inf"), "number": -2.5,
    "object": {"size": 4}, "sizes": [0, 5], "mixed": ["a", 1], "long": "x" * 1000,
}  # fmt: skip
FIELDS = Fields(VALUES, "f.json")


def test_values_of_their_type():
    assert (FIELDS.size("size"), FIELDS.size("none", 7), FIELDS.find_size("none")) == (3, 7, None)
    assert (FIELDS.find_number("number"), FIELDS.find_number("size")) == (-2.5, 3.0)
    assert (FIELDS.find_text("text"), FIELDS.find_text("none")) == ("3", None)
    assert (FIELDS.texts("list"), FIELDS.texts("none"), FIELDS.sizes("sizes")) == (
        ["a"],
        [],
        [0, 5],
    )
    assert FIELDS.inside("object").size("size") == 4
    assert FIELDS.object("none") == {}


REFUSED = [
    *((Fields.size, key) for key in VALUES if key != "size"),
    *((Fields.find_number, key) for key in ("flag", "text", "nan", "inf", "huger", "list")),
    *((Fields.find_text, key) for key in ("size", "list", "object")),
    *((Fields.texts, key) for key in ("text", "mixed", "sizes", "object")),
    *((Fields.sizes, key) for key in ("text", "mixed", "list", "size")),
    *((Fields.object, key) for key in ("text", "list", "size")),
]


@pytest.mark.parametrize(("ask", "key"), REFUSED)
def test_values_of_another_type_are_refused_by_file_and_key(ask, key):
    with pytest.raises(FormatError, match=rf"^f\.json: {key} is .*, expected a") as refused:
        ask(FIELDS, key)
    assert len(refused.value.message) < 200


def test_names_of_one_thing_say_the_same():
    said = Fields({"a": 3, "b": None, "c": 3, "d": 4, "in": {"e": 4}}, "f.json")
    assert (said.agree("b", "a", "c"), said.agree("b"), said.agree("x", "y")) == ("a", "b", "x")
    assert said.beside("in").agree("d", "e") == "d"
    with pytest.raises(FormatError, match=r"^f\.json: a is 3, but d, another name for it, is 4$"):
        said.agree("b", "a", "c", "d")
    inner = Fields({"a": [1] * 99, "b": 2}, "f.json", "in.")
    with pytest.raises(FormatError, match=r"in\.a is \[1, .*, but in\.b, .* is 2$") as refused:
        inner.agree("a", "b")
    assert len(refused.value.message) < 200


def test_what_is_assumed_counts_where_no_other_name_is_there():
    said = Fields({"a": 3, "b": 4, "c": None, "in": {"a": 5}}, "f.json", assumed={"a"})
    assert (said.agree("a", "b"), said.agree("a", "c"), said.agree("c", "a")) == ("b", "a", "a")
    assert said.agreed_size(("a", "b")) == 4
    assert (said.agreed_size(("a", "c")), said.agreed_size(("c", "x"), 7)) == (3, 7)
    with pytest.raises(FormatError, match="a is 5, but b, another name for it, is 4"):
        said.beside("in").agree("a", "b")


def test_more_than_is_allowed_is_refused():
    assert FIELDS.find_size("size", 3) == 3
    with pytest.raises(FormatError, match="size is 3, expected a size up to 2"):
        FIELDS.find_size("size", 2)
    with pytest.raises(FormatError, match=r"number is -2.5, expected a finite number up to 2"):
        FIELDS.find_number("number", 2)


def test_values_are_shown_in_a_line():
    assert show("a\x1b[31m\n") == repr("a\x1b[31m\n")
    assert len(show(list(range(10_000)))) == 80
    assert show(10**5000) == "a number of thousands of digits"


def test_text():
    assert [is_text(each) for each in ("", "a\0", "\U0001f600", "\ud800")] == [
        True,
        True,
        True,
        False,
    ]


def test_a_number_that_python_does_not_read_is_said_without_advice_for_python():
    with pytest.raises(FormatError) as error:
        parse_json(b'{"a": ' + b"1" * 5000 + b"}", "f.json")
    assert str(error.value) == "f.json: holds a number of thousands of digits"


@pytest.mark.parametrize(
    ("value", "read"), [(True, True), (False, False), (1, True), (0, False), (None, None)]
)
def test_a_boolean_is_read(value, read):
    assert Fields({"a": value}, "f.json").find_bool("a") is read


@pytest.mark.parametrize("value", ["false", "", [0], [], {}, 2, -1, 1.0, 0.0, 10**400])
def test_what_is_true_or_false_to_python_alone_is_no_boolean(value):
    with pytest.raises(FormatError, match=r"f\.json: a is .*, expected true or false"):
        Fields({"a": value}, "f.json").find_bool("a")
