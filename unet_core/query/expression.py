"""What objects to look for, written as people say it, to an Arrow expression; nothing is ever evaluated.

    volume > 1000 and touches_border == false
    not (z1 - z0 < 5 or 2 * axis_minor < axis_major) and class in ("nucleus", 3)

    condition  = both { "or" both }            both    = negated { "and" negated }
    negated    = "not" negated | compared      compared = sum { ("<" | "<=" | ">" | ">=" | "==" | "!=") sum }
                                                        | sum [ "not" ] "in" "(" sum { "," sum } ")"
    sum        = product { ("+" | "-") product }
    product    = signed { ("*" | "/") signed } signed  = "-" signed | value
    value      = number | "true" | "false" | 'class name' | column | "(" condition ")"

Arithmetic is that of floating-point numbers: columns of unsigned integers may be subtracted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from unet_core.errors import InputError

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_]\w*)
    |(?P<text>"[^"]*"|'[^']*')|(?P<sign><=|>=|==|!=|[<>()+*/,-])|(?P<end>$)|(?P<strange>.))""",
    re.VERBOSE | re.DOTALL,
)
_COMPARE: dict[str, Callable[[pc.Expression, pc.Expression], pc.Expression]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
_INSTEAD = {"=": "==", "&": "and", "|": "or", "!": "not", "~": "not"}
_WORDS = ("and", "or", "not", "in", "true", "false")
_DEEPEST = 50
_LONGEST = 10_000

Kind = Literal["number", "condition", "class name"]


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


@dataclass(frozen=True)
class _Part:
    """A part of the expression that has been read; `text` of a class name."""

    kind: Kind
    value: Any
    at: int
    of_class: bool = False


def parse(text: str, schema: pa.Schema, classes: Sequence[str] = ()) -> pc.Expression:
    """The condition that `text` states about the columns of `schema`.

    Parameters
    ----------
    classes
        Names that stand for 0, 1, ... where they are compared with the column `class`.

    Raises
    ------
    InputError
        It cannot be read, with the place; a column that is not there, with the nearest that is; a number
        where a condition is needed, and the other way round.
    """
    return _Parser(text, schema, {name: i for i, name in enumerate(classes)}).parsed()


def unknown_column(name: str, columns: Sequence[str], *, where: str, found: str | None = None) -> InputError:
    """The refusal of a column that is not there."""
    near = get_close_matches(name.lower(), columns, n=1, cutoff=0.5)
    return InputError(
        f"no such column: {name}",
        where=where,
        expected=f"one of {', '.join(columns)}",
        found=found or name,
        fix=f"did you mean {near[0]}?" if near else None,
    )


class _Parser:
    def __init__(self, text: str, schema: pa.Schema, classes: Mapping[str, int]) -> None:
        if len(text) > _LONGEST:
            raise InputError(
                "this expression is too long",
                where="--where",
                expected=f"at most {_LONGEST:,} characters",
                found=f"{len(text):,}",
            )
        self._text = text
        self._schema = schema
        self._classes = classes
        self._depth = 0
        self._next = self._token(0)

    def parsed(self) -> pc.Expression:
        part = self._condition()
        if self._next.kind != "end":
            raise self._refusal(self._next.at, "and, or, or the end")
        return self._want(part, "condition").value

    def _token(self, start: int) -> _Token:
        match = _TOKEN.match(self._text, start)
        kind = "end" if match is None or match.lastgroup is None else match.lastgroup
        return _Token(kind, match[kind] if match else "", match.start(kind) if match else start)

    def _take(self) -> _Token:
        token = self._next
        self._next = self._token(token.at + len(token.text))
        return token

    def _if(self, *texts: str) -> _Token | None:
        """The next token, if it is one of these signs or words."""
        if self._next.kind in ("sign", "word") and self._next.text.lower() in texts:
            return self._take()
        return None

    def _deeper(self, read: Callable[[], _Part]) -> _Part:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._refusal(self._next.at, f"at most {_DEEPEST} parts inside one another")
        part = read()
        self._depth -= 1
        return part

    def _condition(self) -> _Part:
        return self._chain(lambda: self._chain(self._negated, "and"), "or")

    def _chain(self, read: Callable[[], _Part], word: str) -> _Part:
        part = read()
        while self._if(word):
            left, right = self._want(part, "condition"), self._want(read(), "condition")
            value = left.value & right.value if word == "and" else left.value | right.value
            part = _Part("condition", value, left.at)
        return part

    def _negated(self) -> _Part:
        if token := self._if("not"):
            return _Part("condition", ~self._want(self._deeper(self._negated), "condition").value, token.at)
        return self._compared()

    def _compared(self) -> _Part:
        left = self._sum()
        compared: pc.Expression | None = None
        while sign := self._if(*_COMPARE):
            right = self._sum()
            a, b = self._alike(left, right, sign)
            one = _COMPARE[sign.text](a, b)
            compared = one if compared is None else compared & one
            left = right
        if compared is not None:
            return _Part("condition", compared, left.at)
        negated = self._if("not")
        if token := self._if("in"):
            value = self._any_of(left, token)
            return _Part("condition", ~value if negated else value, left.at)
        if negated:
            raise self._refusal(self._next.at, "in")
        return left

    def _any_of(self, left: _Part, token: _Token) -> pc.Expression:
        self._expect("(")
        value: pc.Expression | None = None
        while value is None or self._if(","):
            a, b = self._alike(left, self._sum(), token)
            value = a == b if value is None else value | (a == b)
        self._expect(")")
        return value

    def _sum(self) -> _Part:
        return self._arithmetic(self._product, {"+": pc.add, "-": pc.subtract})

    def _product(self) -> _Part:
        return self._arithmetic(self._signed, {"*": pc.multiply, "/": pc.divide})

    def _arithmetic(self, read: Callable[[], _Part], signs: Mapping[str, Callable[..., Any]]) -> _Part:
        part = read()
        while sign := self._if(*signs):
            left, right = self._want(part, "number"), self._want(read(), "number")
            value = signs[sign.text](_floating(left.value), _floating(right.value))
            part = _Part("number", value, left.at)
        return part

    def _signed(self) -> _Part:
        if token := self._if("-"):
            inner = self._want(self._deeper(self._signed), "number")
            return _Part("number", pc.negate(_floating(inner.value)), token.at)
        return self._value()

    def _value(self) -> _Part:
        token = self._next
        if self._if("("):
            part = self._deeper(self._condition)
            self._expect(")")
            return part
        if token.kind == "number":
            self._take()
            return _Part("number", _number(token.text), token.at)
        if token.kind == "text":
            self._take()
            return _Part("class name", token.text[1:-1], token.at)
        if token.kind == "word" and token.text.lower() not in _WORDS:
            self._take()
            return self._column(token)
        if token.kind == "word" and token.text.lower() in ("true", "false"):
            self._take()
            return _Part("condition", pc.scalar(token.text.lower() == "true"), token.at)
        raise self._refusal(token.at, "a column, a number, true, false or (")

    def _column(self, token: _Token) -> _Part:
        if token.text not in self._schema.names:
            raise unknown_column(
                token.text,
                self._schema.names,
                where=f"--where, character {token.at + 1}",
                found=self._pointing(token.at),
            )
        kind: Kind = "condition" if pa.types.is_boolean(self._schema.field(token.text).type) else "number"
        return _Part(kind, pc.field(token.text), token.at, of_class=token.text == "class")

    def _alike(self, left: _Part, right: _Part, sign: _Token) -> tuple[pc.Expression, pc.Expression]:
        """Both sides of a comparison, as numbers or as truth values."""
        for one, other in ((left, right), (right, left)):
            if one.kind == "class name":
                if not other.of_class:
                    raise self._refusal(one.at, "a number; names are compared with the column class only")
                if one.value not in self._classes:
                    raise self._refusal(one.at, f"a class: {', '.join(self._classes)}")
        if left.kind != right.kind and "class name" not in (left.kind, right.kind):
            raise self._refusal(right.at, f"a {left.kind}, as on the other side of {sign.text}")
        if left.kind == "condition" and sign.text not in ("==", "!="):
            raise self._refusal(sign.at, "== or != between conditions")
        return self._comparable(left), self._comparable(right)

    def _comparable(self, part: _Part) -> pc.Expression:
        return pc.scalar(self._classes[part.value]) if part.kind == "class name" else part.value

    def _want(self, part: _Part, kind: Kind) -> _Part:
        if part.kind != kind:
            article = "a condition, such as volume > 1000" if kind == "condition" else "a number"
            raise self._refusal(part.at, article)
        return part

    def _expect(self, sign: str) -> None:
        if not self._if(sign):
            raise self._refusal(self._next.at, sign)

    def _refusal(self, at: int, expected: str) -> InputError:
        sign = self._text[at : at + 1]
        return InputError(
            "this expression cannot be read",
            where=f"--where, character {at + 1}",
            expected=expected,
            found=self._pointing(at),
            fix=f"write {_INSTEAD[sign]} instead of {sign}" if sign in _INSTEAD else None,
        )

    def _pointing(self, at: int) -> str:
        """The text with an arrow below one of its characters."""
        flat = re.sub(r"\s", " ", self._text)
        return f"{flat}\n{' ' * at}^"


def _number(text: str) -> pc.Expression:
    """Whole numbers stay whole: ids are compared exactly."""
    if text.isdecimal() and len(text) < 20 and int(text) < 2**63:
        return pc.scalar(pa.scalar(int(text), pa.int64()))
    return pc.scalar(float(text))


def _floating(value: pc.Expression) -> pc.Expression:
    return value.cast(pa.float64())
