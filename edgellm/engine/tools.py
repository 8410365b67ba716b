"""Tools that a model may call: Python functions, or schemas as OpenAI has them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from edgellm import checks
from edgellm.engine.structure.json_schema import checked_schema
from edgellm.engine.structure.schemas import parameters_of
from edgellm.errors import UsageError, shown

NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
TOOL_CHOICES = ("auto", "none", "required")
ALLOWED = "allowed_tools"  # OpenAI's form for some of the tools
# The fields of a tool, and what they hold where nothing else looks at them. "return" comes from transformers, which
# makes tools of Python functions.
AROUND: dict[str, type | None] = {"type": None, "function": None}
FIELDS: dict[str, type | None] = {
    "name": None, "description": str, "parameters": None, "strict": bool, "return": None,
}  # fmt: skip
# Sections of a docstring, in the styles of Google and NumPy, and a parameter in those and in reStructuredText.
_SECTION = re.compile(r"\s*(args|arguments|parameters|returns?|raises|yields|examples?|notes?)\s*:?\s*", re.IGNORECASE)
_PARAMETER = re.compile(r"\s*(?::param\s+(?:[\w\[\], .]+\s+)?)?\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s+(\S.*)")


class Tools:
    """Some tools, checked.

    schemas:    as chat templates want them.
    functions:  those that are Python functions, by name.
    arguments:  the JSON schema of the arguments of each, by name.
    """

    def __init__(self, tools: Iterable[Any]) -> None:
        if not isinstance(tools, Iterable) or isinstance(tools, (str, bytes, Mapping)):
            raise checks.wrong("tools", tools, "a list of functions or of schemas")
        self.schemas: list[dict[str, Any]] = []
        self.functions: dict[str, Callable[..., Any]] = {}
        self.arguments: dict[str, dict[str, Any]] = {}
        for number, tool in enumerate(tools):
            schema = _checked(tool, f"tools.{number}") if isinstance(tool, Mapping) else tool_schema(tool)
            name = schema["function"]["name"]
            if name in self.arguments:
                raise UsageError(f"tools holds {name} twice; expected each name once", parameter="tools")
            self.schemas.append(schema)
            self.arguments[name] = schema["function"]["parameters"]
            if not isinstance(tool, Mapping):
                self.functions[name] = tool

    def chosen(self, tool_choice: Any) -> tuple[str, dict[str, dict[str, Any]]]:
        """How calls may come ("auto", "none", "required") and the arguments of those tools that may be called.

        tool_choice:  one of these words, the name of a tool, or one of OpenAI's forms:
                      {"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", "allowed_tools":
                      {"mode": "auto" or "required", "tools": [...]}}, also without the inner object. Raises UsageError.
        """
        if tool_choice is None:
            return "auto", self.arguments
        if isinstance(tool_choice, Mapping):
            if tool_choice.get("type") == ALLOWED:
                return self._allowed(tool_choice)
            tool_choice = self._named("tool_choice", tool_choice)
        elif isinstance(tool_choice, str) and tool_choice in TOOL_CHOICES and tool_choice not in self.arguments:
            return tool_choice, self.arguments
        if isinstance(tool_choice, str) and tool_choice in self.arguments:
            return "required", {tool_choice: self.arguments[tool_choice]}
        raise checks.wrong("tool_choice", tool_choice, f"{', '.join(TOOL_CHOICES)} or the name of a tool: "
                           f"{', '.join(self.arguments)}")  # fmt: skip

    def _allowed(self, choice: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
        """Of all that the model is told of, only some tools may be called."""
        place, found = _inner("tool_choice", choice, ALLOWED)
        checks.fields(place, found, {"mode": None, "tools": None, "type": None}, "tool_choice")
        mode, tools = found.get("mode"), found.get("tools")
        if mode not in ("auto", "required"):
            raise UsageError(f"{place}.mode is {shown(mode)}; expected auto or required", parameter="tool_choice")
        if not isinstance(tools, (list, tuple)) or not tools:
            raise UsageError(f"{place}.tools is {shown(tools)}; expected a list of tools", parameter="tool_choice")
        names = [self._named(f"{place}.tools.{number}", tool) for number, tool in enumerate(tools)]
        return mode, {name: self.arguments[name] for name in names}

    def _named(self, place: str, choice: Any) -> str:
        """The name of the tool that is chosen in OpenAI's form."""
        expected = f'{{"type": "function", "function": {{"name": ...}}}} with a tool: {", ".join(self.arguments)}'
        if isinstance(choice, Mapping) and choice.get("type", "function") == "function":
            where, function = _inner(place, choice, "function")
            checks.fields(where, function, {"name": None, "type": None}, "tool_choice")
            name = function.get("name")
            if isinstance(name, str) and name in self.arguments:
                return name
        raise UsageError(f"{place} is {shown(choice)}; expected {expected}", parameter="tool_choice")


