"""A CuPy for machines without a GPU, for tests only: CuPy's rules, NumPy's arithmetic.

It refuses what CuPy refuses, so that code which mixes host and device arrays, or calls what CuPy lacks, fails
on any machine:

- implicit conversion: ``np.asarray(x)``, ``np.array([x, x])``, ``host[...] = x``, ``range(x)``;
- NumPy arrays and lists as operands, as ``out=``, and as what is assigned to ``x[...]``;
- names that CuPy does not have, arguments that its functions do not take (``where=``, ``initial=``), dtypes
  that it does not know (object, longdouble, strings).

As in CuPy, reductions and ``x[0]`` return 0-d arrays on the device, ``np.sum(x)`` and ``np.add(x, 1)`` find
their way here, and reading a value (``float``, ``int``, ``bool``, ``get``, ``item``, ``print``) waits for the
device. ``cuda_runtime.counted`` counts how often that happens, and how often something is copied to the
device.

Where it differs from the CuPy that it was written after (14), as far as we know:

- It has a small part of CuPy: the names in the tables below. That is deliberate: an addition is one line, and
  has to be looked up first.
- It is stricter: CuPy takes lists and NumPy arrays as an index and uploads them, and takes them as what is
  assigned at such an index; here they are refused, since that is a hidden copy at each use. ``cupy.sum`` and
  its like call whatever method their argument has, a NumPy array's too; here that is a TypeError. CuPy builds
  ``cupy.array([x, y])`` from device arrays; here use ``stack``. CuPy's operators leave it to an unknown
  operand to answer; here that is a TypeError.
- Out-of-range integer indices: CuPy wraps around without a word, NumPy and so the stand-in raises.
- Duplicate indices in an assignment: in CuPy any of the values may win, here the last one does.
- Results are NumPy's to the last bit. CuPy adds in another order, and its float16 products and exponentials
  differ in the last digits.
- Nothing is asynchronous, there is one device, memory is the host's, and no error comes late.
- CUDA graphs: while a stream records, launches of raw kernels and of cuBLAS (``cublas_stand_in.py``) are kept
  for the graph and not run. Anything else that computes, allocates, copies or waits is refused then: CuPy
  would record some of that, and code that relies on it is not what we want. Raw kernels are run by
  ``cuda_emulator``.
- What counts as reading a value: besides the above ``x[mask]``, ``nonzero`` and ``where(x)``, since the size
  of the result must be known, and not ``x[mask] = 0``, as in CuPy; and ``sliding_window_view``, which
  compares sizes on the host. Where a function of CuPy's waits for other reasons, the stand-in does not know.
- Type promotion is that of the NumPy that is installed; CuPy before 14 had NumPy 1's value-based rules.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np

from tests.fakes import cublas_stand_in, cuda_runtime
from tests.fakes.cuda_runtime import refuse_while_recording, traffic

SCALARS = (bool, int, float, complex, np.generic)
BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide,
    "floordiv": np.floor_divide, "mod": np.remainder, "pow": np.power, "matmul": np.matmul,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip
UNARY = {"neg": np.negative, "pos": np.positive, "abs": np.absolute, "invert": np.invert}

# Looked up in CuPy's sources: what stands here is there, under the same name and with the same meaning. The
# first group takes arrays and numbers only.
ELEMENTWISE = """
    abs absolute add arctan2 bitwise_and bitwise_or bitwise_xor ceil copysign cos cosh divide equal exp exp2
    expm1 fabs floor floor_divide fmax fmin greater greater_equal invert isfinite isinf isnan less
    less_equal log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor matmul maximum
    minimum mod multiply negative not_equal positive power reciprocal remainder rint sign sin sinh sqrt
    square subtract tan tanh true_divide trunc where dot outer
""".split()
REDUCTIONS = "all any argmax argmin max mean min prod std sum var".split()
FUNCTIONS = """
    allclose amax amin argsort array_equal ascontiguousarray broadcast_to clip concatenate copyto
    count_nonzero cumsum diagonal einsum expand_dims flip hstack isclose moveaxis nonzero pad ravel repeat
    reshape roll sort squeeze stack swapaxes take take_along_axis tensordot tile trace transpose vstack
""".split()
METHODS = """
    argsort astype clip copy cumsum diagonal dot fill flatten nonzero ravel repeat reshape round squeeze
    swapaxes take trace transpose view
""".split()
CREATION = "arange empty eye full identity linspace ones zeros".split()
CREATION_LIKE = "empty_like full_like ones_like zeros_like".split()
BORROWED = """
    bool_ dtype e finfo float16 float32 float64 floating iinfo inf int16 int32 int64 int8 integer intp
    issubdtype nan newaxis number pi promote_types uint16 uint32 uint64 uint8
