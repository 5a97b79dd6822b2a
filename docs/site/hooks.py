"""What the documentation site has beside the files of docs/: pages generated from the code, and equations as MathML.

MkDocs calls the functions ``on_*`` (mkdocs.yml). Settings and commands come from the declarations that ``--help``
prints, so a new setting or method is on the site without further work.
"""

import contextlib
import html
import io
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from posefleet.command_line import Option, options, shown_value, summary
from posefleet.jobs import cli
from posefleet.light_import import light_import
from posefleet.platform.config.cli import experiment_options

ROOT = Path(__file__).resolve().parents[2]

COPIED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "LICENSE": "licence.txt",
}
"""Files at the root of the repository -> where the site has them."""

SHOWN = {**COPIED, "README.md": "index.md"}
"""Files outside docs/ -> the pages to which links to them lead."""

PROGRAMS = {
    "python -m posefleet.data.synthetic": ("posefleet.data.synthetic.__main__", "Options"),
    "python -m posefleet.platform.tracking sync": ("posefleet.platform.tracking.runs", "SyncOptions"),
}
"""Programs that are no verb of ``posefleet`` -> module and class of their options."""

WORDS = {"N": "integer", "X": "number", "TEXT": "text", "PATH": "path"}
"""Placeholders of values in ``--help`` -> what they stand for; other placeholders say it themselves."""


class Interface(NamedTuple):
    """A page on the Python interface."""

    title: str
    about: str
    objects: tuple[str, ...]
    """Modules, classes and functions whose docstrings it shows, by the names under which griffe finds them."""


INTERFACE = {
    "functions": Interface(
        "posefleet's functions",
        "The page [posefleet in Python](../../python.md) says what they are for.",
        tuple(
            f"posefleet.api.{name}"
            for name in [
                "train",
                "evaluate",
                "predict",
                "predict_files",
                "load",
                "TrainedRun",
                "Model",
                "Settings",
                "RunError",
            ]
        ),
    ),
    "predictor": Interface(
        "Predictions",
        "What `posefleet.load` returns (`posefleet.platform.inference.predictor`), and what it predicts.",
        ("inference.predictor.Prediction", "inference.predictor.Predictor"),
    ),
    "models": Interface(
        "Models",
        "The interfaces that a [method](../../add-a-method.md) implements, and how methods are found.",
        ("posefleet.models",),
    ),
    "structures": Interface(
        "Data structures", "What flows between data, models and predictions.", ("posefleet.data.structures",)
    ),
    "schema": Interface(
        "Keypoint schemas", "[Schemas](../../schemas.md) as Python objects.", ("posefleet.data.schemas.schema",)
    ),
}


# --------------------------------------------------------------------------------------------------------- MkDocs


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the generated pages to the navigation, under Reference."""
    sections: dict[str, list[str]] = {}
    for path in generated():
        if path.startswith("reference/"):
            sections.setdefault(path.split("/")[1].capitalize(), []).append(path)
    reference = {"Reference": [{name: paths} for name, paths in sections.items()]}
    config.nav = [reference if "Reference" in entry else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside docs/ lead to their copies, or are plain text if the site has none."""
    path = page.file.src_uri
    return relinked(markdown, "" if path in COPIED.values() else posixpath.join("docs", posixpath.dirname(path)), path)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Equations become MathML, which browsers draw themselves, and the roles of docstrings become plain code."""
    content = re.sub(r":(?:func|class|meth|mod|attr):<code>~?(?:[\w.]+\.)?(\w+)</code>", r"<code>\1</code>", content)
    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', _mathml, content, flags=re.DOTALL)


def relinked(markdown: str, folder: str, page: str) -> str:
    """Markdown of a file of the repository with the links that it needs on the site.

    Args:
        markdown: Text of the file.
        folder: Folder of the file in the repository.
        page: Path of its page in the site.
    """

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        own = SHOWN.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
        return f"[{text}]({posixpath.relpath(own, posixpath.dirname(page) or '.')}{anchor})" if own else text

    return re.sub(r"(?<!`)\[([^\]]*)\]\(([^):#\s]+)(#[^)\s]*|)\)", link, markdown)


def _mathml(found: re.Match[str]) -> str:
    kind, latex = found.groups()
    drawn = convert(html.unescape(latex).strip(), display="block" if kind == "div" else "inline")
    return f'<div class="equation">{drawn}</div>' if kind == "div" else drawn


# ---------------------------------------------------------------------------------------------------------- pages


def generated() -> dict[str, str]:
    """Path of each generated page -> its Markdown, in the order of the navigation."""
    methods = light_import("posefleet.models", "available_methods")()
    pages = {"reference/settings/index.md": _shared_settings(methods)}
    pages |= {f"reference/settings/{method}.md": _settings(method) for method in methods}
    pages["reference/commands/index.md"] = _commands()
    pages |= {f"reference/commands/{verb}.md": _command(verb) for verb in cli.VERBS}
    pages["reference/commands/other.md"] = _programs()
    for name, (title, about, objects) in INTERFACE.items():
        shown = "\n\n".join(f"::: {path}" for path in objects)
        pages[f"reference/python/{name}.md"] = f"# {title}\n\n{about}\n\n{shown}\n"
    return pages | {path: (ROOT / file).read_text() for file, path in COPIED.items()}


def _shared_settings(methods: Iterable[str]) -> str:
    links = ", ".join(f"[{name}]({name}.md)" for name in methods)
    return (
        "# Settings\n\n"
        "Every setting is a line of a YAML file (`jobs/configs/`), an option of `posefleet train`, and a name in "
        "`posefleet.train`. All methods share the settings on this page. The settings `model.*` are on the page of "
        f"their method: {links}.\n\n{_by_section(experiment_options())}"
    )


def _settings(method: str) -> str:
    every = experiment_options(method)
    own = [option for option in every if option.path.startswith("model.")]
    rest = [option for option in every if not option.path.startswith("model.")]
    return (
        f"# {method}\n\n{summary(f'posefleet.models.{method}')}\n\n"
        "The settings of the method come first, then those that [all methods share](index.md). "
        f"`posefleet train {method} --help-all` prints the same.\n\n"
        f"{_by_section(own)}{_by_section(rest, searched=False)}"
    )


def _commands() -> str:
    rows = "".join(f"| [`{verb}`]({verb}.md) | {about} |\n" for verb, (_, about) in cli.VERBS.items())
    return (
        "# Commands\n\nThe [guide](../../guide.md) explains the commands. These pages list their options.\n\n"
        f"| command | what it does |\n|---|---|\n{rows}\nTwo [other programs](other.md) are modules.\n"
    )


def _command(verb: str) -> str:
    """The page of a command: its own options, and the settings of an experiment that its ``--help`` shows."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        cli.main([verb, "--help"])
    about = re.split(r"^  \S", printed.getvalue(), maxsplit=1, flags=re.MULTILINE)[0].partition("\n\n")[2]
    module, kind = f"posefleet.{cli.VERBS[verb][0]}", "Options"
    more = ""
    if verb == "train":
        module, kind = "posefleet.platform.config.cli", "TrainOptions"
        more = "Every setting of the method is an option, too: [settings](../settings/index.md).\n"
    own = options(light_import(module, kind))
    flags = set(re.findall(r"^  (--[\w.-]+)", printed.getvalue(), re.MULTILINE)) - {option.flag for option in own}
    if settings := [option for option in experiment_options() if option.flag in flags]:
        more = (
            "## Settings of the experiment\n\n"
            "People often change these. The [other settings](../settings/index.md) are options, too.\n\n"
            f"{table(settings)}\n"
        )
    return f"# {verb}\n\n{_about(about)}\n\n{_by_section(own, 'Options')}{more}"


