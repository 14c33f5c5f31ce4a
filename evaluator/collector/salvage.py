"""What can be kept of a request that protobuf refuses as a whole: one text is not UTF-8, one record is cut.

The same messages are described once more with text as bytes, which are never refused, and with each record
as its bytes, so that one can be read without the others.
"""

from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from evaluator.collector.signals import RECORD_FIELDS, SIGNALS, MalformedRequestError, Signal


def salvaged(signal: Signal, body: bytes) -> tuple[Message, int]:
    """The request with its text mended, and how many records were left out. Raises MalformedRequestError."""
    try:
        loose: Any = _loose(signal.request.DESCRIPTOR.full_name).FromString(body)
        refused = 0
        for _, scope, records in signal.groups(loose):
            kept = [mended for record in records if (mended := _mended(signal, record)) is not None]
            refused += len(records) - len(kept)
            scope.ClearField(signal.records)
            getattr(scope, signal.records).extend(kept)
        _mend_strings(loose, signal.request.DESCRIPTOR)
        return signal.request.FromString(loose.SerializeToString()), refused
    except DecodeError as error:
        raise MalformedRequestError("the body is not an OTLP request in protobuf") from error


def _mended(signal: Signal, record: bytes) -> bytes | None:
    """The bytes of one record with its text in UTF-8; None when it cannot be read even alone."""
    strict = _record(signal)
    request: Any = _loose(signal.request.DESCRIPTOR.full_name)()
    scope = getattr(getattr(request, signal.resources).add(), signal.scopes).add()
    try:
        message = _loose(strict.full_name).FromString(record)
        _mend_strings(message, strict)
        mended = message.SerializeToString()
        getattr(scope, signal.records).append(mended)
        signal.request.FromString(request.SerializeToString())  # as deep as it will lie
    except DecodeError:
        return None
    return mended


def _record(signal: Signal) -> Any:
    request: Any = signal.request.DESCRIPTOR
    resource = request.fields_by_name[signal.resources].message_type
    scope = resource.fields_by_name[signal.scopes].message_type
    return scope.fields_by_name[signal.records].message_type


def _mend_strings(message: Any, strict: Any) -> None:
    """Make UTF-8 of every field that is text in the strict message and bytes in this one."""
    for field, value in message.ListFields():
        kind = strict.fields_by_name[field.name]
        values = value if kind.is_repeated else [value]
        if kind.type == FieldDescriptor.TYPE_STRING:
            texts = [item.decode("utf-8", "replace").encode() for item in values]
            if kind.is_repeated:
                value[:] = texts
            else:
                setattr(message, field.name, texts[0])
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for item in values:
                _mend_strings(item, kind.message_type)


@cache
def _loose(name: str) -> type[Message]:
    """A message class that takes text as it is (string fields are bytes), and each record as its bytes."""
    message: type[Message] = GetMessageClass(_loose_pool().FindMessageTypeByName(name))
    return message


@cache
def _loose_pool() -> DescriptorPool:
    pool = DescriptorPool()
    added: set[str] = set()

    def add(file: Any) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        for message in proto.message_type:
            for field in message.field:
                record = message.name.startswith("Scope") and field.name in RECORD_FIELDS
                if record or field.type == FieldDescriptorProto.TYPE_STRING:
                    field.type = FieldDescriptorProto.TYPE_BYTES
                    field.ClearField("type_name")
        pool.Add(proto)

    for signal in SIGNALS:
        add(signal.request.DESCRIPTOR.file)
    return pool