""".split()  # CuPy has NumPy's own


VIEWS = ("reshape", "view", "transpose", "swapaxes", "squeeze", "ravel")  # which compute nothing


class OutOfMemoryError(MemoryError):
    """What CuPy raises when the device has no memory left."""


def RawModule(**settings):  # noqa: N802  (CuPy's name)
    """Compile CUDA source for the emulator."""
    from tests.fakes.cuda_emulator import RawModule

    return RawModule(**settings)


def memory_info():
    """Return the free and the total bytes of the device."""
    return free_memory, 80 << 30


free_memory = 80 << 30


class ndarray:  # noqa: N801  (CuPy's name)
    """A device array: a NumPy array that cannot be reached from outside by accident."""

    __slots__ = ("_host",)
    __hash__ = None

    def __init__(self, host):
        if host.dtype.kind not in "biufc" or host.dtype.char in "gG":
            raise ValueError(f"Unsupported dtype {host.dtype}")
        self._host = host

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: ndarray(self._host.T))
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))

    # What waits for the device

    def get(self):
        refuse_while_recording("copies to the host")
        traffic.reads += 1
        return self._host.copy()

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __bool__(self):
        return bool(self.get())

    def __repr__(self):
        return repr(self.get())

    def __str__(self):
        return str(self.get())

    def __format__(self, specification):
        return format(self.get(), specification)

    # What NumPy tries

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy "
            "array explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, out=(None,), **keywords):
        function = getattr(cupy, ufunc.__name__, None)
        if function is None or method != "__call__":
            return NotImplemented
        return function(*inputs, out=out[0], **keywords)

    def __array_function__(self, function, types, arguments, keywords):
        ours = getattr(cupy, function.__name__, None)
        return NotImplemented if ours is None else ours(*arguments, **keywords)

    # Containers

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        index = _index(index)
        if any(isinstance(part, np.ndarray) and part.dtype == bool for part in index):
            traffic.reads += 1
        if not any(part is Ellipsis for part in index):
            index += (...,)  # so that NumPy returns an array of no dimensions in place of a number
        return ndarray(self._host[index])

    def __setitem__(self, index, value):
        refuse_while_recording("computes without a raw kernel")
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("Non-scalar numpy.ndarray cannot be used for assignment")
        self._host[_index(index)] = _operand(value)

    def set(self, values):
        if not isinstance(values, np.ndarray):
            raise TypeError("only numpy.ndarray can be set to cupy.ndarray")
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError("shape or dtype mismatch")
        refuse_while_recording("copies from the host")
        traffic.uploads += 1
        self._host[...] = values

    def __copy__(self):
        return ndarray(self._host.copy())

    def __deepcopy__(self, memo):
        return ndarray(self._host.copy())


def _operand(x):
    """Admit device arrays and numbers, and nothing else."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, SCALARS):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def _argument(x):
    """Admit shapes, axes and options too, and sequences of arrays."""
    if isinstance(x, (list, tuple)):
        return type(x)(map(_argument, x))
    return _operand(x) if isinstance(x, np.ndarray) else getattr(x, "_host", x)


def _index(index):
    """Return the index as a tuple of what NumPy takes."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if isinstance(part, (list, np.ndarray)):
            raise TypeError(f"an index of {type(part)} is copied to the device each time: copy it once")
    return tuple(map(_argument, parts))


def _result(x):
    """Put what NumPy returned on the device, numbers as arrays of no dimensions."""
    if isinstance(x, tuple):
        return tuple(map(_result, x))
    return ndarray(np.asarray(x)) if isinstance(x, (np.ndarray, *SCALARS)) else x


def _wrap(function, admit):
    """Make CuPy's function out of NumPy's."""
    name = function.__name__
    takes_where = name == "copyto"

    def call(*arguments, out=None, **keywords):
        if name not in VIEWS:
            refuse_while_recording("computes without a raw kernel")
        for keyword in ("where", "initial", "order"):
            if keyword in keywords and not (keyword == "where" and takes_where):
                raise TypeError(f"{name}: CuPy knows no argument {keyword!r} here, or not in all versions")
        if name == "nonzero" or (name == "where" and len(arguments) == 1):
            traffic.reads += 1  # the size of the result has to be known
        if len(arguments) > getattr(function, "nin", len(arguments)):
            *arguments, out = arguments  # np.add(x, y, out)
        hosts = [admit(x) for x in arguments]
        keywords = {keyword: _argument(value) for keyword, value in keywords.items()}
        if out is None:
            return _result(function(*hosts, **keywords))
        if not isinstance(out, ndarray):
            raise TypeError("Output arguments type must be cupy.ndarray")
        function(*hosts, out=out._host, **keywords)
        return out

    return call


def _on_device(function):
    """Make a function that only works on device arrays: CuPy's do not convert lists."""
    call = _wrap(function, _argument)

    def checked(first, *arguments, **keywords):
        arrays = first if isinstance(first, (list, tuple)) else [first]
        if not isinstance(first, str):  # einsum begins with its formula
            for x in arrays:
                if not isinstance(x, ndarray):
                    raise TypeError(f"Unsupported type {type(x)}")
        return call(first, *arguments, **keywords)

    return checked


