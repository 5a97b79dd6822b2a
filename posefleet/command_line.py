"""Parses command lines: options from documented dataclasses, short help, and errors of one line.

Every command describes its options as a dataclass: a field is an option, its default is the option's default, and the
string below it is its help. argparse parses, and pydantic checks the values as it checks those of config files.
pydantic is imported only when values are checked, so ``--help`` takes a few tenths of a second.

Names: ``--name VALUE`` or ``--name=VALUE``; the field ``decode_only`` is ``--decode-only``, and a field in a section
is ``--section.field``. True or false is ``--name true``, ``--name false``, or ``--name`` alone for true. A list takes
all values up to the next option.
"""

import argparse
import ast
import contextlib
import dataclasses
import functools
import io
import logging
import os
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from posefleet.light_import import parsed, source_file
from posefleet.memory import collect_garbage_rarely
from posefleet.option_names import nearest
from posefleet.platform.runtime.paths import resolve_path
from posefleet.platform.runtime.redaction import redact, redact_logs

T = TypeVar("T")
Given = dict[str, list[str]]
"""Options given on a command line: dotted name -> values, as text."""

HELP = frozenset({"-h", "--help", "--help-all"})

LIST_OPTIONS = "--list-options"
"""Option that makes a command list its options, one per line with its choices, for completion in a shell."""

COLUMN = 34
"""Column in which the help of an option starts."""


class Argument(str):
    """Name of a positional argument, as in ``path: Annotated[str, Argument("PATH")]``."""


class Place(str):
    """Placeholder of a path or URI that becomes absolute, as in ``out: Annotated[str, Place("FOLDER")]``."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a command."""

    path: str
    """Dotted name of the field, such as ``optim.lr``."""
    type: Any
    default: Any
    """Default value; ``dataclasses.MISSING`` if the option must be given."""
    help: str
    section: str = ""
    """Help of the innermost section around it (``data.resize``); empty if it is an option of the command itself."""
    group: str = ""
    """Help of the outermost section around it (``data``)."""

    @property
    def flag(self) -> str:
        """The option as written on a command line, with ``--``."""
        return "--" + (self.path if "." in self.path else self.path.replace("_", "-"))

    @property
    def required(self) -> bool:
        """Whether the option must be given."""
        return self.default is MISSING

    @property
    def positional(self) -> bool:
        """Whether the option is a positional argument."""
        return isinstance(_split(self.type)[1], Argument)

    @property
    def arity(self) -> int | Literal["*", "?"] | None:
        """Number of values of the option, in the notation of argparse's ``nargs``; None: one."""
        if self.one_or_several:
            return "*"
        kind = _split(self.type)[0]
        if typing.get_origin(kind) is tuple:
            parts = typing.get_args(kind)
            return "*" if parts[-1] is ... else len(parts)
        return "?" if kind is bool else None

    @property
    def one_or_several(self) -> bool:
        """Whether the option is one value, or a list of some: ``T | tuple[T, ...]``."""
        lists = [part for part in typing.get_args(_bare(self.type)) if typing.get_origin(part) is tuple]
        return bool(lists) and _split(self.type)[0] not in lists

    @property
    def choices(self) -> tuple[Any, ...]:
        """All values that the option allows, if it is a bool or a ``Literal``; otherwise empty."""
        kind = _split(self.type)[0]
        return (True, False) if kind is bool else typing.get_args(kind) if typing.get_origin(kind) is Literal else ()

    @property
    def metavar(self) -> str:
        """Placeholder for the option's value in help, such as ``N`` or ``{true,false}``."""
        kind, named = _split(self.type)
        if named:
            return f"{named} ..." if self.arity == "*" else named
        if typing.get_origin(kind) is tuple:
            first, *_ = parts = typing.get_args(kind)
            return f"{_TYPES.get(first, 'VALUE')} ..." if parts[-1] is ... else " ".join(_TYPES[p] for p in parts)
        if self.choices:
            return "{" + ",".join(map(shown_value, self.choices)) + "}"
        return _TYPES.get(kind, "VALUE")

    def convert(self, values: Sequence[str]) -> Any:
        """Convert the texts of a command line to the option's typed value.

        Raises:
            ValueError: The value has the wrong type; the message names the option.
        """
        import pydantic

        nothing = types.NoneType in typing.get_args(_bare(self.type))
        literal = {shown_value(choice): choice for choice in self.choices}
        plain = [None if nothing and v.lower() in ("none", "null") else literal.get(v, v) for v in values]
        try:
            if self.one_or_several:  # the items of a list may be more than texts, but not on a command line
                one = pydantic.TypeAdapter(_split(self.type)[0])
                found = [self.resolved(one.validate_python(value)) for value in plain]
                return found[0] if len(found) == 1 else found
            value = plain if isinstance(self.arity, int) or self.arity == "*" else plain[0]
            return self.resolved(pydantic.TypeAdapter(self.type).validate_python(value))
        except pydantic.ValidationError as error:
            given = " ".join(values)
            raise ValueError(f"{_spelling(self)} {given}: {error.errors()[0]['msg']}") from None

    def resolved(self, value: Any) -> Any:
        """``value``; made absolute by :func:`resolve_path` if the option is a :class:`Place`."""
        if not isinstance(_split(self.type)[1], Place):
            return value
        return tuple(map(resolve_path, value)) if isinstance(value, tuple) else resolve_path(value)


