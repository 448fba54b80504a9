"""Python functions as tools: their schemas, what is refused of them, their arguments and results."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import json
import math
import pathlib
import re
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import jsonschema
import pytest
from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticUndefined
from typing_extensions import TypedDict

from polargrid_local import Tool, ValidationError
from polargrid_local.api.docstrings import parameter_texts, summary
from polargrid_local.api.functions import result_text

if TYPE_CHECKING:
    from nowhere import Nowhere


class Place(BaseModel):
    name: str
    country: str = "CA"


class Size(TypedDict):
    width: int


@dataclasses.dataclass
class Range:
    low: float
    high: float = 1.0


class Unit(enum.Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


def get_weather(city: str, unit: Literal["C", "F"] = "C", days: Optional[int] = None) -> str:  # noqa: UP045  # as many still write it
    """The weather of a city,
    for some days.

    It is made up.

    Args:
        city: Its name.
        unit (str): C or
            F (as you like: both are known).
        days: How many.

    Returns:
        city: not a parameter
    """
    return f"{city} {unit} {days}"


def everything(
    place: Place,
    sizes: list[Size],
    limits: Range,
    unit: Unit,
    near: Annotated[int, Field(ge=1, le=9, description="In km.")],
    note: Annotated[str, "Free text."] = "",
    day: datetime.date | None = None,
    named: dict[str, int] = Field(default_factory=dict, max_length=2),  # noqa: B008  # pydantic's way
    from_: str = Field("x", alias="from"),
    schema: tuple[int, str] = (1, "a"),
    _hidden: set[int] = frozenset(),
    id: uuid.UUID | None = None,
) -> dict[str, Any]:
    return locals()


def schema_of(function: Any) -> dict[str, Any]:
    return Tool.of(function).definition["function"]["parameters"]


# --- schemas ----------------------------------------------------------------------------------------------------------


def test_a_function_is_a_tool():
    assert Tool.of(get_weather).definition == {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city, for some days.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Its name."},
                    "unit": {
                        "type": "string",
                        "enum": ["C", "F"],
                        "default": "C",
                        "description": "C or F (as you like: both are known).",
                    },
                    "days": {
                        "anyOf": [{"type": "integer"}, {"type": "null"}],
                        "default": None,
                        "description": "How many.",
                    },
                },
                "required": ["city"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }


def test_every_kind_of_type_hint():
    schema = schema_of(everything)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["required"] == ["place", "sizes", "limits", "unit", "near"]
    properties = schema["properties"]
    assert properties["near"] == {"type": "integer", "minimum": 1, "maximum": 9, "description": "In km."}
    assert properties["note"] == {"type": "string", "default": "", "description": "Free text."}
    assert properties["from"] == {"type": "string", "default": "x"} and "from_" not in properties
    assert properties["named"]["maxProperties"] == 2
    for name in ("Place", "Size", "Range"):
        assert schema["$defs"][name]["additionalProperties"] is False
    assert schema["$defs"]["Unit"]["enum"] == ["C", "F"]


def test_arguments_become_what_the_hints_say():
    given = {
        "place": {"name": "Paris"},
        "sizes": [{"width": 1}],
        "limits": {"low": 1},
        "unit": "F",
        "near": 3,
        "day": "2026-01-31",
        "named": {"a": 1},
        "from": "here",
        "schema": [2, "b"],
        "_hidden": [1],
        "id": "12345678-1234-5678-1234-567812345678",
    }
    jsonschema.validate(given, schema_of(everything))
    assert everything(**Tool.of(everything).read(json.dumps(given))) == {
        "place": Place(name="Paris"),
        "sizes": [{"width": 1}],
        "limits": Range(1.0),
        "unit": Unit.FAHRENHEIT,
        "near": 3,
        "note": "",
        "day": datetime.date(2026, 1, 31),
        "named": {"a": 1},
        "from_": "here",
        "schema": (2, "b"),
        "_hidden": {1},
        "id": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    }


def test_what_pydantic_checks_itself_is_not_asked_of_the_grammar():
    def open_all(paths: set[pathlib.Path], key: bytes, pattern: re.Pattern[str]) -> None: ...

    assert schema_of(open_all)["properties"] == {
        "paths": {"type": "array", "items": {"type": "string"}},
        "key": {"type": "string"},
        "pattern": {"type": "string"},
    }
    assert Tool.of(open_all).read('{"paths": ["a", "a"], "key": "b", "pattern": "c+"}') == {
        "paths": {pathlib.Path("a")},
        "key": b"b",
        "pattern": re.compile("c+"),
    }


def test_what_a_hint_asks_for_is_done_once():
    def doubled(
        x: Annotated[int, AfterValidator(lambda x: 2 * x), "A number."],
        y: Annotated[list[int], Field(min_length=1)] = Field([1], max_length=2),  # noqa: B008  # pydantic's way
    ) -> None: ...

    tool = Tool.of(doubled)
    assert tool.parameters["properties"]["x"] == {"type": "integer", "description": "A number."}
    assert tool.parameters["properties"]["y"]["minItems"] == 1 and tool.parameters["properties"]["y"]["maxItems"] == 2
    assert tool.read('{"x": 3}') == {"x": 6, "y": [1]}
    for y in ([], [1, 2, 3]):
        with pytest.raises(ValidationError, match="doubled: y: "):
            tool.read(json.dumps({"x": 3, "y": y}))


def test_defaults_are_fresh_and_never_pydantic_objects():
    def collect(
        items: list[str] = [],  # noqa: B006  # which is what is tested
        more: dict[str, int] = Field(default_factory=dict),  # noqa: B008  # likewise
        one: int = Field(1),
    ) -> Any:
        return items, more, one

    tool = Tool.of(collect)
    first = tool.function(**tool.read("{}"))
    assert first == ([], {}, 1)
    first[0].append("x")
    assert tool.function(**tool.read("{}")) == ([], {}, 1)


def test_a_default_that_is_no_json_is_not_shown():
    def search(text: str, index: Any = PydanticUndefined.__class__) -> str:
        return str(index)

    tool = Tool.of(search)
    assert "default" not in tool.parameters["properties"]["index"]
    assert tool.function(**tool.read('{"text": "a"}')) == str(type(PydanticUndefined))


def test_no_parameters_are_an_empty_object():
    def now() -> str:
        return "noon"

    assert schema_of(now) == {"type": "object", "properties": {}, "additionalProperties": False}
    assert Tool.of(now).read("{}") == {}
    assert "description" not in Tool.of(now).definition["function"]


class Counter:
    """Counts."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, by: int) -> int:
        """Adds.

        :param by: How much.
        """
        self.n += by
        return self.n

    def __call__(self, by: int = 1) -> int:
        return self.add(by)

    @staticmethod
    def zero() -> int:
        return 0

    @classmethod
    def made(cls, at: int) -> str:
        return f"{cls.__name__} {at}"