def _creation(function, *, like=False):
    def call(*arguments, **keywords):
        refuse_while_recording("allocates")
        if like and not isinstance(arguments[0], ndarray):
            raise TypeError(f"Unsupported type {type(arguments[0])}")
        shape = arguments[0] if function in (np.empty, np.zeros) else ()
        dtype = np.dtype(keywords.get("dtype") or (arguments[1:] or [float])[0])
        if np.prod(shape, dtype=float) * dtype.itemsize > free_memory:
            raise OutOfMemoryError(f"Out of memory allocating {shape}")
        return ndarray(function(*map(_argument, arguments), **keywords))

    return call


def array(values, dtype=None, copy=True):
    """Copy to the device, from the host or from the device."""
    if isinstance(values, ndarray):
        return ndarray(np.array(values._host, dtype=dtype))
    refuse_while_recording("copies from the host")
    traffic.uploads += 1
    return ndarray(np.array(values, dtype=dtype))


def asarray(values, dtype=None):
    """Copy to the device what is not there yet, or has another dtype."""
    if isinstance(values, ndarray) and dtype in (None, values.dtype):
        return values
    return array(values, dtype)


def asnumpy(values):
    """Copy to the host."""
    return values.get() if isinstance(values, ndarray) else np.asarray(values)


def sliding_window_view(x, window_shape, axis=None):
    """Return a view, as NumPy does; in CuPy it can be written to.

    CuPy uploads the window's shape, and reads two comparisons of it.
    """
    traffic.uploads += 1
    traffic.reads += 2
    return ndarray(np.lib.stride_tricks.sliding_window_view(_array(x), window_shape, axis, writeable=True))


def as_strided(x, shape=None, strides=None):
    """Return a view, as NumPy does."""
    return ndarray(np.lib.stride_tricks.as_strided(_array(x), shape, strides))


def _array(x):
    if not isinstance(x, ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    return x._host


def _add_methods():
    """Give ndarray its operators and methods."""

    def method(name):
        call = _wrap(getattr(np.ndarray, name), _argument)
        return lambda self, *arguments, **keywords: call(self, *arguments, **keywords)

    for name, ufunc in {**BINARY, **COMPARISONS}.items():
        function = _wrap(ufunc, _operand)
        setattr(ndarray, f"__{name}__", lambda self, other, f=function: f(self, other))
        if name in BINARY:
            setattr(ndarray, f"__r{name}__", lambda self, other, f=function: f(other, self))
            setattr(ndarray, f"__i{name}__", lambda self, other, f=function: f(self, other, out=self))
    for name, ufunc in UNARY.items():
        setattr(ndarray, f"__{name}__", _method(_wrap(ufunc, _operand)))
    for name in METHODS + REDUCTIONS:
        setattr(ndarray, name, method(name))


def _method(function):
    return lambda self: function(self)


def _make_module():
    """Make the module that ``import cupy`` will find."""
    module = ModuleType("cupy")
    module.__version__ = "14.0 (stand-in)"
    module.ndarray = ndarray
    for name in ELEMENTWISE:
        setattr(module, name, _wrap(getattr(np, name), _operand))
    for name in REDUCTIONS + FUNCTIONS:
        setattr(module, name, _on_device(getattr(np, name)))
    for name in CREATION + CREATION_LIKE:
        setattr(module, name, _creation(getattr(np, name), like=name in CREATION_LIKE))
    for name in BORROWED:
        setattr(module, name, getattr(np, name))
    for function in (array, asarray, asnumpy):
        setattr(module, function.__name__, function)
    module.linalg = SimpleNamespace(norm=_on_device(np.linalg.norm))
    stride_tricks = SimpleNamespace(sliding_window_view=sliding_window_view, as_strided=as_strided)
    module.lib = SimpleNamespace(stride_tricks=stride_tricks)
    module.RawModule = RawModule
    module.get_default_memory_pool = lambda: SimpleNamespace(
        free_all_blocks=lambda: None, total_bytes=lambda: 0
    )
    module.cuda = SimpleNamespace(
        get_current_stream=lambda: cuda_runtime.streams[-1],
        Stream=cuda_runtime.Stream,
        Event=cuda_runtime.Event,
        Device=cuda_runtime.Device,
        get_elapsed_time=lambda start, end: 1e3 * (end.time - start.time),
        runtime=SimpleNamespace(
            CUDARuntimeError=cuda_runtime.CUDARuntimeError,
            memGetInfo=memory_info,
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
            getDeviceCount=lambda: 1,
            getDevice=lambda: 0,
            cudaDevAttrL2CacheSize=38,
            deviceGetAttribute=lambda attribute, device: {38: 50 << 20}[attribute],
            getDeviceProperties=lambda device: {"name": b"stand-in, no GPU"},
        ),
    )
    return module


_add_methods()
cupy = _make_module()


@contextmanager
def installed():
    """Let ``import cupy`` find the stand-in, and nothing else, within this context."""
    from scratchnet.plans.cuda import selfcheck

    before, checked = sys.modules.get("cupy"), selfcheck.verdict
    sys.modules["cupy"] = cupy
    selfcheck.verdict = lambda xp, precision: selfcheck.Verdict(True, "", is_new=False)
    try:
        with cublas_stand_in.installed():
            yield cupy
    finally:
        selfcheck.verdict = checked
        if before is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = before