_TYPES = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def options(kind: type, prefix: str = "", section: str = "", group: str = "", values: Any = None) -> list[Option]:
    """The options of a dataclass and of its nested dataclasses, in the order of the fields.

    Args:
        kind: The dataclass.
        prefix: Put before every name, such as ``"model."``.
        section: Help of the section of the fields, for titles in help.
        group: Help of the outermost section around them; empty: ``section``.
        values: Object of ``kind`` whose values become the defaults; None: the defaults of the fields.
    """
    result, hints, docs = [], typing.get_type_hints(kind, include_extras=True), documentation(kind)
    for field in dataclasses.fields(kind):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if values is not None:
            default = getattr(values, field.name)
        path, text = prefix + field.name, docs.get(field.name, "")
        if inner := dataclass_in(hints[field.name]):
            text = text or (inner.__doc__ or "").partition("\n")[0]
            inside = None if default is MISSING else default
            result += options(inner, f"{path}.", text, group or section or text, inside)
        elif not field.name.startswith("_"):
            kinds = {"type": hints[field.name], "default": default, "help": text}
            result.append(Option(path=path, **kinds, section=section, group=group or section))
    return result


def dataclass_in(hint: Any) -> Any:
    """The dataclass in a type hint (``Section`` or ``Section | None``); None if the hint has none."""
    return next((c for c in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(c)), None)


def documentation(kind: type) -> dict[str, str]:
    """Field -> the docstring below it, for the fields of a dataclass and of its base classes."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _field_docstrings(_file_of(base)).get(base.__qualname__, {})
    return found


def summary(module: str) -> str:
    """The first paragraph of a module's docstring, on one line; does not import the module."""
    text = ast.get_docstring(parsed(source_file(module))) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def parse(
    kind: type[T],
    arguments: Sequence[str] | None,
    *,
    about: str,
    command: str = "",
    program: str = "posefleet",
    more: Sequence[Option] = (),
    shown: Sequence[str] = (),
    open_section: str = "",
    values: Callable[[Mapping[str, list[str]]], Mapping[str, Any]] | None = None,
    claims: bool = True,
) -> tuple[T, Given]:
    """Parse a command line; exits with 0 after ``--help``, ``--help-all`` or ``LIST_OPTIONS``, 2 on bad arguments.

    Args:
        kind: Dataclass of the command's own options.
        arguments: Command line without the program; None: that of this process.
        about: What the command does, for help.
        command: Verb and its arguments, such as ``train smpr``.
        program: Name of the program that has this verb.
        more: Further options, such as those of the experiment; their values are returned as text.
        shown: Dotted names of the options in ``more`` that ``--help`` shows, in this order; ``--help-all`` shows all.
        open_section: Section (``"model."``) in which any name is accepted, because its options are known only later.
        values: Takes the given options and returns the values shown as defaults in help, such as those of a config
            file.
        claims: Whether this process puts its temporary files into a folder of its own, see
            ``platform.runtime.leftovers``; false if it becomes another program.

    Returns:
        The command's own options, and the given ones of ``more``.
    """
    collect_garbage_rarely()  # torch is imported next
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    redact_logs(logging.lastResort)  # this handler shows warnings on stderr if logging is not set up
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    own = options(kind)
    taken = [option.path for option in own]
    more = [option for option in more if option.path not in taken]
    every = {option.path: option for option in (*own, *more)}
    if LIST_OPTIONS in tokens:
        named = [option for option in every.values() if not option.positional]
        sys.stdout.write("".join(f"{' '.join([o.flag, *map(shown_value, o.choices)])}\n" for o in named))
        raise SystemExit(0)
    whole = "--help-all" in tokens
    try:
        if not HELP.isdisjoint(tokens):
            rest = [token for token in tokens if token not in HELP]
            defaults = values(_parse_tokens(rest, every, open_section)) if values else {}
            order = [*taken, *(path for path in shown if path not in taken)]
            visible = list(every.values()) if whole else [every[path] for path in order if path in every]
            sys.stdout.write(_help(f"{program} {command}".strip(), about, visible, len(every) - len(visible), defaults))
            raise SystemExit(0)
        given = _parse_tokens(tokens, every, open_section)
        chosen: dict[str, Any] = {}
        for option in own:
            if option.path in given:
                chosen[option.path] = option.convert(given.pop(option.path))
            elif option.required:
                raise ValueError(f"{_spelling(option)} is missing: {_first_sentence(option.help)}")
            else:
                chosen[option.path] = option.resolved(option.default)
        built = _build(kind, chosen)
    except ValueError as error:
        fail(f"{error}")
    if claims:
        from posefleet.platform.runtime.leftovers import claim  # --help does not need it

        claim()
    return built, given