def test_methods_partials_and_callable_objects():
    counter = Counter()
    tool = Tool.of(counter.add)
    assert (tool.name, tool.description) == ("add", "Adds.")
    assert tool.parameters["properties"] == {"by": {"type": "integer", "description": "How much."}}
    assert tool.function(**tool.read('{"by": 5}')) == 5
    assert Tool.of(Counter.zero).parameters["properties"] == {}
    assert Tool.of(Counter.made).function(**Tool.of(Counter.made).read('{"at": 2}')) == "Counter 2"

    with pytest.raises(ValidationError, match="tools: .*__name__.*Counter"):
        Tool.of(counter)
    counter.__name__ = "count"
    tool = Tool.of(counter)
    assert (tool.name, tool.description, tool.function(**tool.read("{}"))) == ("count", "Counts.", 6)

    hidden = functools.partial(get_weather, unit="F")
    tool = Tool.of(hidden)
    assert tool.name == "get_weather" and set(tool.parameters["properties"]) == {"city", "days"}
    assert tool.parameters["properties"]["city"]["description"] == "Its name."
    assert tool.function(**tool.read('{"city": "Rome"}')) == "Rome F None"
    tool = Tool.of(functools.partial(functools.partial(get_weather, "Rome"), days=2))
    assert set(tool.parameters["properties"]) == {"unit"} and tool.function(**tool.read("{}")) == "Rome C 2"


