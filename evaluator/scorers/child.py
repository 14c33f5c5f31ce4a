"""The process in which a user's scorers run: it imports one module and calls its functions.

It speaks with its parent over pipes: four bytes of length, then JSON. The user's own prints go nowhere, so
that they can neither break this protocol nor bring trace content into a log. Imports nothing of the
evaluator, so that it starts fast.
"""

import enum
import faulthandler
import importlib
import inspect
import json
import math
import os
import struct
import sys
import traceback
from typing import Any, BinaryIO

ARGUMENTS = ("inputs", "outputs", "expectations", "trace", "span", "session")
LENGTH = struct.Struct(">I")


def main() -> None:
    """Serve requests until the parent closes the pipe. Arguments: the folder, the module, seconds for a call."""
    home, module_name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    sys.path.insert(0, home)
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:  # noqa: BLE001 -- a user's module: whatever it raises is an answer
        _send(
            replies, {"failed": f"module {module_name} cannot be imported: {type(error).__name__}: {error}"}
        )
        return
    _send(replies, {"ready": True})
    while (request := _receive(requests)) is not None:
        # Ends this process also when the parent is gone and a call hangs, be it in C.
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        reply = _call(module, request) if "arguments" in request else _describe(module, request["name"])
        faulthandler.cancel_dump_traceback_later()
        _send(replies, reply)


def _describe(module: Any, name: str) -> dict[str, Any]:
    """Which of the arguments a scorer takes."""
    scorer = getattr(module, name, None)
    if inspect.isclass(scorer) or not callable(scorer):
        return {
            "failed": f"{name} is not a function: name a plain function or one that MLflow's @scorer decorates"
        }
    if inspect.iscoroutinefunction(scorer):
        return {"failed": f"{name} is async: write it as a plain function"}
    try:
        parameters = inspect.signature(scorer).parameters.values()
    except (TypeError, ValueError) as error:
        return {"failed": f"the parameters of {name} cannot be told: {error}"}
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and (parameter.name not in ARGUMENTS or parameter.kind is parameter.POSITIONAL_ONLY)
    ]
    if needed:
        return {"failed": f"{name} asks for {', '.join(needed)}; there are {', '.join(ARGUMENTS)}, by name"}
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = {parameter.name for parameter in parameters}
    return {"parameters": [name for name in ARGUMENTS if takes_all or name in named]}


def _call(module: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return _result(getattr(module, request["name"])(**request["arguments"]))
    except BaseException as error:  # noqa: BLE001 -- a user's function: SystemExit, too, is an answer
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if len(frames) > 1 else ""
        return {"failed": f"raised {type(error).__name__}{where}"}


def _result(result: Any) -> dict[str, Any]:
    """What a scorer returned, in JSON values. MLflow's Feedback is known by its fields, for MLflow may be absent."""
    rationale = None
    if any(
        base.__name__ == "Feedback" and base.__module__.startswith("mlflow.") for base in type(result).__mro__
    ):
        if result.error is not None:
            return {"failed": f"returned a Feedback with the error {result.error.error_code}"}
        rationale, result = result.rationale, result.value
    if isinstance(result, enum.Enum):
        result = result.value
    if type(result).__module__ == "numpy" and getattr(result, "shape", None) == ():
        result = result.item()
    if isinstance(result, float) and not math.isfinite(result):
        return {"failed": f"returned {result}"}
    if result is None or isinstance(result, bool | int | float | str):
        return {"value": result, "rationale": None if rationale is None else str(rationale)}
    return {
        "failed": f"returned a value of type {type(result).__name__}; "
        "return a bool, a number, a text, None, or an MLflow Feedback of one of these"
    }


def _receive(pipe: BinaryIO) -> dict[str, Any] | None:
    header = pipe.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    message: dict[str, Any] = json.loads(pipe.read(LENGTH.unpack(header)[0]))
    return message


def _send(pipe: BinaryIO, message: dict[str, Any]) -> None:
    content = json.dumps(message).encode()
    pipe.write(LENGTH.pack(len(content)) + content)
    pipe.flush()


if __name__ == "__main__":
    main()
