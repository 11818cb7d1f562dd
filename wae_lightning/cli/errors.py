"""One sentence for each mistake of the user and each failure of the machine."""

from __future__ import annotations

import difflib
import inspect
import itertools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["UsageError", "explain_failure", "explain_mistake", "suggest"]

UNTELLING = ("Problem with given", "Not a valid subclass", "a class path (", "a dict ")
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
PLAIN = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
KINDS = PLAIN | {"Iterable": "a list", "Sequence": "a list", "list": "a list", "tuple": "a list", "dict": "a mapping"}


class UsageError(ValueError):
    """A mistake in what the user asked for; its text is the whole message."""


def suggest(word: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    """Returns ``; did you mean ...?`` with the most similar of the known words, or nothing.

    Small and capital letters count as equal. Else a known word that begins with this one is meant, or, by ``--lr``, the
    known flag that ends in ``.lr``.
    """
    known = list(known)
    by_lower = {name.lower(): name for name in reversed(known)}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    longer = [name for name in known if name.lower().startswith(word.lower())]
    longer += [name for name in known if name.endswith(f".{word.lstrip('-')}")]
    best = by_lower[found[0]] if found else longer[0] if longer else None
    return f"; did you mean {best}?" if best else ""


def find_class(path: str) -> Any:
    """The class of a dotted path, if it is imported."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def list_subclasses(base: type, packages: Sequence[str] = ()) -> list[str]:
    """Names of the imported classes that can stand for ``base``, of some packages or of all."""
    wanted = not packages or base.__module__.split(".")[0] in packages
    found = {base.__name__} if wanted and not inspect.isabstract(base) else set()
    subclasses: list[type] = type.__subclasses__(base)
    for cls in subclasses:
        found |= set(list_subclasses(cls, packages))
    return sorted(name for name in found if not name.startswith("_"))


def explain_mistake(message: str, given: Sequence[str] = ()) -> str:
    """Shortens what jsonargparse or Lightning say of a mistake, and names what was probably meant.

    Args:
        message: The text of the exception.
        given: The command line: flags of the trainer are named as they were typed, with or without their prefix.
    """
    sentence = _explain(message)
    alone = re.fullmatch(r"argument --([\w.]+): expected one argument", sentence)
    if alone:  # jsonargparse names the part, not the argument in it
        flags = [
            flag for flag, following in zip(given, [*given[1:], "--"], strict=True)
            if flag.startswith(f"--{alone[1]}") and "=" not in flag and following.startswith("--")
        ]  # fmt: skip
        sentence = f"{flags[0] if flags else f'--{alone[1]}'} needs a value"
    for name in set(re.findall(r"--trainer\.(\w+)", sentence)):
        if any(argument.startswith(f"--{name}") for argument in given):
            sentence = sentence.replace(f"--trainer.{name}", f"--{name}")
    return sentence


def _explain(message: str) -> str:
    if re.search("No supported gpu backend|can not run on your system", message):
        import torch

        return (
            f"--accelerator: this machine has no such device that PyTorch {torch.__version__} can use; "
            "--accelerator cpu, or auto, runs without"
        )
    unknown = re.search(r"[Uu]nrecognized arguments: (\S+)", message)
    if unknown:
        return f"unknown argument {unknown.group(1)}"
    option = re.search(r"Option '([\w.]+)' is not accepted", message)
    no_class = re.search(r"Expected a dot import path string: (\S+)", message) or re.search(
        r"given class_path '([\w.]+)':\s+(?:No module named|module '[\w.]+' has no attribute)", message
    )
    required = r"the following arguments are required: (?P<names>[\w, ]+)"
    missing = re.search(rf"given class_path '[\w.]*?(?P<cls>\w+)':\s+{required}", message) or re.search(
        rf"callable class: {required}\n[\s\S]*?class_path='[\w.]*?(?P<cls>\w+)'", message
    )
    left_out = re.search(r"but \S+ is abstract.*?NestedArg\(key='([\w.]+)'", message, re.DOTALL)
    if option and not _has_argument(option[1], message):
        return _explain_option(option.group(1), message, option.start())
    if missing:
        flag = _flag_before(message, missing.start())
        first = missing["names"].partition(",")[0]
        return f"{flag}: {missing['cls']} needs {missing['names']}; give it with {flag}.{first}"
    if left_out and not _has_argument(left_out[1], message):
        return _left_out(_flag_before(message, left_out.start()), left_out.group(1))
    if no_class and not set(_expected_kinds(_innermost(message))) & {PLAIN["int"], PLAIN["float"]}:
        return _explain_class(no_class.group(1), message, no_class.start())
    flag = _flag_before(message, len(message))
    # The types that were tried are listed one by one; None and the class as a whole tell nothing
    tried = [line.strip()[2:] for line in message.splitlines() if line.strip().startswith("- ")]
    telling = [text for text in tried if "<class 'NoneType'>" not in text and not text.startswith(UNTELLING)]
    no_subclass = re.search(r"Not a valid subclass of (\w+)[\s\S]*?(?:Given|Got) value: (.*)", message)
    last = re.sub("Type .* expects a function or a callable class: ", "", telling[-1]) if telling else ""
    reason = _explain_value(message) or last or " ".join(message.split())
    if no_subclass and not last:
        reason = f"expected a {no_subclass[1]}, got {no_subclass[2]}"
    return f"{flag}: {reason}" if flag and flag[2:] not in reason else reason


def _has_argument(name: str, message: str) -> bool:
    """Whether one of several classes that were tried has an argument of this name."""
    return f'Parser key "{name}"' in message


def _explain_value(message: str) -> str | None:
    """What was expected, and found, for the innermost argument of a message; None if it does not say."""
    inner = _innermost(message)
    kinds = _expected_kinds(inner)
    given = re.search(r"(?:Given|Got) value: (.*?)(?:\. Got value: .*)?$", inner, re.MULTILINE)
    return f"expected {' or '.join(kinds)}, got {given[1]}" if kinds and given else None


def _innermost(message: str) -> str:
    """What a message says of the innermost argument: the lines that are indented below its name."""
    first, *lines = message[message.rfind("\n", 0, max(message.rfind("Parser key "), 0)) + 1 :].splitlines()
    inside = itertools.takewhile(lambda line: not line.strip() or _indentation(line) > _indentation(first), lines)
    return "\n".join([first, *inside])


def _expected_kinds(inner: str) -> list[str]:
    """What jsonargparse's types are called, those of classes left out."""
    found = re.findall(r"Expected an? (<class.*?>|\S*Literal\[.*\]|tuple with \d+ elements)", inner)
    return list(dict.fromkeys(_name_type(text) for text in found if "NoneType" not in text))


def _flag_before(message: str, position: int) -> str:
    """The flag that the nested keys before a place in a message make up; empty without any."""
    keys: list[tuple[int, str]] = []
    for line in message[:position].splitlines():
        if key := re.search(r'Parser key "([^"]+)"', line):
            depth = _indentation(line)
            keys = [(outer, name) for outer, name in keys if outer < depth] + [(depth, key[1])]
    return "--" + ".".join(name for _, name in keys) if keys else ""


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _name_type(text: str) -> str:
    """``<class 'int'>`` as people say it."""
    if literal := re.search(r"Literal\[(.*)\]", text):
        return f"one of {literal[1]}"
    if several := re.fullmatch(r"tuple with (\d+) elements", text):
        return f"a list of {several[1]}"
    name = re.sub(r"<class '|'>", "", text)
    return KINDS.get(name.rpartition(".")[2], name)


def _explain_option(name: str, message: str, position: int) -> str:
    """An argument that a class does not take."""
    part = _flag_before(message, position)
    before = re.findall(r"class_path '([\w.]+)':", message[:position])
    after = re.search(r"Option '[\w.]+' is not accepted\. Got value: Namespace\(class_path='([\w.]+)'", message)
    path = after.group(1) if after else before[-1] if before else ""
    if path == "torch.nn.Module":
        return _left_out(part, name)
    cls = find_class(path)
    arguments = (
        [key for key, one in inspect.signature(cls).parameters.items() if one.kind not in VARIADIC] if cls else []
    )
    return f"unknown flag {part}.{name}{suggest(f'{part}.{name}', [f'{part}.{key}' for key in arguments])}"


def _left_out(part: str, name: str) -> str:
    return f"{part}.{name}: the config leaves this part to the model; name its class first, {part}=CLASS"


def _explain_class(name: str, message: str, position: int) -> str:
    """A word where the name of a class was expected."""
    flag = _flag_before(message, position)
    subtypes = message[: message.rfind("\n", 0, position)].rpartition("Subtypes: ")[2]
    bases = [find_class(path) for path in re.findall(r"[\w.]+\.\w+", subtypes.splitlines()[0] if subtypes else "")]
    kinds = [base for base in bases if isinstance(base, type)]
    names = sorted({found for base in kinds for found in list_subclasses(base)})
    ours = sorted({found for base in kinds for found in list_subclasses(base, ("wae_lightning", "datamodules"))})
    last = name.rpartition(".")[2]
    meant = suggest(last, ours, cutoff=0.6) or suggest(last, names, cutoff=0.6)
    if not meant and 0 < len(names) <= 20:
        meant = f"; expected one of {', '.join(names)}"
    return f"{flag}: there is no class {name} for it{meant}"


def explain_failure(error: Exception, batch_size: int | None = None) -> str | None:
    """One sentence on an error that is not the program's fault: of memory, disk or network; None if it may be."""
    import torch

    message = str(error)
    out_of_memory = re.search("not enough memory|can't allocate memory", message)
    if out_of_memory or isinstance(error, torch.OutOfMemoryError | MemoryError):
        where = "GPU memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
        return (
            f"out of {where} with batches of {batch_size}: try a smaller --data.batch_size (with "
            "--accumulate_grad_batches to keep the effective one), --precision bf16-mixed or a smaller model "
            f"({message.splitlines()[0] if message else type(error).__name__})"
        )
    if isinstance(error, torch.distributed.DistNetworkError):
        port = os.environ.get("MASTER_PORT", "chosen by Lightning")
        return (
            f"the processes cannot meet at port {port}: another program may listen there; set the environment "
            f"variable MASTER_PORT to a free one ({message.splitlines()[0]})"
        )
    if re.search("Connection closed by peer|Connection reset by peer|Broken pipe|remote process exited", message):
        return (
            "another process of this training has ended; its own message says why, if it was not killed "
            f"({message.splitlines()[0][-120:]})"
        )
    if isinstance(error, OSError):
        file = f"{os.fsdecode(error.filename)}: " if error.filename else ""  # h5py, tensorboard: bytes
        return f"{file}{error.strerror}" if error.strerror else message
    if isinstance(error, ModuleNotFoundError):
        return " ".join(message.split())  # Lightning's loggers and accelerators say what to install
    if message.startswith("Unrecognized mode="):
        return f"--model.compile: {message}"
    if isinstance(error, FloatingPointError) or "returned nan values" in message:
        return message
    return None
