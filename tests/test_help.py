"""--help in both languages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click
import pytest

from sojourn import config, registry
from sojourn.cli import help as helped
from sojourn.cli.main import VERBS, cli, run
from sojourn.errors import catalogue, named
from sojourn.grammar import PARAMETERS

HEADS = {
    "name", "family", "what", "seen", "licence", "presets", "default", "meaning", "recipe", "stages", "model", "options"
}  # fmt: skip
CLICKS_OWN = {"Usage:", "Options", "Commands", "required", "Show this message and exit.", "Show the version and exit."}
PATHS = [[], *([verb] for verb in VERBS), ["models", "import"], ["models", "verify"], ["keys", "add"]]


def texts(command: click.Command) -> Iterator[str]:
    """What a command, its options and its own commands say of themselves."""
    if command.help:
        yield inspect.cleandoc(command.help)
    yield from (option.help for option in command.params if isinstance(option, click.Option) and option.help)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from texts(found)


def test_all_of_the_help_is_in_chinese_and_nothing_else() -> None:
    said = {" ".join(text.split()) for text in (*texts(cli), *(about for _, about in VERBS.values()))} | CLICKS_OWN
    assert len(said) > 120
    assert said == set(catalogue("help.zh"))
    for english, chinese in catalogue("help.zh").items():
        assert re.search(r"[\u4e00-\u9fff]", chinese), english
        assert {"0", "1"} & set(re.findall(r"\d+", english)) <= set(re.findall(r"\d+", chinese)), english


@pytest.mark.parametrize("width", ["50", "80", "200"])
@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_is_in_the_users_language_and_fits_the_terminal(
    path: list[str], width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("SOJOURN_LANG", "zh")
    assert run([*path, "--help"]) == 0
    chinese = capsys.readouterr().out
    assert chinese.startswith("用法: sojourn")
    assert "显示这段说明。" in chinese
    assert not re.search(r"[a-z]+ [a-z]+ [a-z]+ [a-z]+", chinese.partition("\n")[2]), "a sentence was left in English"
    for line in chinese.splitlines()[1:]:
        words = max(map(helped.cells, line.split()), default=0)
        assert helped.cells(line) <= max(int(width), words + 34), line
    monkeypatch.setenv("SOJOURN_LANG", "en")
    assert run([*path, "--help"]) == 0
    english = capsys.readouterr().out
    assert not re.search(r"[\u4e00-\u9fff]", english.replace("春风", ""))
    assert re.findall(r"--[a-z-]+", english.partition("Options:")[2]) == re.findall(
        r"--[a-z-]+", chinese.partition("选项:")[2]
    ), "an option is missing"


def test_the_language_can_be_said_with_the_question(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOJOURN_LANG", "en")
    assert run(["--lang", "zh", "train", "--help"]) == 0
    assert "按配方训练" in capsys.readouterr().out
    assert run(["--lang", "en", "--help"]) == 0
    assert "Draw pictures" in capsys.readouterr().out


def test_lines_are_measured_in_cells() -> None:
    assert helped.lines("红色的心，蓝色的猫。", 9) == ["红色的", "心，蓝色", "的猫。"]  # a mark does not begin a line
    assert helped.lines("用 `a b` 找“名称”", 10) == ["用 `a b`", "找“名称”"]
    assert helped.lines("longer-than-that 长", 6) == ["longer-than-that", "长"]
    assert helped.cells("a红”") == 5


def test_what_is_said_of_families_recipes_and_parameters_is_in_chinese_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = [config.load_recipe(id) for id in config.recipes()]
    said = {parameter.about for parameter in PARAMETERS.values()}
    said |= {text for recipe in shipped for text in (recipe.title, recipe.about, *recipe.failures)}
    table = catalogue("names.zh")
    said = {" ".join(text.split()) for text in said}
    assert said <= set(table), said - set(table)
    families = {registry.get("family", id).about for id in registry.ids("family")}  # a new one may be in English alone
    stale = set(table) - said - families - HEADS
    assert not stale, stale
    for english, chinese in table.items():
        assert re.search(r"[\u4e00-\u9fff]", chinese) or " " not in english.removeprefix("A "), english
        assert set(re.findall(r"`[^`]+`|\d[\d,.]*\d", english)) <= set(re.findall(r"`[^`]+`|\d[\d,.]*\d", chinese)), (
            english
        )
    monkeypatch.setenv("SOJOURN_LANG", "zh")
    monkeypatch.setenv("COLUMNS", "60")
    for verb in ("families", "recipes"):
        assert run([verb]) == 0
        printed = capsys.readouterr().out
        assert "按类别" in printed
        assert "…" not in printed
        assert not re.search(r"[a-z]+ [a-z]+ [a-z]+ [a-z]+", printed), "a sentence was left in English"


def test_a_title_of_somebody_elses_stays_as_it_is() -> None:
    assert named("Meine Katzen", "zh") == "Meine Katzen"
    assert named("BigGAN, by class", "en") == "BigGAN, by class"
    assert named("BigGAN, by class", "zh") == "BigGAN，按类别"
