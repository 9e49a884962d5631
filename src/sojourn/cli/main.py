"""The `sojourn` command: a table of verbs, loaded when used, and the one place where errors become exit codes.

Exit codes: 0 done, 1 failed, 2 bad input, 130 stopped. Nothing heavy is imported for `--help`.
"""

from __future__ import annotations

import importlib
import os
import re
import sys

import click

from sojourn.cli.say import Commands, error_line, say_error
from sojourn.errors import InvalidInput, Reason, SojournError, language

VERBS = {
    "imagine": ("draw:imagine", "Draw pictures from a prompt."),
    "sample": ("draw:sample", "Draw many pictures into a folder, by class or from a list of prompts."),
    "walk": ("film:walk", "A film of the way from one picture to the next."),
    "mix": ("film:mix", "A table of pictures that mix the styles of two."),
    "find": ("find:find", "Find pictures by words or by likeness."),
    "vary": ("draw:vary", "Draw variations of a picture."),
    "write": ("draw:write", "Continue a text with a language model."),
    "replay": ("draw:replay", "Draw the picture in a file again and compare the pixels."),
    "train": ("train:train", "Train a recipe; the same command again goes on where it stopped."),
    "prepare": ("data:prepare", "Make a training set from a folder, a zip or a table."),
    "starter": ("data:starter", "Build one of the starter sets."),
    "evaluate": ("evaluate:evaluate", "Measure packages against a set, or two folders of pictures."),
    "models": ("models:models", "List, show, verify, export and import packages."),
    "families": ("models:families", "The kinds of model there are."),
    "recipes": ("models:recipes", "The trainings that ship with Sojourn."),
    "serve": ("serve:serve", "Start the studio: an API, a gallery, jobs."),
    "keys": ("serve:keys", "Keys for the server."),
    "worker": ("serve:worker", "Do the jobs of a studio beside its own workers."),
}


class Verbs(Commands):
    """Imports a verb's file when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"sojourn.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


def _speak(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value:
        os.environ["SOJOURN_LANG"] = value


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sojourn", message="%(version)s")
@click.option(
    "--lang", type=click.Choice(["en", "zh"]), callback=_speak, is_eager=True, expose_value=False,
    help="Language of messages. Default: $SOJOURN_LANG, $LANG.",
)  # fmt: skip
def cli() -> None:
    """Sojourn: train image and text models on your own data, and draw from them."""


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run one command; the exit code."""
    try:
        code = cli.main(args, prog_name="sojourn", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SojournError as error:
        say_error(error)
        return 2 if isinstance(error, InvalidInput) else 1
    except (click.exceptions.Abort, KeyboardInterrupt):
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except click.ClickException as error:
        error_line(_usage(error))
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        error_line("out of memory; ask for fewer or smaller pictures")
        return 1


def _usage(error: click.ClickException) -> str:
    """What is wrong with the arguments: in click's own words, or in Chinese."""
    if language() == "en":
        return error.format_message()
    name = error.param.get_error_hint(error.ctx) if isinstance(error, click.BadParameter) and error.param else ""
    if isinstance(error, click.NoSuchOption):
        return Reason("there is no option {name}", name=error.option_name).localised()
    if isinstance(error, click.BadOptionUsage):
        return Reason("{name} wants a value", name=error.option_name).localised()
    if isinstance(error, click.MissingParameter) and name:
        return Reason("{name} is missing", name=name).localised()
    if isinstance(error, click.BadParameter) and name:
        return Reason("{name} is wrong: {why}", name=name, why=_why(error.message)).localised()
    return error.format_message()


def _why(message: str) -> str | Reason:
    """What click says is wrong with a value, as one of our messages where it is of the usual ones."""
    if found := re.fullmatch(r"(.+) is not in the range (.+)\.", message):
        return Reason("{found} is not in the range {range}", found=found[1], range=found[2])
    if found := re.fullmatch(r"(.+) is not a valid (integer|float)( range)?\.", message):
        kind = Reason("whole number") if found[2] == "integer" else Reason("number")
        return Reason("{found} is no {kind}", found=found[1], kind=kind)
    return message
