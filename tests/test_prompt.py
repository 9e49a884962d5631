"""The prompt grammar: lossless both ways, forgiving of keyboards, exact about mistakes."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sojourn import prompt as grammar
from sojourn.errors import InvalidInput, PromptError, Unsupported
from sojourn.prompt import PARAMETERS, caret, merge, parse, require, unsupported, used
from sojourn.schema import PARTS_MAX, REFUSED, WORDS_MAX, Prompt, Segment, visible

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
NASTY = [
    *" \t\n\r\"\\:：,，、-－—–―⸺=＝.+0１9aZ红é{}()[]'“”。",
    *"\u3000\u00a0\u200b\u200d\u200e\u200f\u202e\u2066\u2028\ufe0f\u0301",
    *[
        "--",
        "——",
        "－－",
        "::",
        "：：",
        ":：",
        '\\"',
        "\\\\",
        ' "',
        '" ',
        "--n",
        "--n 4",
        " --no ",
        " —tile",
        "——n 4",
        "::2",
    ],
    *[
        "::-0.5 ",
        "--zzz",
        "nan",
        "inf",
        "--ar 1:1",
        "红色的心",
        "heart",
        FAMILY,
        "❤️",
        "שלום",
        "مرحبا",
        "{red, blue} heart",
    ],
]
WORDS = (
    st.lists(st.sampled_from(NASTY) | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    .map("".join)
    .filter(lambda text: not REFUSED.search(text) and visible(text))
)
WEIGHTS = st.floats(-10, 10) | st.sampled_from([1.0, 2.0, -0.5, 0.0, -0.0, 1e-300, 5e-324])
OPTIONAL = {
    "n": st.integers(1, 64),
    "seed": st.integers(0, 2**53 - 1),
    "steps": st.integers(1, 1000),
    "guidance": st.floats(0, 100),
    "style": WORDS.filter(lambda text: len(text) <= 100),
    "ar": st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)),
    "chaos": st.floats(0, 100) | st.just(-0.0),
    "stylize": st.floats(0, 1000),
    "iw": st.floats(0, 3),
    "sref": WORDS,
    "model": WORDS.filter(lambda text: len(text) <= 100),
}


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    parts = draw(st.lists(st.builds(Segment, text=WORDS, weight=WEIGHTS) | st.builds(Segment, text=WORDS), max_size=4))
    assume(not parts or math.fsum(part.weight for part in parts) > 0)
    values = draw(st.fixed_dictionaries({}, optional=OPTIONAL))
    return Prompt(
        segments=tuple(parts), no=tuple(draw(st.lists(WORDS, max_size=3))), tile=draw(st.booleans()), **values
    )


def problem(text: str) -> tuple[int, str]:
    """Column and message (without the column) of the error that `text` makes."""
    with pytest.raises(PromptError) as caught:
        parse(text)
    head = f"column {caught.value.column}: "
    assert str(caught.value).startswith(head)
    return caught.value.column, str(caught.value).removeprefix(head)


def outcome(text: str) -> tuple[Prompt, PromptError | None]:
    try:
        return parse(text), None
    except PromptError as error:
        return Prompt(), error


# Lossless


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(prompts())
def test_a_prompt_survives_text(prompt: Prompt) -> None:
    text = grammar.format(prompt)
    again = parse(text, allow_empty=not prompt.segments)
    assert again == prompt
    assert grammar.format(again) == text


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(NASTY) | st.text(max_size=3), max_size=14).map("".join))
@example("\ud800")
@example("a::1e400")
@example("--n" + "9" * 5000)
@example("a --n " + "9" * 5000)
def test_any_text_is_a_prompt_or_one_clear_line(text: str) -> None:
    prompt, error = outcome(text)
    if error is None:
        assert Prompt.model_validate(prompt.model_dump()) == prompt
        assert parse(grammar.format(prompt)) == prompt
        return
    assert 1 <= error.column <= max(len(text), WORDS_MAX) + 1
    assert len(str(error).splitlines()) == 1
    shown, mark = caret(text, error).split("\n")
    assert mark.strip() == "^"
    assert not REFUSED.search(shown + str(error))


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters='":：-－—–―⸺'), min_size=1, max_size=80)
)
def test_words_without_grammar_are_kept_to_the_code_point(text: str) -> None:
    assume(visible(text))
    assert [part.text for part in parse(text).segments] == [text.strip()]
    assert parse(text + " --n 2").segments[0].text == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        *[
            "{red, blue} heart",
            "a — b",
            "well--known",
            "state-of-the-art",
            "10:30, noon",
            '12" disc and 7" disc',
            "heart -n 4",
        ],
        *[
            "一个梦——红色的心",
            "梦——no",
            "维生素——C 片",
            'a sign that says "50% -- off --only::now"',
            '"a" and "b"',
            "5 -- 3",
            "--",
        ],
        *[
            f"{FAMILY} ❤️ שלום \u202eabc\u202c",
            "a\nb\tc\r\nd",
            "红色　的心，蓝",
            "C:\\new\\x",
            "he said—no way",
            "sunset —stylish",
        ],
    ],
)
def test_prose_stays_prose(text: str) -> None:
    prompt = parse(text)
    assert prompt == Prompt(segments=(Segment(text=text),))
    assert parse(grammar.format(prompt)) == prompt


def test_the_longest_prompt_still_fits() -> None:
    share = WORDS_MAX // (2 * PARTS_MAX)
    words = '"' * share
    longest = Prompt(
        segments=tuple(Segment(text=words, weight=0.12345678901234566e-5) for _ in range(PARTS_MAX)),
        no=(words,) * PARTS_MAX,
        style='"' * 100,
        model='"' * 100,
        sref="\\" * 1000,
        seed=2**53 - 1,
        tile=True,
        ar=(9999, 9999),
        guidance=1.2345678901234567,
        chaos=1.2345678901234567e-7,
        stylize=123.45678901234567,
        iw=1e-300,
    )
    text = grammar.format(longest)
    assert WORDS_MAX < len(text) <= grammar.RAW_MAX
    assert parse(text) == longest


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("  a  red heart ", "a  red heart"),
        ('"red heart"', "red heart"),
        ("a:: b::2.50 --s 50.0 --c 3 --aspect 3:2", "a::1 b::2.5 --ar 3:2 --chaos 3 --stylize 50"),
        ("x --tile --model m --no b,c --n 1e1", "x --n 10 --no b, c --tile --model m"),
        ("x --seed 007 --guidance +.5 --iw -0", "x --seed 7 --guidance 0.5 --iw 0"),
        ('say "hi" now', '"say \\"hi\\" now"'),
        ('x --no "a, b", \'c\' --style "flat color"', 'x --no "a, b", \'c\' --style "flat color"'),
    ],
)
def test_format_is_canonical(text: str, canonical: str) -> None:
    assert grammar.format(parse(text)) == canonical


# What keyboards and phones make of it


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("红色的心 --n 4", "红色的心 --n 4"),
        ("红色的心：：2 蓝色：：-0.5", "红色的心::2 蓝色::-0.5"),
        ("红色的心：：２，蓝色：：－０．５　－－ｎ　４", "红色的心::2 蓝色::-0.5 --n 4"),
        ("红色的心：:2、蓝色:：—0.5", "红色的心::2 蓝色::-0.5"),
        ("红色的心——n 4", "红色的心 --n 4"),
        ("红色的心 ——n 4——ar １６：９", "红色的心 --n 4——ar １６：９"),
        ("红色的心--n 4，--seed 3， —tile", "红色的心 --n 4 --seed 3 --tile"),
        ("红色的心 --no 猫，狗、 “鸟”", "红色的心 --no 猫, 狗, “鸟”"),
        ("heart —ar 16:9 –tile", "heart --ar 16:9 --tile"),
        ("heart --AR 16:9 --Tile", "heart --ar 16:9 --tile"),
        ("heart --n=4 --style＝flat", "heart --n 4 --style flat"),
        ("❤️--n 4", "❤️ --n 4"),
        ('"red heart"--n 4', "red heart --n 4"),
        ("a -－n 4 ---seed 3", "a --n 4 --seed 3"),
    ],
)
def test_keyboards(text: str, meant: str) -> None:
    if "——ar" in meant:
        assert problem(text) == (10, "--n is 4——ar, must be a whole number 1..64")
        return
    assert grammar.format(parse(text)) == meant


def test_values_are_kept_as_written() -> None:
    assert parse("x --style ｆｌａｔ").style == "ｆｌａｔ"
    assert parse("x --sref C:\\new\\t.png,").sref == "C:\\new\\t.png"
    assert parse('x --sref "C:\\new pics\\t.png"').sref == "C:\\new pics\\t.png"
    assert parse('disc \\"x --n 4 --style y"').style == 'y"'
    assert parse(f"x --no {FAMILY}\u200f, b").no == (f"{FAMILY}\u200f", "b")


# Errors


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "the prompt is empty; write what you want to see"),
        (" 　\n", 1, "the prompt is empty; write what you want to see"),
        ("--n 4", 1, "the prompt is empty; write what you want to see"),
        ("\u200d\u200f", 1, "no visible character here; write a word"),
        ("a::2 \u200d", 6, "no visible character here; write a word"),
        ("heart --steps 1e9", 15, "--steps is 1e9, must be 1..1000"),
        ("heart --steps 0", 15, "--steps is 0, must be 1..1000"),
        ("heart --steps 1e999999999999", 15, "--steps is 1e999999999999, must be 1..1000"),
        ("heart --steps 2.5", 15, "--steps is 2.5, must be a whole number 1..1000"),
        ("heart --steps many", 15, "--steps is many, must be a whole number 1..1000"),
        ("heart --steps", 7, "--steps needs a value, 1..1000"),
        ("heart --steps --n 4", 7, "--steps needs a value, 1..1000"),
        ("heart --style --n 4", 7, "--style needs a value"),
        ("heart --no , --n 4", 7, "--no needs a value"),
        ('heart --style ""', 15, "--style needs a value"),
        ("heart --n 65", 11, "--n is 65, must be 1..64"),
        ("heart --n four", 11, "--n is four, must be a whole number 1..64"),
        ("heart --seed 9007199254740992", 14, "--seed is 9007199254740992, must be 0..9007199254740991"),
        ("heart --seed -1", 14, "--seed is -1, must be 0..9007199254740991"),
        ("heart --guidance nan", 18, "--guidance is nan, must be a number 0..100"),
        ("heart --guidance inf", 18, "--guidance is inf, must be a number 0..100"),
        ("heart --guidance 1e400", 18, "--guidance is 1e400, must be 0..100"),
        ("heart --guidance 1_0", 18, "--guidance is 1_0, must be a number 0..100"),
        ("heart --chaos 101", 15, "--chaos is 101, must be 0..100"),
        ("heart --s 1001", 11, "--stylize is 1001, must be 0..1000"),
        ("heart --iw 3.01", 12, "--iw is 3.01, must be 0..3"),
        ("heart --ar 0:0", 12, "--ar is 0:0, must be width:height, both 1..10000"),
        ("heart --ar 16x9", 12, "--ar is 16x9, must be width:height, both 1..10000"),
        ("heart --ar 10001:1", 12, "--ar is 10001:1, must be width:height, both 1..10000"),
        ("heart --ar16:9", 11, "put a space after --ar"),
        ("红色的心--n4", 8, "put a space after --n"),
        ("heart --no猫", 11, "put a space after --no"),
        ("heart --n.", 10, "put a space after --n"),
        ("heart--n 4", 6, "put a space before --n"),
        ("heart --n 4 --n 5", 13, "--n is given twice"),
        ("heart --s 1 --stylize 2", 13, "--stylize is given twice"),
        ("heart --no a --no b", 14, "--no is given twice"),
        ("heart --tile=yes", 13, "--tile takes no value"),
        ("heart --tile dog", 14, "dog after --tile; put words first, or quote the value"),
        ("heart --style flat color", 20, "color after --style; put words first, or quote the value"),
        ('heart --style "a"b', 18, "b after --style; put words first, or quote the value"),
        ("--tile heart", 1, "--tile is before the words; put the words first"),
        (" --n 4 red heart", 2, "--n is before the words; put the words first"),
        ('heart --style "flat', 15, 'this " is not closed'),
        ("heart --stpes 4", 7, "unknown parameter --stpes, did you mean --steps?"),
        ("heart —stpes 4", 7, "unknown parameter --stpes, did you mean --steps?"),
        ("红色的心--stpes 4", 5, "unknown parameter --stpes, did you mean --steps?"),
        ("heart --v 6", 7, "unknown parameter --v, did you mean --model?"),
        ("heart --风格 水彩", 7, f"unknown parameter --风格; known: {', '.join(PARAMETERS)}"),
        ("::2 heart", 1, "no words before ::"),
        ("a::2 ::3 b", 6, "no words before ::"),
        ("a::11", 4, "the weight is 11, must be -10..10"),
        ("a::-10.5 b", 4, "the weight is -10.5, must be -10..10"),
        ("a::1e999 b", 4, "the weight is 1e999, must be -10..10"),
        ("a::nan b", 4, "the weight is nan, must be -10..10 and then a space"),
        ("a::-inf b", 4, "the weight is -inf, must be -10..10 and then a space"),
        ("a::2dog", 4, "the weight is 2dog, must be -10..10 and then a space"),
        ("a::1,5 b", 4, "the weight is 1,5, must be -10..10 and then a space"),
        ("a::::b", 4, "the weight is ::b, must be -10..10 and then a space"),
        ("a::-1", 2, "the weights add up to -1, must be more than 0"),
        ("a::0.5 b::-0.5", 9, "the weights add up to 0, must be more than 0"),
        ("heart --no b::2", 13, "a weight (::) belongs to the words, not here"),
        ("a\x00b", 2, "U+0000 is a control character; remove it"),
        ("a \x1b[31mred", 3, "U+001B is a control character; remove it"),
        ("a\x9b1m", 2, "U+009B is a control character; remove it"),
        ("ab\udc80", 3, "U+DC80 is half a character (not valid UTF-8?); remove it"),
        ("x" * 2001, 2001, "the prompt has 2001 characters, at most 2000 are allowed"),
        ("a --no " + "x" * 2000, 2001, "the prompt has 2001 characters, at most 2000 are allowed"),
        ("a --style " + "x" * 101, 11, "--style has more than 100 characters"),
        ("a::" * 33, 97, "more than 32 parts"),
        ("a --no " + "b," * 33, 72, "more than 32 parts"),
    ],
)
def test_errors(text: str, column: int, message: str) -> None:
    assert problem(text) == (column, message)


def test_numbers_stay_exact_at_the_edge() -> None:
    assert parse("x --seed 9007199254740991").seed == 2**53 - 1
    assert parse("x --seed 9007199254740989").seed == 2**53 - 3
    assert parse("x::10 y::-9.999").segments[1].weight == -9.999
    assert str(parse("x --iw -0").iw) == str(parse("x::1 y::-0").segments[1].weight) == "0.0"


def test_empty_prompts_pass_where_they_are_allowed() -> None:
    assert parse("", allow_empty=True) == Prompt()
    assert parse(" --n 4", allow_empty=True) == Prompt(n=4)
    with pytest.raises(PromptError, match="before the words"):
        parse("--n 4 heart", allow_empty=True)


@pytest.mark.parametrize(
    "text", ["a" * 10**6, "😀" * 100_000, "\ud800" * 10**6, "—n 4 " * 200_000, '"' * 10**6, "a::" * 400_000]
)
def test_a_megabyte_is_refused_at_once(text: str) -> None:
    start = time.process_time()
    column, message = problem(text)
    assert time.process_time() - start < 0.05
    assert (column, message) == (2001, f"the prompt has {len(text)} characters, at most 2000 are allowed")


@pytest.mark.parametrize(
    "piece", ['"', '\\"', ' "a', " —xy", "猫--xyz", "—a", "a::", "-", " ", ' "\\"', "—no ", "猫——n "]
)
def test_no_prompt_takes_long(piece: str) -> None:
    text = piece * (grammar.RAW_MAX // len(piece))
    start = time.process_time()
    _, error = outcome(text)
    if error:
        caret(text, error)
    assert time.process_time() - start < 1


def test_every_message_is_a_literal_template() -> None:
    """Messages are translated by template: a template that is built cannot be found."""
    names = {"PromptError", "InvalidInput", "Unsupported"}
    calls = [
        node
        for name in ("prompt.py", "grammar.py")
        for node in ast.walk(ast.parse(Path(grammar.__file__).with_name(name).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]
    assert len(calls) > 25
    for call in calls:
        assert isinstance(call.args[0], ast.Constant), ast.unparse(call)


# The schema refuses what the grammar refuses


@pytest.mark.parametrize(
    "values",
    [
        {"segments": [{"text": "a", "weight": -1}]},
        {"segments": [{"text": "a", "weight": math.nan}]},
        {"segments": [{"text": "a", "weight": 10.5}]},
        {"segments": [{"text": ""}]},
        {"segments": [{"text": "\u200d"}]},
        {"segments": [{"text": "a\x1b"}]},
        {"segments": [{"text": "\ud800"}]},
        {"segments": [{"text": "x" * 2001}]},
        {"segments": [{"text": "x"}] * 33},
        {"no": ["x" * 2001]},
        {"no": [" "]},
        {"style": ""},
        {"style": "x" * 101},
        {"ar": (0, 1)},
        {"ar": (1, 10_001)},
        {"guidance": math.nan},
        {"guidance": math.inf},
    ],
)
def test_the_schema_is_as_strict(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        Prompt(**values)  # type: ignore[arg-type]
    assert len(str(grammar.explained(caught.value)).splitlines()) == 1


def test_plain_prompts_of_training_rows_are_not_checked() -> None:
    row = Prompt.plain("x" * 5000, "flat")
    assert (row.text, row.style, row.no, row.n) == ("x" * 5000, "flat", (), None)
    assert Prompt.plain("").segments == ()


def test_parameters_say_what_the_schema_says() -> None:
    assert list(PARAMETERS) == [name for name in Prompt.model_fields if name != "segments"]
    for name, parameter in PARAMETERS.items():
        assert parameter.about
        if parameter.kind in {"whole", "number"}:
            for value in (parameter.low, parameter.high):
                assert getattr(Prompt.model_validate({name: value}), name) == value
                assert getattr(parse(f"x --{name} {value}"), name) == value
            for value in (parameter.low - 1, parameter.high + 1):
                with pytest.raises(ValidationError):
                    Prompt.model_validate({name: value})
                with pytest.raises(PromptError):
                    parse(f"x --{name} {value}")


# Merge, used, caret


def test_merge_replaces_and_keeps() -> None:
    prompt = parse("a::2 b --n 4 --no cat --style flat --tile")
    merged = merge(prompt, n="８", seed=3, steps=None, ar="16：9", no="dog, bird，", tile=False, guidance="7.5")
    assert grammar.format(merged) == "a::2 b::1 --n 8 --seed 3 --guidance 7.5 --no dog, bird --style flat --ar 16:9"
    assert grammar.format(prompt) == "a::2 b::1 --n 4 --no cat --style flat --tile"
    assert merge(prompt, no=("a, b",), ar=(3, 2)).no == ("a, b",)
    assert merge(prompt) == prompt


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 10**9}, "--steps is 1000000000, must be 1..1000"),
        ({"steps": "1e9"}, "--steps is 1e9, must be 1..1000"),
        ({"steps": 2.5}, "--steps is 2.5, must be 1..1000"),
        ({"guidance": math.nan}, "--guidance is nan, must be 0..100"),
        ({"guidance": "inf"}, "--guidance is inf, must be 0..100"),
        ({"ar": "0:0"}, "--ar is 0, must be width:height, both 1..10000"),
        ({"ar": "16x9"}, "--ar is 16x9, must be width:height, both 1..10000"),
        ({"style": "a\x1b[0m"}, "text holds U+001B, which is no character of a text; remove it"),
        ({"no": "x" * 2000}, "the prompt has 2001 characters, at most 2000"),
        ({"stpes": 4}, "unknown parameter --stpes, did you mean --steps?"),
    ],
)
def test_merge_refuses(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        merge(parse("a"), **overrides)
    assert str(caught.value) == message


def test_used_names_what_a_model_must_be_able_to_do() -> None:
    assert used(parse("a red heart")) == []
    assert used(parse("a::1")) == []
    assert used(parse("a::2 b --n 4 --tile --no c --chaos 0 --s 0")) == ["weights", "n", "no", "tile"]
    assert used(Prompt(ar=(1, 1), seed=0, guidance=0)) == ["seed", "guidance", "ar"]
    assert used(parse("a --chaos 5")) == ["chaos"]
    prompt = parse("a::2 b --n 4 --tile")
    assert unsupported(prompt, {"n"}) == ["weights", "tile"]
    require(prompt, {"n", "weights", "tile"}, "emoji")
    with pytest.raises(Unsupported, match=r'^"emoji" cannot do ::, --tile yet; leave it out$'):
        require(prompt, {"n"}, "emoji")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("heart --n 99", ["heart --n 99", "          ^"]),
        ("红色的心 --n 99", ["红色的心 --n 99", "             ^"]),
        ("a\nb 红 --n 99", ["b 红 --n 99", "         ^"]),
        ("a\u202e --n 99", ["a --n 99", "      ^"]),
        ("é\u0301 --n 99", ["é\u0301 --n 99", "      ^"]),
        ("a\x1b[31m", ["a␛[31m", " ^"]),
        ("", ["", "^"]),
        ("红" * 100 + " --n 99", ["红" * 22 + " --n 99", " " * 49 + "^"]),
        ("a --n 99 " + "x" * 500, ["a --n 99 " + "x" * 67, "      ^"]),
    ],
)
def test_caret_stands_under_the_column(text: str, lines: list[str]) -> None:
    with pytest.raises(PromptError) as caught:
        parse(text)
    assert caret(text, caught.value).split("\n") == lines


def test_no_torch() -> None:
    code = "import sys, sojourn.prompt; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
