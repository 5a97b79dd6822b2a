"""Reads YAML that users write, with bounds on its nesting and on what its aliases expand to."""

from typing import Any

import yaml

MAX_DEPTH = 64
"""Levels of nesting; the deepest setting has six. PyYAML builds each level with several calls of its own, so a file of
100,000 brackets would end in a RecursionError, and only after minutes."""

MAX_VALUES = 1_000_000
"""Values after aliases are expanded; nine lines of aliases to aliases can stand for a billion of them."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: str | bytes, where: str) -> Any:
    """The plain values of a YAML document.

    Args:
        text: The document; bytes are UTF-8 or UTF-16.
        where: Name of the file in errors.

    Raises:
        ValueError: The text is not YAML of plain values, or is nested or repeated beyond the bounds.
    """
    try:
        _check_bounds(text, where)
        return yaml.load(text, _LOADER)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from None
    except ValueError as error:
        raise error if str(error).startswith(where) else ValueError(f"{where} is not valid YAML: {error}") from None


def _check_bounds(text: str | bytes, where: str) -> None:
    """Read the events of a document, which builds no values, up to the first that is out of bounds."""
    sizes: dict[str, int] = {}  # number of values below each anchor
    counts, anchors = [0], [""]
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise ValueError(f"{where}: the alias *{event.anchor} is part of the value that it stands for")
            counts[-1] += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            counts[-1] += 1
            sizes[event.anchor or ""] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            anchors.append(event.anchor or "")
        elif isinstance(event, yaml.CollectionEndEvent):
            size = counts.pop()
            sizes[anchors.pop()] = size
            counts[-1] += size
        if len(counts) > MAX_DEPTH + 1:
            line = event.start_mark.line + 1 if event.start_mark else "?"
            raise ValueError(f"{where}: line {line} is nested more than {MAX_DEPTH} levels deep; no setting is")
        if counts[-1] > MAX_VALUES:
            raise ValueError(f"{where}: its aliases stand for more than {MAX_VALUES:,} values; write fewer of them")
