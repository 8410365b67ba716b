"""Teaches Numba the record schemas: `op.n_rows` in a kernel becomes one 64-bit load."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, lower_getattr_generic, models, register_model

from edgellm.kernels.schema import WORD_BYTES, Schema

_I64 = ir.IntType(64)


class RecordType(types.Type):
    """The Numba type of a record's address."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        super().__init__(name=f"record({schema.name},{id(schema)})")


@register_model(RecordType)
class _RecordModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _I64)


def _field_type(kind: str | Schema) -> types.Type:
    if isinstance(kind, Schema):
        return RecordType(kind)
    return types.float64 if kind == "f64" else types.int64


@infer_getattr
class _RecordAttributes(AttributeTemplate):
    key = RecordType

    def generic_resolve(self, typ, attr):  # type: ignore[override]
        kind = typ.schema.fields.get(attr)
        return None if kind is None else _field_type(kind)


@lower_getattr_generic(RecordType)
def _load_field(context, builder, typ, value, attr):
    offset = list(typ.schema.fields).index(attr) * WORD_BYTES
    field = context.get_value_type(_field_type(typ.schema.fields[attr]))
    address = builder.add(value, ir.Constant(_I64, offset))
    return builder.load(builder.inttoptr(address, field.as_pointer()))


def record_viewer(schema: Schema):
    """A function for kernels: address in, the record there out."""

    @intrinsic
    def view(typing_context, address):
        def codegen(context, builder, signature, args):
            return args[0]

        return RecordType(schema)(types.int64), codegen

    return view
