"""Every command in the documentation has options that exist, values that they accept, and files that are there.

The commands of docs/own-data.md and docs/data.md run in tests of their own, those of docs/add-a-method.md in
``test_docs.py``.
"""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posefleet import command_line
from posefleet.jobs import cli
from posefleet.models import available_methods
from posefleet.platform.config import cli as settings
from posefleet.platform.config.cli import experiment_options, parse_experiment

ROOT = Path(__file__).resolve().parents[2]
RUN_ELSEWHERE = {"own-data.md", "data.md", "add-a-method.md"}
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path.name not in RUN_ELSEWHERE and "CHANGELOG" not in path.name
)
JOBS = {module: verb for verb, (module, _) in cli.VERBS.items()}
OURS = re.compile(r"(jobs|docs|tests|serve|data|models|platform)/[\w./-]+\.\w+|cluster\.yaml")
"""A word that names a file of the repository."""


class Parsed(Exception):
    """The command line was read, and the command would begin."""


def commands(text: str) -> list[list[str]]:
    """The commands of posefleet, Python and make in the code blocks of a page, as words.

    What stands behind the program's name in ``ray job submit ... -- python jobs/train.py ...`` counts, and what
    precedes it, such as ``NAME=VALUE``, does not. The word ``...`` stays.
    """
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```$|(?<=\n\n)((?:^    [^\n]*\n)+)", f"{text}\n", re.MULTILINE | re.DOTALL)
    lines = re.sub(r"\\\n\s*", " ", "\n".join(fenced or indented for fenced, indented in blocks)).splitlines()
    return [words for line in lines for words in _in_line(line)]


def _in_line(line: str) -> Iterator[list[str]]:
    if not re.search(r"\b(posefleet|python|make)\b ", line):
        return
    try:
        words = shlex.split(re.split(r"\s{3,}", line.strip())[0], comments=True)  # an explanation may follow
    except ValueError:  # no shell
        return
    while "--" in words:
        words = words[words.index("--") + 1 :]
    while words:
        one, words = (words[: words.index("&&")], words[words.index("&&") + 1 :]) if "&&" in words else (words, [])
        while one and re.fullmatch(r"[A-Z_]+=.*|env|nice|\.", one[0]):
            one = one[1:]
        program = one[0].rpartition("/")[2] if one else ""
        if program in ("posefleet", "python", "make", "pytest"):
            yield [program, *one[1:]]


def check(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Read a command line with the parsers of the command, which then does not begin.

    Raises:
        SystemExit: The command does not take it; the message is on stderr.
        ValueError: A target or a file does not exist.
    """
    program, *rest = words
    for word in rest:
        if OURS.fullmatch(word) and not (ROOT / word).exists():
            raise ValueError(f"{word} is not in the repository")
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        if lost := set(rest) - targets:
            raise ValueError(f"the Makefile has no target {lost}")
    elif program == "posefleet":
        _check_verb(rest, patch)
    elif program == "python" and rest[0] == "-m" and rest[1].startswith("posefleet."):
        _check_main(f"{rest[1]}.__main__", rest[2:], patch)
    elif program == "python" and (job := re.fullmatch(r"jobs/(\w+)\.py", rest[0])):
        method = job[1].removeprefix("train_")
        _check_verb(["train", method, *rest[1:]] if method != job[1] else [JOBS[f"jobs.{job[1]}"], *rest[1:]], patch)


def _check_verb(words: list[str], patch: pytest.MonkeyPatch) -> None:
    if not words or words[0] not in cli.VERBS:
        cli.main(words)
    elif words[0] == "train" and words[1:]:
        if "..." in words and "--config" not in words:  # the page shows the options that it speaks of
            words = [*words, "--data.train", "shards"]
        parse_experiment(words[1], [word for word in words[2:] if word != "..."])
    else:
        _check_main(f"posefleet.{cli.VERBS[words[0]][0]}", [word for word in words[1:] if word != "..."], patch)


def _check_main(module: str, arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    def parse(*given: Any, **options: Any) -> Any:
        own, more = command_line.parse(*given, **options | {"claims": False})
        _check_settings(more, getattr(own, "method", ""))
        raise Parsed

    main = importlib.import_module(module)
    for namespace in (main, settings):
        patch.setattr(namespace, "parse", parse, raising=False)
    with pytest.raises(Parsed):
        main.main(arguments)


def _check_settings(given: command_line.Given, method: str) -> None:
    """Check the settings of an experiment; those of a model must be those of some method."""
    errors = []
    for name in [method] if method else available_methods():
        try:
            command_line.convert(given, experiment_options(name))
            return
        except ValueError as error:
            errors.append(str(error))
    command_line.fail(errors[0])


def documented() -> list[Any]:
    """Every command with the page that has it; each only once. Jobs show commands in their docstrings, as help does."""
    found: dict[str, Any] = {}
    for page in PAGES:
        for words in commands(page.read_text()):
            found.setdefault(shlex.join(words), pytest.param(words, id=f"{page.name}: {shlex.join(words)}"[:150]))
    for job in sorted((ROOT / "jobs").glob("*.py")):
        text = (ast.get_docstring(ast.parse(job.read_text())) or "").replace("\n", "\n    ")
        for words in commands(f"\n\n    {text}"):
            found.setdefault(shlex.join(words), pytest.param(words, id=f"{job.name}: {shlex.join(words)}"[:150]))
    return list(found.values())


DOCUMENTED = documented()


@pytest.mark.parametrize("words", DOCUMENTED)
def test_a_documented_command_is_accepted(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    try:
        check(words, monkeypatch)
    except SystemExit as end:
        assert end.code in (0, None), capsys.readouterr().err


@pytest.mark.parametrize(
    "page", [*PAGES, *(ROOT / "docs" / name for name in sorted(RUN_ELSEWHERE))], ids=lambda page: page.name
)
def test_scripts_and_configs_that_a_page_names_are_there(page: Path) -> None:
    named = set(re.findall(r"`[^`]*?\b((?:tests|jobs)/[\w/]+\.(?:py|yaml))\b[^`]*`", page.read_text()))
    placeholders = re.compile(r"METHOD|mymethod|toy")
    assert [name for name in sorted(named) if not placeholders.search(name) and not (ROOT / name).exists()] == []


def test_the_documentation_shows_every_verb() -> None:
    shown = {words[1] for param in DOCUMENTED for words in param.values if words[0] == "posefleet" and words[1:]}
    assert shown >= set(cli.VERBS) and len(DOCUMENTED) > 80


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("posefleet evaluat --checkpoint a", "'evaluat' is no command"),
        ("posefleet evaluate --checkpoint a --evaluate.flap true", "unknown option --evaluate.flap"),
        ("posefleet evaluate --checkpoint a --evaluate.flip sideways", "--evaluate.flip sideways"),
        ("posefleet evaluate --checkpoint a --model.no.such 1", "unknown option --model.no.such"),
        ("posefleet tune --method smpr --space a.yaml --scheduler best", "--scheduler best"),
        ("posefleet train smpr --data.train a --model.neck sparse", "--model.neck sparse"),
        ("posefleet train smpr --config jobs/configs/none.yaml", "jobs/configs/none.yaml is not in the repository"),
        ("posefleet train smpr --config /none.yaml", "/none.yaml"),
        ("ray job submit --working-dir . -- python jobs/train_smpr.py --data.train", "data.train is an empty list"),
        ("ray job submit --working-dir . -- python jobs/none.py", "jobs/none.py is not in the repository"),
        ("python -m posefleet.data.synthetic --out a --split b --size big", "--size big"),
        ("make install && make tea", "no target {'tea'}"),
    ],
)
def test_a_wrong_command_is_found(
    line: str, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((SystemExit, ValueError)) as found:
        for words in commands(f"Text.\n\n    {line}\n"):
            check(words, monkeypatch)
    assert complaint in f"{found.value} {capsys.readouterr().err}"


def test_continued_lines_comments_and_several_commands_are_read() -> None:
    text = """Text:

    posefleet serve \\
        --port 1    # here
    posefleet demo      with an explanation

"""
    assert commands(text) == [["posefleet", "serve", "--port", "1"], ["posefleet", "demo"]]
    fenced = "```bash\nA=1 make test && .venv/bin/python a.py\nray job submit -- python b.py ...\n```\n"
    assert commands(fenced) == [["make", "test"], ["python", "a.py"], ["python", "b.py", "..."]]
    assert commands("* an item\n    posefleet serve is text here\n") == []
