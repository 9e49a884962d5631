"""Every message has a Chinese form with the same fields, and an error survives a process boundary."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from sojourn import errors
from sojourn.config import load_recipe
from sojourn.schema import Log

SRC = Path(errors.__file__).parent
RAISED = {name for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, Exception)}


def templates() -> dict[str, str]:
    """Message templates in the source, by file and line: the first argument of an error or of `say`, the second of
    an answer over HTTP, which has a status first; units and notes of progress that are literals."""
    out = {}
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                notes = {"Progress": [word.value for word in node.keywords if word.arg in {"unit", "text"}]}
                notes |= {"Pace": node.args[1:], "busy": node.args[1:]}
                for note in notes.get(node.func.id, []):
                    if isinstance(note, ast.Constant):
                        out[str(note.value)] = f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Call) and node.args:
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                answer = name in {"Refusal", "Denied"}
                if name in RAISED | {"say", "warn", "Refused"} or (answer and len(node.args) > 1):
                    first = node.args[1 if answer else 0]
                    if answer and not isinstance(first, ast.Constant) and "template" in ast.unparse(first):
                        continue  # an error of another layer becomes an answer
                    if name == "Reason" and ast.unparse(first) == "self.reason":
                        continue  # of a Refused, which are taken one by one
                    place = f"{path.name}:{node.lineno}"
                    assert isinstance(first, ast.Constant), f"{place}: the template must be a literal"
                    out[str(first.value)] = place
    return out


def test_every_message_is_in_chinese_with_the_same_fields() -> None:
    catalogue = json.loads((SRC / "locale" / "zh.json").read_text(encoding="utf-8"))
    found = templates() | {"files": "Pace", "samples": "Progress"}
    assert len(found) > 200
    missing = {text: place for text, place in found.items() if text not in catalogue}
    assert not missing, json.dumps(missing, indent=1)
    unused = set(catalogue) - set(found)
    assert not unused, unused
    for english, chinese in catalogue.items():
        assert set(re.findall(r"{(\w+)", english)) == set(re.findall(r"{(\w+)", chinese)), english


def test_a_message_is_shown_in_the_users_language(monkeypatch: pytest.MonkeyPatch) -> None:
    error = errors.InvalidInput("strength {found} is outside 0..1", found=3)
    assert str(error) == "strength 3 is outside 0..1"
    assert error.localised("zh") == "strength 是 3，超出 0..1"
    for name in ("SOJOURN_LANG", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert "超出" in error.localised()
    monkeypatch.setenv("SOJOURN_LANG", "en")
    assert "outside" in error.localised()


def test_a_line_of_a_training_is_said_in_the_users_language() -> None:
    line = Log.warn(
        "{name} left out: {error}", name="a", error=errors.InvalidInput("strength {found} is outside 0..1", found=3)
    )
    assert (line.level, line.text) == ("warning", "a left out: strength 3 is outside 0..1")
    assert line.localised("en") == line.text
    assert line.localised("zh") == "a 略去：strength 是 3，超出 0..1"
    sent = Log.model_validate_json(line.model_dump_json())
    assert sent.localised("zh") == line.text, "what another process said stays as it was"


@pytest.mark.parametrize(
    ("setting", "english", "chinese"),
    [
        ("seen=abc", "must be a whole number", "须为整数"),
        ("seen=0", "must be 1 or more", "不得小于 1"),
        ("lr=x", "must be a number", "须为数"),
        ("lr=0", "must be more than 0", "须大于 0"),
        ("decay=2", "must be 1 or less", "不得大于 1"),
        ("cache=perhaps", "must be true or false", "须为 true 或 false"),
        ("optimizer=sgd", "must be 'adamw', 'muon'", "须为以下之一：'adamw', 'muon'"),
    ],
)
def test_why_a_setting_is_wrong_is_said_in_both_languages(setting: str, english: str, chinese: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        load_recipe("vae", [setting])
    assert str(caught.value).endswith(english)
    assert caught.value.localised("zh").endswith(chinese)
    kind, template, fields = caught.value.__reduce__()[1]  # type: ignore[misc]
    assert errors._rebuild(kind, template, fields).localised("zh").endswith(chinese)


def test_an_error_is_rebuilt_from_its_parts() -> None:
    error = errors.PromptError("column {column}: x", column=7)
    rebuild, args = error.__reduce__()
    again = rebuild(*args)  # type: ignore[operator]
    assert type(again) is errors.PromptError
    assert again.column == 7
    assert str(again) == str(error)
