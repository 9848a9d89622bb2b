"""The structures of the C files as ctypes has them, field by field in the same order."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int, c_long, c_void_p


class CNorm(Structure):
    """An RMS norm."""

    _fields_ = (("weight", c_void_p), ("eps", c_float))


class CLinear(Structure):
    """A linear layer, with the adapters on it."""

    _fields_ = (
        ("n_out", c_long),
        ("up", c_void_p),
        ("down", c_void_p),
        ("bias", c_void_p),
        ("rank", c_long),
        ("rank_N", c_void_p),
        ("A", c_void_p),
        ("B", c_void_p),
        ("stride_A", c_long),
        ("stride_B", c_long),
        ("at_A", c_long),
        ("at_B", c_long),
    )


class CLayer(Structure):
    """A decoder layer."""

    _fields_ = (
        ("query", CLinear),
        ("memory", CLinear * 2),
        ("output", CLinear),
        ("widen", CLinear * 2),
        ("narrow", CLinear),
        ("before", CNorm),
        ("after", CNorm),
        ("of_query", CNorm),
        ("of_key", CNorm),
        ("attends", c_int),
        ("below", c_int),
    )


class CDecoder(Structure):
    """The network."""

    _fields_ = (
        ("D", c_long),
        ("F", c_long),
        ("H", c_long),
        ("G", c_long),
        ("E", c_long),
        ("n_layers", c_long),
        ("layers", ctypes.POINTER(CLayer)),
        ("last", CNorm),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("scale_N", c_void_p),
    )


class CPass(Structure):
    """A pass over a batch."""

    _fields_ = (
        ("T", c_long),
        ("C", c_long),
        ("first", c_long),
        ("end", c_long),
        ("x", c_void_p),
        ("lengths", c_void_p),
        ("counts", c_void_p),
        ("asked", c_void_p),
        ("out", c_void_p),
        ("grad", c_void_p),
        ("keep", c_long),
    )


class CPart(Structure):
    """Rows that use one adapter."""

    _fields_ = (
        ("row", c_long),
        ("n_rows", c_long),
        ("adapter", c_long),
        ("shared", c_long),
        ("work", c_void_p),
        ("grads", c_void_p),
    )


class CSpan(Structure):
    """Matrices of one adapter that move in one basis."""

    _fields_ = (
        ("n_spans", c_long),
        ("rows", c_long),
        ("width", c_long),
        ("spans", c_void_p),
        ("basis", c_void_p),
        ("ratio", c_float),
    )


class CMoving(Structure):
    """What one adapter moves by."""

    _fields_ = (
        ("weight", c_void_p),
        ("first", c_void_p),
        ("second", c_void_p),
        ("grad", c_void_p),
        *((name, c_float) for name in ("clip", "new_first", "new_second", "whole_first")),
        *((name, c_float) for name in ("whole_second", "eps", "rate", "decay")),
    )


STRUCTURES = (CLinear, CLayer, CDecoder, CPass, CPart, CSpan, CMoving)


def declare(library: ctypes.CDLL) -> None:
    """Give the library's functions their types. Raises OSError when a structure differs."""
    sizes = (c_long * len(STRUCTURES))()
    library.lorewright_sizes(sizes)
    here = [ctypes.sizeof(each) for each in STRUCTURES]
    if list(sizes) != here:
        raise OSError(f"structures have {list(sizes)} bytes in C and {here} here")
    decoder, one_pass = ctypes.POINTER(CDecoder), ctypes.POINTER(CPass)
    library.lorewright_floats.argtypes = [decoder, one_pass, ctypes.POINTER(CPart)]
    library.lorewright_floats.restype = c_long
    library.lorewright_run.argtypes = [
        *(decoder, one_pass, ctypes.POINTER(CPart), c_long, c_long, c_void_p, c_long, c_long)
    ]
    library.lorewright_run.restype = None
    library.lorewright_nats.argtypes = [c_long] * 3 + [c_void_p] * 8 + [c_long] * 2
    library.lorewright_nats.restype = None
    library.lorewright_adam.argtypes = [
        *(c_long, ctypes.POINTER(CSpan), ctypes.POINTER(CMoving), c_void_p)
    ]
    library.lorewright_adam.restype = None
    library.lorewright_panels.argtypes = [c_long, c_long, c_void_p, c_long, c_void_p]
    library.lorewright_panels.restype = None
    library.lorewright_columns.restype = c_long
    library.lorewright_product.argtypes = [c_long] * 3 + [c_void_p] * 3
    library.lorewright_product.restype = None
