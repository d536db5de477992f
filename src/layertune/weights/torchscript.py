"""Read the tensors of a TorchScript archive without running its code.

An archive of ``torch.jit.save`` is a zip file: ``data.pkl`` describes the modules and names the tensors, ``data/``
holds their numbers, and ``code/`` the methods. Here the instructions of ``data.pkl`` are read one by one, by an
interpreter that knows lists, dicts, tensors and objects without behaviour, and no function that it could call. The code
is read as text, for the names of parameters and buffers alone.
"""

import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layertune.errors import WeightsError

__all__ = ["is_torchscript", "read_torchscript"]

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
DEEPEST, MOST = 100, 1_000_000  # levels of modules and tensors: more are no network but an attack


@dataclass
class _Object:
    """A module or another object of the archive, without behaviour; or the name of a class or function."""

    name: str
    state: Any = None


@dataclass(frozen=True)
class _Storage:
    """The place of a tensor's numbers in the archive."""

    kind: str
    key: str
    count: int


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether a zip file is an archive of ``torch.jit.save``."""
    return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive; nothing in it is run.

    Args:
        archive: The zip file that ``torch.jit.save`` wrote, open for reading.

    Returns:
        Name -> tensor on the CPU, as the state dict of the loaded module would have them.

    Raises:
        WeightsError: The archive holds no tensors with names, or quantised ones.
        ValueError: The archive is damaged; other built-in errors may be raised as well.
    """
    reader = _Reader(archive)
    weights = dict(reader.tensors(reader.modules(), ""))
    if not weights:
        raise WeightsError(
            "it is a TorchScript archive without named weights; torch.jit.freeze folds them into the code, so use the "
            "file from before it was frozen, or the state dict"
        )
    return weights


class _Reader:
    """Reads one archive.

    Args:
        archive: The zip file that ``torch.jit.save`` wrote, open for reading.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).partition("/")[0]
        self._numbers: dict[str, Tensor] = {}
        self._declared: dict[str, set[str] | None] = {}
        self._count = 0

    def modules(self) -> _Object:
        """Return the outermost module with all that it holds."""
        root = _Interpreter(self._tensor).run(self._read("data.pkl"))
        if not isinstance(root, _Object) or not isinstance(root.state, dict):
            raise ValueError("the archive holds no module")
        return root

    def tensors(self, module: _Object, path: str) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of a module and of those in it, by name."""
        if path.count(".") > DEEPEST or not isinstance(module.state, dict):
            return
        declared = self._names_in_code(module.name)
        inner = []
        for name, value in module.state.items():
            if isinstance(value, Tensor) and (declared is None or name in declared):
                self._count += 1
                if self._count > MOST:
                    raise ValueError("the archive holds more tensors than any network")
                yield f"{path}{name}", value
            elif isinstance(value, _Object):
                inner.append((name, value))
        for name, value in inner:
            yield from self.tensors(value, f"{path}{name}.")

    def _names_in_code(self, name: str) -> set[str] | None:
        """Return the names that a class declares as parameters and buffers; ``None`` if they cannot be found."""
        if name not in self._declared:
            *folders, file, class_name = name.split(".")
            path = f"{self._root}/code/{'/'.join([*folders, file])}.py"
            self._declared[name] = None
            if path in self._archive.namelist():
                self._declared[name] = _declared(self._archive.read(path).decode(), class_name)
        return self._declared[name]

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor has no numbers")
        if storage.kind not in STORAGES:
            raise WeightsError(
                f"it is a TorchScript archive with tensors of the kind {storage.kind}, as quantisation makes them; use "
                "the weights from before"
            )
        dtype = STORAGES[storage.kind]
        if storage.key not in self._numbers:
            raw = self._read(f"data/{storage.key}")
            if len(raw) != storage.count * dtype.itemsize:
                raise ValueError(f"{storage.key} holds {len(raw)} bytes")
            self._numbers[storage.key] = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0)
        return self._numbers[storage.key].to(dtype).as_strided(size, stride, offset)

    def _read(self, name: str) -> bytes:
        entry = self._archive.getinfo(f"{self._root}/{name}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which torch.jit.save does not do")
        return self._archive.read(entry)