def test_decorated_functions_keep_their_signature():
    def twice(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return [function(*args, **kwargs)] * 2

        return wrapper

    for tool in (Tool.of(twice(get_weather)), Tool.of(functools.lru_cache(get_weather))):
        assert tool.parameters == Tool.of(get_weather).parameters
        assert tool.description == "The weather of a city, for some days."
    assert Tool.of(twice(get_weather)).function(city="Rome") == ["Rome C None"] * 2


def test_a_tool_by_hand():
    parameters = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    tool = Tool("double", "Doubles.", parameters, lambda x: x * 2)
    assert tool.definition["function"] == {
        "name": "double",
        "description": "Doubles.",
        "parameters": parameters,
        "strict": True,
    }
    assert tool.function(**tool.read('{"x": 1.5}')) == 3.0
    with pytest.raises(ValidationError, match="double: arguments: .*object"):
        tool.read("[1]")
    renamed = dataclasses.replace(Tool.of(get_weather), name="weather", description="Else.")
    assert renamed.definition["function"]["name"] == "weather"
    assert renamed.read('{"city": "a"}') == {"city": "a", "unit": "C", "days": None}


def test_the_return_type_need_not_exist():
    def find(text: str) -> Nowhere:
        raise AssertionError

    assert set(schema_of(find)["properties"]) == {"text"}


# --- what is refused --------------------------------------------------------------------------------------------------


def many(*cities: str) -> None: ...
def options(city: str, **more: str) -> None: ...
def positional(city: str, /, unit: str) -> None: ...
def untyped(city: str, unit="C") -> None: ...
def unknown(city: Nowhere) -> None: ...
def a_function(then: type(lambda: 0)) -> None: ...
def an_object(counter: Counter) -> None: ...
def wrong_pattern(city: str = Field("", pattern="(")) -> None: ...
async def pieces(city: str) -> Any:
    yield city


@pytest.mark.parametrize("function, name", [
    (many, "'many': parameter 'cities' stands for any number"),
    (options, "'options': parameter 'more' stands for any number"),
    (positional, "'positional': parameter 'city' is positional-only"),
    (untyped, "'untyped': parameter 'unit' has no type hint"),
    (unknown, "'unknown': parameter 'city' .*Nowhere"),
    (a_function, "'a_function': parameter 'then' has a type hint without a JSON schema"),
    (an_object, "'an_object': parameter 'counter' has a type hint without a JSON schema"),
    (wrong_pattern, "'wrong_pattern': parameter 'city' has a type hint without"),
    (Counter.add, "'add': parameter 'self' has no type hint"),
    (pieces, "'pieces' is an async generator"),
    (lambda: 0, "<lambda>"),
    (len, "'len': parameter 'obj' is positional-only"),
    (math.hypot, "'hypot'"),
    (Counter, "got type"),
    ("get_weather", "got str"),
    ({"type": "function"}, "got dict"),
    (None, "got NoneType"),
])  # fmt: skip
def test_what_no_model_could_fill_is_refused_by_name(function, name):
    with pytest.raises(ValidationError, match=f"^tools: .*{name}") as caught:
        Tool.of(function)
    assert caught.value.param == "tools"


@pytest.mark.parametrize("name", ["", "a b", "größe", "x" * 65, "a.b", None, 5])
def test_names_are_those_that_the_api_takes(name):
    with pytest.raises(ValidationError, match="1 to 64 letters, digits, _ or -"):
        Tool(name, "", {"type": "object"}, print)


def test_a_tool_by_hand_needs_a_function():
    with pytest.raises(ValidationError, match="'f' has no function to call, got NoneType"):
        Tool("f", "", {"type": "object"}, None)


@pytest.mark.parametrize("arguments, problem", [
    ("{}", "get_weather: city: Field required"),
    ('{"city": "a", "unit": "K"}', "get_weather: unit: .*'C' or 'F'"),
    ('{"city": "a", "town": "b"}', "get_weather: town: Extra inputs are not permitted"),
    ('{"city": ["a"], "days": "x"}', "get_weather: city: .*; days: "),
    ('{"city": "a"', "get_weather: arguments: Invalid JSON"),
    ("", "get_weather: arguments: Invalid JSON"),
    ("null", "get_weather: arguments: "),
])  # fmt: skip
def test_wrong_arguments_are_named(arguments, problem):
    with pytest.raises(ValidationError, match=f"^{problem}"):
        Tool.of(get_weather).read(arguments)


def test_many_problems_are_told_in_short():
    arguments = json.dumps({"city": "a", **{f"x{i}": i for i in range(1000)}})
    with pytest.raises(ValidationError) as caught:
        Tool.of(get_weather).read(arguments)
    assert len(str(caught.value)) < 500


# --- docstrings -------------------------------------------------------------------------------------------------------

GOOGLE = """Summary.

Args:
    city (str, optional): Name (e.g. Paris): the town,
        or a village.

        A second paragraph.
    unit: C.
    then (Callable[[int], str]): Call.

Raises:
    KeyError: never
"""
NUMPY = """Summary.

Parameters
----------
city : str, optional
    Name (e.g. Paris): the town,
    or a village.

    A second paragraph.
unit : {"C", "F"}
    C.
then : Callable[[int], str]
    Call.

Returns
-------
str
    city : never
"""
SPHINX = """Summary.

:param str city: Name (e.g. Paris): the town,
    or a village.

    A second paragraph.
:type city: str
:param unit: C.
:keyword Callable[[int], str] then: Call.
:raises KeyError: never
:returns: nothing
"""


@pytest.mark.parametrize("doc", [GOOGLE, NUMPY, SPHINX], ids=["google", "numpy", "sphinx"])
def test_three_styles_say_the_same(doc):
    assert summary(doc) == "Summary."
    assert parameter_texts(doc) == {
        "city": "Name (e.g. Paris): the town, or a village. A second paragraph.",
        "unit": "C.",
        "then": "Call.",
    }


def test_numpy_names_share_a_text():
    assert parameter_texts("Parameters\n----------\na, b : int\n    Both.\nc\n    Third.") == {
        "a": "Both.",
        "b": "Both.",
        "c": "Third.",
    }


@pytest.mark.parametrize("doc, text", [
    ("", ""),
    ("One\n  two.\n\nThree.", "One two."),
    ("Args:\n    x: y", ""),
    (":param x: y", ""),
    ("Parameters\n----------\nx : int", ""),
    ("Text.\n:param x: y", "Text."),
    ("Text.\nArgs:\n    x: y", "Text."),
    ("Returns the sum.", "Returns the sum."),
    ("Note: it is slow.", "Note: it is slow."),
])  # fmt: skip
def test_the_first_paragraph_is_the_summary(doc, text):
    assert summary(doc) == text


# --- results ----------------------------------------------------------------------------------------------------------


class Colour(str, enum.Enum):
    RED = "red"


@pytest.mark.parametrize("value, text", [
    ("as is\n", "as is\n"),
    ("", ""),
    (Colour.RED, "red"),
    (None, "null"),
    (True, "true"),
    (1.5, "1.5"),
    (Place(name="Zürich"), '{"name":"Zürich","country":"CA"}'),
    ([Place(name="a")], '[{"name":"a","country":"CA"}]'),
    (Range(1), '{"low":1,"high":1.0}'),
    ({"at": datetime.date(2026, 1, 31), 1: {2}}, '{"at":"2026-01-31","1":[2]}'),
    (Unit.CELSIUS, '"C"'),
    ((n * n for n in range(3)), "[0,1,4]"),
    (ValueError("x"), '"x"'),
    (b"text", '"text"'),
    (b"\xff", "b'\\xff'"),
    ("half \ud83d", "half \\ud83d"),
])  # fmt: skip
def test_results_are_text(value, text):
    assert result_text(value, 1000) == text


def test_a_result_that_holds_itself_is_text():
    loop: list[Any] = []
    loop.append(loop)
    assert result_text(loop, 1000) == "[[...]]"


def test_a_cut_result_says_so():
    assert result_text("x" * 10, 10) == "x" * 10
    assert result_text("x" * 11, 10) == "x" * 10 + "\n[cut: these are the first 10 of 11 characters]"
