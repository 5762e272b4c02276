"""A stack machine for the opcodes of pickles that hold plain data.

Source: the opcodes are those of CPython's ``pickletools``, protocols 0 to 5.
"""

import codecs
import struct
from collections.abc import Callable
from typing import Any

from .calls import CALLS, known_name
from .finish import Finisher
from .values import (
    MARK,
    ArrayShell,
    Budget,
    Damaged,
    Name,
    NumericType,
    Refused,
    byte_order,
    checked_key,
    make_array,
)

__all__ = ["Machine"]

_MAX_INT_BYTES = 32
_MAX_LINE = 1 << 16  # of the text opcodes' numbers and names; long text has opcodes of its own


class Machine:
    """Interpreter of the opcodes that plain data consists of.

    Args:
        data: the whole file.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.budget = Budget(len(data))

    def run(self) -> Any:
        """Run the opcodes up to STOP and return the data.

        Raises:
            Refused: the pickle asks for other objects than plain data.
            Damaged: the pickle is malformed.
        """
        while True:
            start = self.position
            opcode = self.take(1)
            if opcode == b".":
                break
            handler = _HANDLERS.get(opcode)
            try:
                if handler is None:
                    raise Damaged(f"{opcode!r} is not an opcode")
                handler(self)
            except Damaged as error:
                raise Damaged(f"at byte {start}: {error}") from error
            except (ValueError, TypeError, OverflowError, IndexError) as error:
                # The handlers call int(), decode() and the like on bytes of the file; whatever
                # these raise means that the bytes are malformed.
                raise Damaged(f"at byte {start}: {error}") from error
        return Finisher().finish(self.pop())

    # ------------------------------------------------------------------------------ input

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes and advance."""
        if count < 0 or count > len(self.data) - self.position:
            raise Damaged(f"{count} bytes are announced, {len(self.data) - self.position} left")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, layout: str) -> Any:
        """Read a number packed as ``struct`` describes."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> bytes:
        """Read the bytes up to the next newline, which is skipped."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise Damaged("a line without an end")
        found = self.take(end - self.position)
        self.position += 1
        return found

    def short_line(self) -> str:
        """Read a line that holds a number or a name."""
        found = self.line()
        if len(found) > _MAX_LINE:
            raise Damaged(f"a number or name of {len(found)} characters")
        return found.decode("utf-8")

    # ------------------------------------------------------------------------------ stack

    def pop(self) -> Any:
        """Remove and return the topmost value."""
        if not self.stack or self.stack[-1] is MARK:
            raise Damaged("the stack is empty")
        return self.stack.pop()

    def top(self, kind: type, what: str) -> Any:
        """Return the topmost value, which must be of a type, without removing it."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise Damaged(f"no {what} to fill")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        """Remove the topmost mark and return the values above it, in order."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise Damaged("there is no mark")

    def push(self, value: Any) -> None:
        """Push a value."""
        self.stack.append(value)

    def put(self, index: int) -> None:
        """Store the topmost value in the memo."""
        if not 0 <= index <= len(self.data):
            raise Damaged(f"memo index {index} in a file of {len(self.data)} bytes")
        if not self.stack:
            raise Damaged("the stack is empty")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        """Push a value of the memo."""
        if index not in self.memo:
            raise Damaged(f"memo index {index} was never stored")
        self.push(self.memo[index])

    # ------------------------------------------------------------------------- containers

    def set_items(self, items: list[Any]) -> None:
        """Fill the topmost dict with alternating keys and values."""
        target = self.top(dict, "dict")
        if len(items) % 2:
            raise Damaged("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def make_dict(self) -> None:
        """DICT: push a dict of everything above the mark."""
        items = self.pop_to_mark()
        self.push({})
        self.set_items(items)

    def set_item(self) -> None:
        """SETITEM: put one key and value into the topmost dict."""
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def append(self, items: list[Any]) -> None:
        """APPEND, APPENDS: extend the topmost list."""
        self.top(list, "list").extend(items)

    def add_items(self) -> None:
        """ADDITEMS: add everything above the mark to the topmost set."""
        items = self.pop_to_mark()
        self.top(set, "set").update(map(checked_key, items))

    def make_tuple(self, count: int) -> None:
        """TUPLE1 to TUPLE3: push a tuple of the topmost values."""
        self.push(tuple(reversed([self.pop() for _ in range(count)])))

    # ---------------------------------------------------------------------------- objects

    def refuse(self, what: str) -> None:
        """Refuse an opcode that only serves to construct objects."""
        raise Refused(what)

    def stack_global(self) -> None:
        """STACK_GLOBAL: push the description of a global."""
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Damaged("a global whose name is not text")
        self.push(known_name(module, name))

    def reduce(self) -> None:
        """REDUCE: push the result of one of the calls that describe plain data."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise Refused("a call of something that is not a global")
        self.push(CALLS[(function.module, function.name)](self.budget, *arguments))

    def build(self) -> None:
        """BUILD: set the state of the topmost dtype or array."""
        state = self.pop()
        target = self.stack[-1] if self.stack else None
        if isinstance(target, NumericType):
            target.order = byte_order(state, target)
        elif isinstance(target, ArrayShell) and target.value is None:
            if not isinstance(state, tuple) or len(state) not in (4, 5):
                raise Damaged("the state of an array has another form")
            shape, numeric, is_fortran, content = state[-4:]
            target.value = make_array(
                self.budget, content, numeric, shape, "F" if is_fortran else "C"
            )
        elif isinstance(target, dict) and isinstance(state, dict) and set(state) <= {"_metadata"}:
            return  # torch attaches the versions of modules to an OrderedDict; not needed
        else:
            raise Refused(f"the state of a {type(target).__name__.strip('_')}")


# --------------------------------------------------------------------------------- opcodes


def _text_int(text: str) -> int:
    if len(text) > 80:
        raise Damaged(f"an integer of {len(text)} digits")
    return int(text)


def _packed_int(raw: bytes) -> int:
    if len(raw) > _MAX_INT_BYTES:
        raise Damaged(f"an integer of {len(raw)} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise Damaged("a string without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


def _protocol(machine: Machine) -> None:
    protocol = machine.number("<B")
    if protocol > 5:
        raise Damaged(f"pickle protocol {protocol}")


def _line_global(machine: Machine) -> None:
    module, name = machine.short_line(), machine.short_line()
    machine.push(known_name(module, name))


def _line_inst(machine: Machine) -> None:
    raise Refused(f"{machine.short_line()}.{machine.short_line()}"[:200])


_TEXT_BOOLS = {"00": False, "01": True}


def _line_int(machine: Machine) -> None:
    text = machine.short_line()
    machine.push(_TEXT_BOOLS[text] if text in _TEXT_BOOLS else _text_int(text))


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


_HANDLERS: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": _protocol,
    b"\x95": lambda p: p.number("<Q"),  # FRAME: only a hint for buffered readers
    b"(": lambda p: p.push(MARK),
    b"0": lambda p: p.stack.pop(),
    b"1": lambda p: p.pop_to_mark(),
    b"2": lambda p: p.push(p.top(object, "value")),
    # numbers and constants
    b"N": lambda p: p.push(None),
    b"\x88": lambda p: p.push(True),
    b"\x89": lambda p: p.push(False),
    b"I": _line_int,
    b"L": lambda p: p.push(_text_int(p.short_line().removesuffix("L"))),
    b"J": lambda p: p.push(p.number("<i")),
    b"K": lambda p: p.push(p.number("<B")),
    b"M": lambda p: p.push(p.number("<H")),
    b"\x8a": lambda p: p.push(_packed_int(p.take(p.number("<B")))),
    b"\x8b": lambda p: p.push(_packed_int(p.take(p.number("<i")))),
    b"F": lambda p: p.push(float(p.short_line())),
    b"G": lambda p: p.push(p.number(">d")),
    # text and bytes; Python 2's byte strings are decoded as Latin-1
    b"S": lambda p: p.push(_quoted(p.line())),
    b"T": lambda p: p.push(p.take(p.number("<i")).decode("latin-1")),
    b"U": lambda p: p.push(p.take(p.number("<B")).decode("latin-1")),
    b"V": lambda p: p.push(p.line().decode("raw-unicode-escape")),
    b"X": lambda p: p.push(_utf8(p.take(p.number("<I")))),
    b"\x8c": lambda p: p.push(_utf8(p.take(p.number("<B")))),
    b"\x8d": lambda p: p.push(_utf8(p.take(p.number("<Q")))),
    b"B": lambda p: p.push(p.take(p.number("<I"))),
    b"C": lambda p: p.push(p.take(p.number("<B"))),
    b"\x8e": lambda p: p.push(p.take(p.number("<Q"))),
    b"\x96": lambda p: p.push(bytearray(p.take(p.number("<Q")))),
    b"\x98": lambda p: None,  # READONLY_BUFFER
    # containers
    b"]": lambda p: p.push([]),
    b"l": lambda p: p.push(p.pop_to_mark()),
    b"a": lambda p: p.append([p.pop()]),
    b"e": lambda p: p.append(p.pop_to_mark()),
    b")": lambda p: p.push(()),
    b"t": lambda p: p.push(tuple(p.pop_to_mark())),
    b"\x85": lambda p: p.make_tuple(1),
    b"\x86": lambda p: p.make_tuple(2),
    b"\x87": lambda p: p.make_tuple(3),
    b"}": lambda p: p.push({}),
    b"d": lambda p: p.make_dict(),
    b"s": lambda p: p.set_item(),
    b"u": lambda p: p.set_items(p.pop_to_mark()),
    b"\x8f": lambda p: p.push(set()),
    b"\x90": lambda p: p.add_items(),
    b"\x91": lambda p: p.push(frozenset(map(checked_key, p.pop_to_mark()))),
    # memo
    b"p": lambda p: p.put(_text_int(p.short_line())),
    b"q": lambda p: p.put(p.number("<B")),
    b"r": lambda p: p.put(p.number("<I")),
    b"\x94": lambda p: p.put(len(p.memo)),
    b"g": lambda p: p.get(_text_int(p.short_line())),
    b"h": lambda p: p.get(p.number("<B")),
    b"j": lambda p: p.get(p.number("<I")),
    # objects
    b"c": _line_global,
    b"\x93": lambda p: p.stack_global(),
    b"R": lambda p: p.reduce(),
    b"b": lambda p: p.build(),
    b"i": _line_inst,
    b"o": lambda p: p.refuse("an object made by OBJ"),
    b"\x81": lambda p: p.refuse("an object made by NEWOBJ"),
    b"\x92": lambda p: p.refuse("an object made by NEWOBJ_EX"),
    b"\x82": lambda p: p.refuse("an extension registry"),
    b"\x83": lambda p: p.refuse("an extension registry"),
    b"\x84": lambda p: p.refuse("an extension registry"),
    b"P": lambda p: p.refuse("a persistent id"),
    b"Q": lambda p: p.refuse("a persistent id"),
    b"\x97": lambda p: p.refuse("a buffer outside the file"),
}