def _declared(code: str, class_name: str) -> set[str] | None:
    body = re.search(rf"^class {re.escape(class_name)}\(Module\):\n((?:  .*\n|\n)*)", code, re.MULTILINE)
    if body is None:
        return None
    lists = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", body[1], re.MULTILINE)
    return {name for names in lists for name in re.findall(r'"([^"]*)"', names)}


class _Interpreter:
    """Follows the instructions of a pickle without calling anything but the function that makes tensors.

    Args:
        tensor: Function that makes a tensor of the arguments of ``torch._utils._rebuild_tensor_v2``.
    """

    def __init__(self, tensor: Callable[..., Tensor]) -> None:
        self._make_tensor = tensor
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[Any, Any] = {}

    def run(self, instructions: bytes) -> Any:
        """Return the object that the instructions describe."""
        for operation, argument, _ in pickletools.genops(instructions):
            name = operation.name
            if name == "STOP":
                return self._stack.pop()
            if name in VALUES:
                self._stack.append(VALUES[name](argument))
            elif name in STEPS:
                STEPS[name](self, argument)
            else:
                raise ValueError(f"the instruction {name} is none of torch.jit.save's")
        raise ValueError("the instructions have no end")

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def tuple(self, _: Any) -> None:
        self._stack.append(tuple(self.since_mark()))

    def last(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(items)

    def append(self, _: Any) -> None:
        value = self._stack.pop()
        self._stack[-1].append(value)

    def appends(self, _: Any) -> None:
        items = self.since_mark()
        self._stack[-1].extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._stack[-1][key] = value

    def set_items(self, _: Any) -> None:
        items = self.since_mark()
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def put(self, place: Any) -> None:
        self._memo[place] = self._stack[-1]

    def get(self, place: Any) -> None:
        self._stack.append(self._memo[place])

    def new_object(self, _: Any) -> None:
        _, kind = self._stack.pop(), self._stack.pop()
        self._stack.append(_Object(kind.name))

    def build(self, _: Any) -> None:
        state = self._stack.pop()
        if isinstance(self._stack[-1], _Object):
            self._stack[-1].state = state

    def reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if function.name == "torch._utils._rebuild_tensor_v2":
            self._stack.append(self._make_tensor(*arguments))
        else:
            self._stack.append(_Object(function.name))

    def storage(self, _: Any) -> None:
        _, kind, key, _, count = self._stack.pop()
        self._stack.append(_Storage(kind.name.removeprefix("torch."), str(key), int(count)))


VALUES: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "GLOBAL": lambda argument: _Object(argument.replace(" ", ".")),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING"),
        lambda argument: argument,
    ),
}
"""Instructions that put a value on the stack."""

STEPS: dict[str, Callable[[_Interpreter, Any], None]] = {
    "PROTO": lambda _, __: None,
    "MARK": _Interpreter.mark,
    "TUPLE": _Interpreter.tuple,
    "TUPLE1": lambda interpreter, _: interpreter.last(1),
    "TUPLE2": lambda interpreter, _: interpreter.last(2),
    "TUPLE3": lambda interpreter, _: interpreter.last(3),
    "APPEND": _Interpreter.append,
    "APPENDS": _Interpreter.appends,
    "SETITEM": _Interpreter.set_item,
    "SETITEMS": _Interpreter.set_items,
    "BINPUT": _Interpreter.put,
    "LONG_BINPUT": _Interpreter.put,
    "BINGET": _Interpreter.get,
    "LONG_BINGET": _Interpreter.get,
    "NEWOBJ": _Interpreter.new_object,
    "BUILD": _Interpreter.build,
    "REDUCE": _Interpreter.reduce,
    "BINPERSID": _Interpreter.storage,
}
"""Instructions that change the stack."""
