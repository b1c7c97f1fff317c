"""Read a recipe from YAML and overrides; all problems are reported at once."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from icre.config.recipe import Recipe
from icre.errors import ConfigError


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides such as ``train.epochs=20`` (values are YAML).

    Raises ConfigError with all problems, not only the first.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    return _overridden(values, overrides, where=str(path) if path is not None else "the defaults")


def override(recipe: Recipe, overrides: Sequence[str], *, where: str) -> Recipe:
    """``recipe`` with overrides applied as in :func:`load_recipe`; ``where`` names their origin in errors."""
    return _overridden(recipe.to_dict(), overrides, where=where)


def located(recipe: Recipe, folder: Path) -> Recipe:
    """``recipe`` with absolute locations; relative ones are resolved against ``folder``.

    ``data.split.file`` stays relative to ``data.root``.
    """

    def absolute(location: str | None) -> str | None:
        # A scheme: s3://, https://, file:, databricks:, …
        if location is None or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", location):
            return location
        return str(folder / Path(location).expanduser())

    changes: dict[str, Any] = {
        "data": {"root": absolute(recipe.data.root)},
        "model": {"weights": absolute(recipe.model.weights)},
        "telemetry": {"mlflow": absolute(recipe.telemetry.mlflow)},
    }
    sections = {name: getattr(recipe, name).model_copy(update=update) for name, update in changes.items()}
    return recipe.model_copy(update={"storage": absolute(recipe.storage), **sections})


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Dotted keys that differ between two recipes, each with both values."""
    flat = [dict(_leaves(recipe.to_dict())) for recipe in (one, other)]
    keys = flat[0].keys() | flat[1].keys()
    return {key: (flat[0].get(key), flat[1].get(key)) for key in keys if flat[0].get(key) != flat[1].get(key)}


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _overridden(values: dict[str, Any], overrides: Sequence[str], *, where: str) -> Recipe:
    problems: list[str] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            problems.append(f"override {text!r}: the form is key.sub=value")
            continue
        problem = _assign(values, key.strip().split("."), value)
        problems += [problem] if problem else []
    return parse_recipe(values, where=where, problems=problems)


def parse_recipe(values: Mapping[str, Any], *, where: str, problems: Sequence[str] = ()) -> Recipe:
    """Validate plain values; ``where`` names their origin in the error."""
    found = list(problems)
    recipe = Recipe()
    try:
        remaining: Any = json.loads(json.dumps(values, default=str))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the recipe from {where}: {error}", hint="keys are words; no value holds itself") from error
    while True:
        try:
            recipe = Recipe.model_validate(remaining)
            break
        except ValidationError as error:
            found += [_explain(detail) for detail in error.errors()]
            # Rules between fields are only checked when every field is valid by itself. Remove the invalid fields and
            # validate again, to report all problems at once.
            locations = [detail["loc"] for detail in error.errors() if detail["loc"]]
            if not locations:
                break
            for location in locations:
                _prune(remaining, location)
    if found:
        lines = [f"  - {line}" for problem in found for line in problem.split("\n")]
        raise ConfigError(
            "\n".join([f"{len(lines)} problem(s) in the recipe from {where}:", *lines]),
            hint="`icre config schema` lists every key with its meaning, type and default",
        )
    return recipe


def problems_of_value(recipe: Recipe, key: str, value: Any) -> list[str]:
    """Problems of ``value`` for a dotted ``key`` of ``recipe``, regardless of the other keys; empty if valid."""
    values = recipe.to_dict()
    problem = _assign(values, key.split("."), json.dumps(value))
    if problem is not None:
        return [problem]
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        # A rule between keys has no location.
        return [_explain(detail) for detail in error.errors() if detail["loc"]]
    return []


def json_schema() -> str:
    """JSON Schema of the recipe, for editors and readers."""
    return json.dumps(Recipe.model_json_schema(), indent=2, ensure_ascii=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(str(path), [str(p) for p in path.parent.glob("*.yaml")], n=1)
        hint = f"did you mean {near[0]}?" if near else "recipes that ship with the project are in configs/"
        raise ConfigError(f"recipe {path}: no such file", hint=hint) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"recipe {path}: not readable as YAML: {error}", hint="check its syntax") from error
    if not isinstance(values or {}, dict):
        raise ConfigError(
            f"recipe {path}: the top level is a {type(values).__name__}, not a mapping",
            hint="write sections such as `train:` with indented keys under them",
        )
    return dict(values or {})


def _assign(values: dict[str, Any], path: list[str], text: str) -> str | None:
    """Set ``values[path]`` in place, copying nested sections; returns the problem as text, or None."""
    key = ".".join(path)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return f"{key}={text}: the value is not YAML; quote it"
    node = values
    for part in path[:-1]:
        child = node.get(part)
        if child is not None and not isinstance(child, dict):
            return f"{key}={text}: {part} is a value ({child!r}), not a section"
        node[part] = dict(child or {})
        node = node[part]
    node[path[-1]] = value
    return None


def _prune(values: Any, location: Sequence[str | int]) -> None:
    """Remove the value at ``location``; for an item of a list, the whole list.

    For a key with several types, ``location`` continues after the key with the name of the attempted type.
    """
    node = values
    for part, following in zip(location, [*location[1:], None], strict=True):
        if part not in node:
            return
        if not isinstance(node[part], dict) or following not in node[part]:
            del node[part]
            return
        node = node[part]


def _explain(detail: Any) -> str:
    """One pydantic error as "key=value: the rule"."""
    location = [part for part in detail["loc"] if part != "function-after"]
    key = ".".join(str(part) for part in location)
    if detail["type"] == "extra_forbidden":
        known = _fields_at([str(part) for part in location[:-1]])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        return f"{key}: unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    rule = str(detail["msg"]).removeprefix("Input ")
    return f"{key}={detail['input']!r}: {rule}"


def _fields_at(path: Sequence[str]) -> list[str]:
    node: type[BaseModel] = Recipe
    for part in path:
        # Below a mapping (tune.space), keys are user-defined and the next level is found by the name of its type.
        annotation = node.model_fields[part].annotation if part in node.model_fields else node
        node = next((c for c in _types_in(annotation) if isinstance(c, type) and issubclass(c, BaseModel)), node)
    return list(node.model_fields)


def _types_in(annotation: Any) -> Iterable[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from _types_in(inner)


def short(value: Any) -> str:
    """Short human-readable form of a value."""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value) if not isinstance(value, str) else value