def _inner(place: str, choice: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]]:
    """What a choice says, which OpenAI's chats put into an object of its own and its responses do not, and where."""
    if name not in choice:
        return place, choice
    checks.fields(place, choice, {"type": None, name: None}, "tool_choice")
    found = choice[name]
    if not isinstance(found, Mapping):
        raise UsageError(f"{place}.{name} is {shown(found)}; expected an object", parameter="tool_choice")
    return f"{place}.{name}", found


def tool_schema(function: Any) -> dict[str, Any]:
    """A Python function as a tool, by its signature and docstring. Raises UsageError for what cannot be one."""
    if not callable(function) or isinstance(function, type):
        raise UsageError(
            f"tools holds {shown(function)}; expected functions, or schemas (dicts) as OpenAI has them",
            parameter="tools",
        )
    name = getattr(function, "__name__", "")
    if not NAME.fullmatch(name):
        raise UsageError(f"tools holds the function {shown(name)}; expected one with a name", parameter="tools")
    text, parameters = _read_docstring(inspect.getdoc(function) or "")
    schema = parameters_of("tools", function, parameters)
    checked_schema("tools", schema)
    return {"type": "function", "function": {"name": name, "description": text, "parameters": schema}}


def filled(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A checked schema with what some templates insist on and JSON Schema does not: a type and a description of every
    parameter.
    """
    function = tool["function"]
    parameters = function["parameters"]
    properties = {
        name: {"type": _type_of(schema), "description": "", **schema} if isinstance(schema, Mapping) else schema
        for name, schema in parameters["properties"].items()
    }
    return {**tool, "function": {**function, "parameters": {"required": [], **parameters, "properties": properties}}}


def _type_of(schema: Mapping[str, Any]) -> str:
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return "string" if values and all(isinstance(value, str) for value in values) else "any"


def check_tool(tool: Mapping[str, Any]) -> None:
    """Raises UsageError for a schema that is none, or whose arguments could not be written as it wants them."""
    schema = _checked(tool, "tools.0")["function"]["parameters"]
    if find_spec("llguidance") is not None:
        from edgellm.engine.structure.asked import Asked, json_rule
        from edgellm.engine.structure.constraint import check_grammar

        check_grammar(Asked("tools", f"start: {json_rule('tools', schema)}\n"))


def _checked(tool: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A schema of OpenAI, with or without {"type": "function", "function": ...} around it. place: for messages."""
    function = tool.get("function", tool)
    expected = 'a schema such as {"type": "function", "function": {"name": ..., "parameters": {...}}}'
    if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        raise UsageError(f"tools holds {shown(tool)}; expected {expected}", parameter="tools")
    name = function.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(
            f"tools holds a tool with the name {shown(name)}; expected up to 64 letters, digits, _ . and -",
            parameter="tools",
        )
    if function is not tool:
        checks.fields(place, tool, AROUND, "tools")
        place = f"{place}.function"
    checks.fields(place, function, FIELDS if function is not tool else {**AROUND, **FIELDS}, "tools")
    parameters = function.get("parameters")
    parameters = {"type": "object", "properties": {}} if parameters is None else parameters
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise UsageError(
            f"tools holds {name}, whose parameters are {shown(parameters)}; expected a JSON schema of an object",
            parameter="tools",
        )
    schema = checked_schema("tools", {"type": "object", "properties": {}, **parameters}, f"{name} with parameters")
    given = {
        key: value for key, value in function.items() if value is not None and (function is not tool or key != "type")
    }
    return {"type": "function", "function": {"description": "", **given, "parameters": schema}}


def _read_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of a function, and of its parameters by name."""
    before: list[str] = []
    parameters: dict[str, str] = {}
    section, last = "", ""
    lines = doc.splitlines()
    for i, line in enumerate(lines):
        if heading := _SECTION.fullmatch(line):
            section, last = heading[1].lower(), ""
        elif set(line.strip()) == {"-"}:
            continue
        elif section.startswith("param") and re.fullmatch(r"\w+(\s*:.*)?", line) and _is_indented(lines, i + 1):
            last = re.split(r"\s*:", line)[0]  # NumPy's: the text is in the next line
            parameters[last] = ""
        elif (found := _PARAMETER.fullmatch(line)) and (section.startswith(("arg", "param")) or ":param" in line):
            last = found[1]
            parameters[last] = found[2].strip()
        elif section and last and line.startswith((" ", "\t")):
            parameters[last] = f"{parameters[last]} {line.strip()}".strip()
        elif not section and not line.lstrip().startswith(":"):
            before.append(line)
    return "\n".join(before).strip(), {name: text for name, text in parameters.items() if text}


def _is_indented(lines: list[str], i: int) -> bool:
    return i < len(lines) and lines[i].startswith((" ", "\t"))
