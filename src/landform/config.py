"""Options: one frozen, typed definition serves the Python call, the CLI flag and the YAML file."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from landform.errors import ConfigError

__all__ = ["Config", "as_flags", "describe", "nearest", "read_yaml", "remedy_of"]


_UNREAD: ContextVar[set[str] | None] = ContextVar("unread", default=None)
"""Where options are read back that were once taken: those that nothing reads."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling to `name`, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


class Config(BaseModel):
    """Base of all option sets: immutable, typed, unknown keys refused.

    Fields carry their documentation as the string that follows them; the command line prints it
    as help. Build one from untrusted mappings (keyword arguments, YAML) with `parse`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        # Where the source breaks a line, the help page should not.
        for field in cls.model_fields.values():
            if field.description is not None:
                field.description = " ".join(field.description.split())

    @classmethod
    def parse(cls, options: Mapping[str, Any], *, where: str = "options") -> Self:
        """Validate `options`; a `ConfigError` names the option, the fault and the nearest name."""
        unknown = [name for name in options if name not in cls.model_fields]
        if unknown:
            name = str(unknown[0])
            guess = nearest(name, cls.model_fields)
            raise ConfigError(
                f"{where}: unknown option {name!r}",
                remedy=(f"did you mean {guess!r}? " if guess else "")
                + f"Known options: {', '.join(sorted(cls.model_fields))}",
            )
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            raise ConfigError(f"{where}: {describe(error)}", remedy=remedy_of(error, cls)) from None

    @classmethod
    def parse_kept(cls, options: Mapping[str, Any], *, where: str = "options") -> Self:
        """`parse` for options that are kept with a result: those that nothing reads, which
        `check_read` refuses where somebody asks for them now, are left out."""
        unread: set[str] = set()
        token = _UNREAD.set(unread)
        try:
            parsed = cls.parse(options, where=where)
        finally:
            _UNREAD.reset(token)
        if not unread:
            return parsed
        return cls.parse({n: v for n, v in options.items() if n not in unread}, where=where)

    def options_given(self, names: Iterable[str] | None = None) -> list[str]:
        """Those of `names` (default: of all options) that are not at their default, in the order of
        the fields."""
        among = None if names is None else set(names)
        return [
            name
            for name, field in type(self).model_fields.items()
            if (among is None or name in among)
            and getattr(self, name) != field.get_default(call_default_factory=True)
        ]

    def options_of(self, kind: type[Config]) -> dict[str, Any]:
        """The options of `kind` among these."""
        return {name: getattr(self, name) for name in kind.model_fields}

    def options_written(self, kind: type[Config] | None = None) -> dict[str, Any]:
        """The options (of `kind`, or all) that somebody wrote down, whatever their value: where an
        option such as `compat` stands for others, those are its own to choose that were not."""
        fields = (kind or type(self)).model_fields
        return {name: getattr(self, name) for name in fields if name in self.model_fields_set}

    def check_read(self, condition: object, names: Iterable[str], without: str) -> None:
        """Raise for an option of `names` that is given where nothing reads it.

        `without` ends the sentence "NAME has no effect ...": "without retrain", say. For validators
        of options, whose `ValueError` becomes a `ConfigError`.
        """
        unread = [] if condition else self.options_given(names)
        passed = _UNREAD.get()
        if passed is not None:
            passed.update(unread)
        elif unread:
            raise ValueError(f"{unread[0]} has no effect {without}")

    def replace(self, **changes: Any) -> Self:
        """A validated copy with `changes` applied."""
        return type(self).parse({**self.model_dump(), **changes}, where=type(self).__name__)


def describe(error: ValidationError) -> str:
    """One line per fault of a pydantic error: option, what is wrong, what was given."""
    return "; ".join(map(_fault, error.errors()))


def remedy_of(error: ValidationError, kind: type[Config] | None = None) -> str | None:
    """What the documentation of the first faulty option says; None where no option set is known
    that the error is of (`kind`, else the one that is called as the error says)."""
    kind = kind or next((k for k in _kinds(Config) if k.__name__ == error.title), None)
    if kind is None:
        return None
    first = str(next(iter(error.errors()[0]["loc"]), ""))
    about = kind.model_fields[first].description if first in kind.model_fields else None
    return f"{first}: {about}" if about else "give options that agree"


def _kinds(kind: type[Config]) -> Iterator[type[Config]]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


_MAPPING = r"\{'\w+': [^{}]*\}"
_OPTION = re.compile(
    rf"(?<![\w.\[-])(?:(?P<name>[a-z]\w*)=(?P<value>\([^()]*\)|{_MAPPING}|'[^']*'|[\w.]*)|{_MAPPING})"
)


def as_flags(text: str, flags: Mapping[str, str]) -> str:
    """`text` with options that are spelled as in Python spelled as on a command line.

    `flags` are the command's own, by the name of the option: {"label_names": "--label-names"};
    what none of them means stays. `metrics=('accuracy', 'f1')` becomes `--metrics accuracy f1`,
    `one_prefix=True` becomes `--one-prefix`, and a mapping of splits `--files.train FILE`.
    """

    def spelled(found: re.Match[str]) -> str:
        flag = flags.get(found["name"] or "files")
        if flag is None:
            return found[0]
        value = found["value"] if found["name"] else found[0]
        if value.startswith("{"):
            pairs = re.findall(r"'(\w+)': ([^,{}]+)", value)
            return " ".join(f"{flag}.{key} {item.strip()}" for key, item in pairs)
        if value in ("True", "False"):
            return flag if value == "True" else flag.replace("--", "--no-", 1)
        if value == "None":
            return found[0]
        # A quoted value is one word of the shell, whatever is in it (a space, ';').
        words = re.sub(
            r"'([^']*)'|[()',]", lambda word: shlex.quote(word[1]) if word[1] else "", value
        )
        return f"{flag} {words}" if words else flag

    return _OPTION.sub(spelled, text)


def _fault(fault: Any) -> str:
    words = str(fault["msg"]).removeprefix("Value error, ")
    if not fault["loc"]:  # options that do not agree: the words name them
        return words
    return f"option {'.'.join(map(str, fault['loc']))}: {words} (given {fault['input']!r})"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; a `ConfigError` names the file, line and fault."""
    import yaml

    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        _check_keys(node, path)
        value = _constructed(node)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file", remedy="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {error}", remedy="a YAML file in UTF-8 was expected"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path}: not YAML: {' '.join(str(error).split())}",
            remedy="repair the file at that line",
        ) from None
    except RecursionError:
        raise ConfigError(
            f"{path}: too deeply nested, or it contains itself", remedy="write plain options"
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path}: expected a mapping of options, found {type(value).__name__}",
            remedy="write one 'option: value' a line",
        )
    return value


def _constructed(node: Any) -> Any:
    import yaml

    try:
        return yaml.SafeLoader("").construct_document(node) if node is not None else None
    except (ValueError, OverflowError, LookupError) as error:  # the 32nd of a month, `!!int x`
        raise yaml.YAMLError(f"a value that cannot be read: {error}") from None


def _check_keys(node: Any, path: Path) -> None:
    """Raise for a key that is written twice: YAML would silently take the last one."""
    import yaml

    seen: set[str] = set()
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        if isinstance(child, tuple):
            key, child = child
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConfigError(
                    f"{path}, line {key.start_mark.line + 1}: {key.value!r} is written twice",
                    remedy="keep one of the two",
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        _check_keys(child, path)