def _programs() -> str:
    text = "# Other programs\n"
    for program, (module, kind) in PROGRAMS.items():
        name = program.removeprefix("python -m ")
        text += f"\n## {name}\n\n```text\n{program}\n```\n\n{table(options(light_import(module, kind)))}\n"
    return text


# ---------------------------------------------------------------------------------------------------------- parts


def table(found: Iterable[Option]) -> str:
    """Options as a table in HTML: name, values with the default, and the docstring of the field."""
    rows = "".join(
        f'<tr id="{option.path}"><td>{_name(option)}</td><td>{_values(option)}</td>{_text(option.help, "td")}</tr>\n'
        for option in found
    )
    head = "<thead><tr><th>option</th><th>values</th><th>meaning</th></tr></thead>"
    return f'<table class="options">{head}<tbody>\n{rows}</tbody></table>'


def _by_section(found: Iterable[Option], untitled: str = "experiment", *, searched: bool = True) -> str:
    """A heading and a table for each section of settings, an outer section before the sections in it."""
    sections: dict[str, list[Option]] = {}
    for option in found:
        sections.setdefault(option.path.rpartition(".")[0], []).append(option)
    roots = [name.partition(".")[0] for name in sections]
    order = sorted(sections, key=lambda name: (roots.index(name.partition(".")[0]), name not in roots))
    hidden = "" if searched else " { data-search-exclude }"
    return "".join(
        f"## {name or untitled}{hidden}\n\n{_text(sections[name][0].section, 'p')}\n\n{table(sections[name])}\n\n"
        for name in order
    )


def _name(option: Option) -> str:
    """The option as it is written; a browser may break it after a dot."""
    return f"<code>{option.metavar if option.positional else option.flag.replace('.', '.<wbr>')}</code>"


def _values(option: Option) -> str:
    kind = " ".join(f"<code>{shown_value(choice)}</code>" for choice in option.choices) or html.escape(
        " ".join(WORDS.get(word, word) for word in option.metavar.split())
    )
    if option.required:
        return f"{kind}<br>required"
    if option.default in (None, "", ()):
        return kind
    return f"{kind}<br>default <code>{html.escape(shown_value(option.default))}</code>"


def _about(text: str) -> str:
    """The text at the top of a command's help: commands as code, and sentences as paragraphs."""
    parts: list[tuple[bool, list[str]]] = []
    goes_on = False
    for line in text.strip().splitlines():
        command = goes_on or line.startswith(("posefleet ", "python ", "ray "))
        goes_on = command and line.endswith("\\")
        if not line or not parts or parts[-1][0] != command:
            parts.append((command, []))
        parts[-1][1].append(line)
    return "\n\n".join(
        "```text\n{}\n```".format("\n".join(lines)) if command else _text(" ".join(lines), "p")
        for command, lines in parts
        if any(lines)
    )


def _text(text: str, tag: str) -> str:
    """A docstring as an HTML element."""
    shown = re.sub("``(.+?)``", r"<code>\1</code>", html.escape(text, quote=False), flags=re.DOTALL)
    return f"<{tag}>{shown}</{tag}>"
