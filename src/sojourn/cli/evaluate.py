"""The verb that measures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sojourn import safefile
from sojourn.cli.draw import given_options, said
from sojourn.cli.say import console, follow, say, warn
from sojourn.errors import InvalidInput, PromptError

if TYPE_CHECKING:
    from sojourn.schema import Event


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="PACKAGE... | FOLDER FOLDER")
@click.option("--data", "name", help="The set to measure packages against.")
@click.option("--judge", help="A judge's package. Default: the one named judge, where there is one.")
@click.option(
    "--features", default="efflite0", help='"efflite0", "judge:NAME", or a TorchScript file (docs/measuring.md).'
)
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of your own prompts: prompt, tab, label the judge must find.",
)
@click.option("-n", "count", type=click.IntRange(16, 50_000), default=512, help="Pictures a group. Default: 512.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Steps of a walk. Default: the package's.")
@click.option("-o", "--option", "more", multiple=True, metavar="NAME=VALUE", help="An option of the family.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, help="Seed of prompts and pictures. Default: 0.")
@click.option(
    "--classifier",
    type=click.IntRange(64, 10_000_000),
    metavar="SEEN",
    help="Whether drawn pictures help a classifier that sees so many: real alone against real and drawn.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("evaluated"), help="Folder for the report.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def evaluate(
    targets: tuple[str, ...],
    name: str | None,
    judge: str,
    features: str,
    prompts: Path | None,
    count: int,
    steps: int | None,
    more: tuple[str, ...],
    seed: int,
    classifier: int | None,
    out: Path,
    as_json: bool,
) -> None:
    """Measure packages against a set: `sojourn evaluate emoji --data emoji`; or two folders of pictures.

    Writes report.html and report.json. Scores carry the name of the features they are of: those of different
    features are never to be compared.
    """
    from sojourn.measure.bench import Bench, Findings
    from sojourn.measure.compare import compare
    from sojourn.measure.evaluate import evaluate
    from sojourn.measure.features import load_features
    from sojourn.measure.judged import appoint
    from sojourn.measure.texts import evaluate_texts

    found: list[Any] = []
    options = given_options(more) | ({} if steps is None else {"steps": steps})

    def kept(events: Iterator[Event | Findings]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Findings):
                found.append(event)
            else:
                yield event

    folders = [Path(target) for target in targets]
    context = click.get_current_context()
    sources = {p.opts[-1]: context.get_parameter_source(p.name or "") for p in context.command.params}
    asked = {option for option, source in sources.items() if source is ParameterSource.COMMANDLINE} | options.keys()
    asked -= {"targets", "--data", "--option", "--out", "--json"}
    if name is None:
        if len(folders) != 2 or not all(path.is_dir() and not (path / "card.json").is_file() for path in folders):
            raise InvalidInput("name the set that packages are measured against (--data SET), or give two folders")
        if asked := asked - {"--features"}:
            raise InvalidInput(
                "two folders are compared as they are: leave out {names}", names=", ".join(sorted(asked))
            )
        safefile.writable(out)
        follow(kept(compare(folders, load_features(features))), as_json=False)
        title = f"{folders[0].name} / {folders[1].name}"
    else:
        from sojourn.data.dataset import PackedSet
        from sojourn.engine import load
        from sojourn.errors import DataError
        from sojourn.train.build import find_set

        data = PackedSet(find_set(name))
        if data.info.kind == "text":
            if asked := asked - {"-n", "--seed"}:
                raise InvalidInput(
                    '"{set}" is a set of texts, which are not drawn: leave out {names}',
                    set=name, names=", ".join(sorted(asked)),
                )  # fmt: skip
            models = [load(target) for target in targets]
            safefile.writable(out)
            follow(kept(evaluate_texts(models, data, count, seed)), as_json=False)
            _tell(found, out, f"{', '.join(targets)} / {name}", as_json)
            return
        bench = Bench(data, load_features(features), None, count, seed)
        left_out = appoint(bench, judge)
        if isinstance(left_out, DataError):
            warn("the default judge is left out: {why}", why=left_out.localised())
        if prompts is not None:
            bench.asked = listed(prompts)
            if bench.judge is None:
                raise InvalidInput("--prompts is for a judge to look at: name one that can (--judge NAME)")
        bench.options = options
        models = [load(target) for target in targets]
        safefile.writable(out)
        follow(kept(evaluate(models, bench, classifier)), as_json=False)
        title = f"{', '.join(targets)} / {name}"
    _tell(found, out, title, as_json)


def _tell(found: list[Any], out: Path, title: str, as_json: bool) -> None:
    """Write the report, and show it as a table or as JSON."""
    from sojourn.measure import report

    if not any(finding.metrics for finding in found):
        raise InvalidInput("no score could be computed; more pictures, other features or a judge may help")
    path = report.write(found, out, title)
    if as_json:
        print(json.dumps(report.as_json(found), ensure_ascii=False))
        return
    from rich.table import Table

    head, *rows = report.table(found)
    shown = Table(*head)
    for row in rows:
        shown.add_row(*row)
    console().print(shown)
    say("the report is {path}", path=path)


def listed(path: Path) -> list[tuple[str, str]]:
    """Prompts and labels of a file of lines "prompt<tab>label"; empty lines are skipped. Raises InvalidInput."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput('"{path}" is not UTF-8 (byte {at}); save it as UTF-8', path=path, at=error.start) from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        prompt, _, label = (part.strip() for part in line.partition("\t"))
        if prompt and label:
            try:
                said(prompt)
            except PromptError as error:
                raise InvalidInput("{path}, line {number}: {why}", path=path, number=number, why=error) from None
            found.append((prompt, label))
        elif line.strip():
            raise InvalidInput(
                '{path}, line {number}: "{line}" is no prompt, tab and label',
                path=path, number=number, line=safefile.printable(line, 200),
            )  # fmt: skip
    if not found:
        raise InvalidInput('"{path}" holds no prompt; write a prompt, a tab and a label a line', path=path)
    return found