def convert(given: Mapping[str, Sequence[str]], known: Iterable[Option]) -> dict[str, Any]:
    """Typed values of the given options, by dotted name.

    Raises:
        ValueError: An option is not in ``known``, or its value has the wrong type.
    """
    by_path = {option.path: option for option in known}
    for path in given:
        if path not in by_path:
            raise ValueError(unknown(f"--{path}", by_path.values()))
    return {path: by_path[path].convert(texts) for path, texts in given.items()}


def one_of(chosen: Any, *names: str) -> None:
    """Check that exactly one of the options ``names`` was given; for ``__post_init__`` of a command's dataclass.

    Raises:
        ValueError: None of them was given, or more than one.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(chosen)}
    flags = {name: "--" + name.replace("_", "-") for name in names}
    given = [flag for name, flag in flags.items() if getattr(chosen, name) != defaults[name]]
    if len(given) != 1:
        raise ValueError(f"give one of {', '.join(flags.values())}" + (f", not {' and '.join(given)}" if given else ""))


def unknown(flag: str, known: Iterable[Option]) -> str:
    """Error message for an option that does not exist; suggests the nearest of ``known``."""
    flags = {option.path.replace("_", "-") if "." not in option.path else option.path: option for option in known}
    guess = nearest(flag, flags)
    return f"unknown option {flag}" + (f"; did you mean {flags[guess].flag}?" if guess else "; --help-all lists all")


def completions(listing: Callable[[], object], previous: str, current: str) -> list[str]:
    """Words that may follow ``previous`` on a command line: options, or the choices of an option.

    Args:
        listing: Runs the command with ``LIST_OPTIONS``.
        previous: Word before the cursor's.
        current: The part of the word at the cursor that is typed already.
    """
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        listing()
    lines = [line.split() for line in output.getvalue().splitlines()]
    choices = next((rest for flag, *rest in lines if flag == previous), [])
    return [word for word in choices or [flag for flag, *_ in lines] if word.startswith(current)]


def fail(message: object) -> NoReturn:
    """End the command because of bad input: writes ``error: message`` without a traceback, exit status 2."""
    report_error(message)
    raise SystemExit(2)


def report_error(message: object) -> None:
    """Write ``error: message`` to stderr, without secrets; an error of the system as the file and what is wrong."""
    if isinstance(message, OSError) and message.strerror and message.filename is not None:
        message = f"{os.fsdecode(message.filename)}: {message.strerror[:1].lower()}{message.strerror[1:]}"
    sys.stderr.write(f"error: {redact(str(message))}\n")


# ------------------------------------------------------------------------------------------------------- parsing


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def _parse_tokens(tokens: Sequence[str], every: Mapping[str, Option], open_section: str) -> Given:
    """Parse ``tokens`` with argparse into the values of each given option, as text."""
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    spelled = {_key(option.flag): option.flag for option in every.values()}
    for option in every.values():
        if option.positional:
            parser.add_argument(option.path, nargs="?")  # parse() reports a missing one, with its help
        else:
            _add(parser, option.flag, option.path, option.arity)
    tokens = [_respelled(token, spelled) for token in tokens]
    if open_section:
        for flag in {token.partition("=")[0] for token in tokens if token.startswith(f"--{open_section}")}:
            if flag not in spelled.values():
                _add(parser, flag, flag.removeprefix("--"), "*")
    found, extra = parser.parse_known_args(tokens)
    if flags := [token for token in extra if token.startswith("-") and not _is_number(token)]:
        raise ValueError(unknown(flags[0].partition("=")[0], every.values()))
    if extra:
        raise ValueError(f"{extra[0]!r} belongs to no option; --help shows them")
    return {path: value if isinstance(value, list) else [value] for path, value in vars(found).items()}


def _add(parser: argparse.ArgumentParser, flag: str, path: str, arity: int | str | None) -> None:
    if arity == "?":
        parser.add_argument(flag, dest=path, nargs="?", const="true")
    else:
        parser.add_argument(flag, dest=path, nargs=arity)


def _respelled(token: str, spelled: Mapping[str, str]) -> str:
    """The token with its option spelled as declared: ``--decode_only`` becomes ``--decode-only``."""
    flag, equals, value = token.partition("=")
    return f"{spelled.get(_key(flag), flag)}{equals}{value}" if token.startswith("--") else token


def _key(flag: str) -> str:
    return flag.replace("_", "-")


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def _build(kind: type[T], chosen: Mapping[str, Any]) -> T:
    """An object of the dataclass ``kind`` from values by dotted name; ``a.b`` is field ``b`` of section ``a``."""
    sections: dict[str, dict[str, Any]] = {}
    plain: dict[str, Any] = {}
    for path, value in chosen.items():
        section, dot, name = path.partition(".")
        (sections.setdefault(section, {}) if dot else plain)[name or path] = value
    hints = typing.get_type_hints(kind)
    return kind(**plain, **{section: hints[section](**values) for section, values in sections.items()})


# ------------------------------------------------------------------------------------------------------- help


def _help(command: str, about: str, visible: list[Option], hidden: int, values: Mapping[str, Any]) -> str:
    width = max(60, min(shutil.get_terminal_size((120, 24)).columns, 120))
    places = "".join(f" {option.metavar}" for option in visible if option.positional)
    lines = [f"usage: {command}{places} [--OPTION VALUE ...]", "", about.strip()]
    last = None
    for option in visible:
        sections = option.path.split(".")[:-1]
        # The short help has one group for model.*, the long one also has model.backbone.*, model.head.*, ...
        prefix, title = ".".join(sections[:1] if hidden else sections), option.group if hidden else option.section
        if prefix != last:
            shown = f"{_plain_text(title).rstrip('.')} (--{prefix}.*):" if prefix else "Settings of the experiment:"
            lines += [""] if last is None else ["", shown]
            last = prefix
        lines += _entry(option, values, width, whole=not hidden or option.section == "")
    more = f"--help-all shows {hidden} more options." if hidden else "These are all options."
    return "\n".join([*lines, "", f"  {more}"]) + "\n"


def _entry(option: Option, values: Mapping[str, Any], width: int, *, whole: bool) -> list[str]:
    """Lines of help on an option: with its whole help, or with the first sentence unless ``whole``."""
    head = f"  {_spelling(option)}" + ("" if option.positional else f" {option.metavar}")
    default = values.get(option.path, option.default)
    if option.required and default is MISSING:
        note = " (required)"
    elif default is None or default in ("", ()):
        note = ""
    else:
        note = f" (default: {shown_value(default)})"
    text = _plain_text(option.help)
    if not whole:
        text = re.split(r"(?<=[.])\s+(?=[A-Z])", text, maxsplit=1)[0]
    wrapped = textwrap.wrap(text + note, width - COLUMN, break_on_hyphens=False) or [""]
    if len(head) < COLUMN - 1:
        return [f"{head:{COLUMN}}{wrapped[0]}", *(f"{'':{COLUMN}}{line}" for line in wrapped[1:])]
    return [head, *(f"{'':{COLUMN}}{line}" for line in wrapped)]


def _first_sentence(text: str) -> str:
    return re.split(r"\.(?:\s|$)", _plain_text(text))[0]


def _plain_text(text: str) -> str:
    return " ".join(text.replace("``", "").split())


def _spelling(option: Option) -> str:
    return option.metavar if option.positional else option.flag


def shown_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list):
        return " ".join(map(shown_value, value)) or "none"
    return "none" if value is None else str(value)


# ------------------------------------------------------------------------------------------------------- types


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _split(hint: Any) -> tuple[Any, str]:
    """A type without ``Annotated`` and ``None``, and the placeholder for its value in help (empty if it has none)."""
    name = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, str)), "")
    kind = _bare(hint)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        parts = [part for part in typing.get_args(kind) if part is not types.NoneType]
        return (*_split(parts[0])[:1], name or _split(parts[0])[1])
    return kind, name


def _file_of(kind: type) -> Path:
    module = sys.modules.get(kind.__module__)
    return Path(module.__file__) if module and module.__file__ else source_file(kind.__module__)


@functools.cache
def _field_docstrings(file: Path) -> dict[str, dict[str, str]]:
    """Class -> field -> the docstring below the field, for all top-level classes of a file."""
    found: dict[str, dict[str, str]] = {}
    for node in parsed(file).body:
        if isinstance(node, ast.ClassDef):
            fields = found.setdefault(node.name, {})
            for one, following in zip(node.body, node.body[1:], strict=False):
                if isinstance(one, ast.AnnAssign) and isinstance(following, ast.Expr):
                    assert isinstance(following.value, ast.Constant)
                    fields[ast.unparse(one.target)] = str(following.value.value)
    return found
