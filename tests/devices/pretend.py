"""A device that is not the CPU, on a machine that has only a CPU: `torch.device("pretend")`.

What goes wrong on an accelerator first is seldom its arithmetic: two tensors of different devices
meet, a loop reads one number a round and so waits for the device each time, a seed draws other
numbers there. All of this can be seen without one. The tensors here are torch's own, of the device
type that torch keeps for backends outside its tree (PrivateUse1). Their memory is the CPU's, handed
over without a copy, and an operation is torch's CPU kernel on that memory. The same operations in
the same order therefore give the CPU's bits, and every difference is one of what was asked for.

    from tests.devices import pretend      # before the process's first backward pass
    with pretend.watch() as seen:
        work(torch.randn(3, device="pretend"))
    seen.reads, seen.uploads               # counts by (what, line); seen.launches: a number
    seen.bytes_read                        # likewise, of copies and of single numbers

As on CUDA: tensors of two devices do not meet (a CPU tensor without dimensions may, and CPU indices
may, with an upload); `.numpy()` refuses; a generator belongs to one device and the same seed draws
other numbers there; autograd runs in a thread of its own; autocast, GradScaler, `foreach` and
`fused` optimizers work; `torch.pretend.set_sync_debug_mode("error")` raises wherever the host
waits: at reads, at uploads that block, and at operations whose result's size depends on values.

Limits. Nothing is asynchronous: a missing wait, a race or a reused buffer cannot show. There is one
device, without streams, graphs, compilation, collectives or a limit of memory. Arithmetic is the
CPU's, hence nothing about TF32, atomic additions, cuDNN or fused attention (attention is the
composite of matrix products, which rounds otherwise than the CPU's fused kernel). One operation is
one launch, and waits inside a kernel are known only for the operations in WAITING. Sparse,
quantized and nested tensors do not exist, nor storages made without a tensor. A copied module
(`copy.deepcopy`) keeps no views between its tensors. Times mean nothing. Private interfaces of
torch are used; written for torch 2.13.
"""

import contextlib
import ctypes
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

DEVICE = "pretend"
# Operations of which CUDA's kernel waits for the device: the size of the result, or whether the
# factorization succeeded, is decided by values.
WAITING = frozenset((
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "bincount", "histc", "repeat_interleave", "_linalg_eigh",
    "linalg_eig", "_linalg_eigvals", "_linalg_svd",
))  # fmt: skip
# What autocast runs in half precision, and what in float32.
_HALF = (
    "mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "convolution", "conv1d", "conv2d",
    "conv3d", "conv_transpose2d.input", "mv", "addmv", "scaled_dot_product_attention",
)  # fmt: skip
_SINGLE = (
    "exp", "log", "log1p", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "rsqrt", "reciprocal",
    "softplus", "layer_norm", "group_norm", "nll_loss", "cross_entropy_loss", "mse_loss",
    "l1_loss", "smooth_l1_loss", "kl_div", "softmax.int", "log_softmax.int", "sum",
    "sum.dim_IntList", "prod", "cumsum", "norm.Scalar",
)  # fmt: skip
_ROOT = Path(__file__).resolve().parents[2]
_PRETEND, _CPU = 12, 1  # DLPack's numbers: a device of an extension, and the CPU
_aten, _key = torch.ops.aten, torch._C.DispatchKey
_plain_generator = torch._C.Generator


# ---- what is counted ---------------------------------------------------------------------------


@dataclass
class Seen:
    """Counts of one `watch`: reads, uploads and bytes_read are counted by (what, "file:line")."""

    reads: Counter = field(default_factory=Counter)
    uploads: Counter = field(default_factory=Counter)
    launches: int = 0
    bytes_read: Counter = field(default_factory=Counter)

    @property
    def waits(self) -> int:
        """How often the host waited: reads, and uploads that block."""
        return self.reads.total() + self.uploads.total()

    def __str__(self) -> str:
        rows = [*self.reads.most_common(), *self.uploads.most_common()]
        head = f"{self.launches} launches, {self.waits} waits"
        return "\n".join([head, *(f"  {n:5d} {what} at {line}" for (what, line), n in rows)])


_watches: list[Seen] = []
_refusing = False


@contextlib.contextmanager
def watch():
    """Count launches, reads and uploads within the block."""
    _watches.append(seen := Seen())
    try:
        yield seen
    finally:
        _watches.remove(seen)


def _where() -> str:
    """The innermost line of this repository; of the main thread where autograd's own asks."""
    for frame in (sys._getframe(), sys._current_frames()[threading.main_thread().ident]):
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path != Path(__file__) and _ROOT in path.parents and ".venv" not in path.parts:
                return f"{path.relative_to(_ROOT)}:{frame.f_lineno}"
            frame = frame.f_back
    return "elsewhere"


def _waited(what: str, *, upload: bool = False, size: int = 0) -> None:
    for seen in _watches:
        seen.bytes_read[what, _where()] += size
        (seen.uploads if upload else seen.reads)[what, _where()] += 1
    if _refusing:
        raise RuntimeError(f"called a synchronizing operation: {what} at {_where()}")


# ---- memory --------------------------------------------------------------------------------------

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class _ManagedTensor(ctypes.Structure):
    """The head of DLPack's DLManagedTensor: where the data are and on which device."""

    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("id", ctypes.c_int32)]


def _handed_over(tensor: Tensor, device: int) -> Tensor:
    """A tensor of the other device over the memory of this one, which it keeps alive."""
    if tensor.is_conj():  # lazy conjugates and negatives have no DLPack form
        return _handed_over(tensor.conj(), device).conj()
    if tensor.is_neg():
        return torch._neg_view(_handed_over(torch._neg_view(tensor), device))
    capsule = torch.utils.dlpack.to_dlpack(tensor.detach())
    _ManagedTensor.from_address(_capsule_pointer(capsule, b"dltensor")).device_type = device
    return torch.utils.dlpack.from_dlpack(capsule)


def _here(x: object) -> bool:
    return isinstance(x, Tensor) and x.device.type == DEVICE


# ---- generators ----------------------------------------------------------------------------------

_SALT = 0x5EED0FDE71CE
_salt = _SALT
_of_device: set[int] = set()  # torch hands a kernel a new Python object for the same generator


class _DeviceGenerator(_plain_generator):
    """A generator of the device: a CPU generator with seeds of its own."""

    def __new__(cls, *_):
        made = super().__new__(cls)
        _of_device.add(made._cdata)
        return made

    def __del__(self):
        _of_device.discard(self._cdata)

    @property
    def device(self):
        return torch.device(DEVICE, 0)

    def manual_seed(self, seed):
        super().manual_seed(seed ^ _salt)
        return self


@contextlib.contextmanager
def draws_of_the_cpu():
    """Generators seeded within draw what a CPU's would: for comparisons of noise with the CPU."""
    global _salt
    _salt = 0
    try:
        yield
    finally:
        _salt = _SALT


class _GeneratorType(type):
    """What stands for `torch.Generator`: makes either kind, and both are instances of it."""

    def __call__(cls, device="cpu"):
        here = torch.device(device).type == DEVICE
        return _DeviceGenerator() if here else _plain_generator(device)

    def __instancecheck__(cls, x):
        return isinstance(x, _plain_generator)


class Generator(metaclass=_GeneratorType):
    """See `_GeneratorType`."""


def _refuses_foreign_generator(home: object, name: str) -> None:
    """CPU kernels would take a generator of this device, since it is one of theirs below."""
    plain = getattr(home, name)

    def checked(*args, **kwargs):
        given = kwargs.get("generator")
        if isinstance(given, _DeviceGenerator):
            made = torch.device(
                kwargs.get("device") or (args[0].device if home is Tensor else "cpu")
            )
            if made.type != DEVICE:
                raise RuntimeError(
                    f"Expected a '{made.type}' device type for generator but found '{DEVICE}'"
                )
        return plain(*args, **kwargs)

    setattr(home, name, checked)


@contextlib.contextmanager
def _stream_of_the_device(drawn: bool):
    """Draws of the device without a generator take the device's stream, not the CPU's."""
    if not drawn:
        yield
        return
    cpu = torch.default_generator.get_state()
    torch.default_generator.set_state(_default.get_state())
    try:
        yield
    finally:
        _default.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(cpu)


# ---- operations ----------------------------------------------------------------------------------


class _Call:
    """One operation of the device, run by the CPU's kernel on the same memory."""

    def __init__(self, op, args: tuple, kwargs: dict):
        self.op, self.name = op, op._schema.name.removeprefix("aten::")
        self.returned: dict[int, Tensor] = {}  # a CPU tensor's id -> the device's tensor
        self.alias: dict[int, Tensor] = {}  # a device tensor's id -> its CPU alias
        self.foreign: list[Tensor] = []
        self.dtype = None  # of the first floating tensor: that of numbers which stand for tensors
        self.generator = False
        self.given = args
        self.args = [self.enter(a) for a in args]
        self.kwargs = {k: self.enter(v) for k, v in kwargs.items() if k != "pin_memory"}

    def enter(self, x):
        if isinstance(x, (list, tuple)):
            return type(x)(self.enter(v) for v in x)
        if isinstance(x, torch.device):
            return torch.device("cpu")
        if isinstance(x, _plain_generator):
            if x._cdata not in _of_device:
                raise RuntimeError(
                    f"Expected a '{DEVICE}' device type for generator but found '{x.device.type}'"
                )
            self.generator = True
        if not isinstance(x, Tensor):
            return x
        if not _here(x):
            self.foreign.append(x)
            return x
        if id(x) not in self.alias:
            self.alias[id(x)] = cpu = _handed_over(x, _CPU)
            self.returned[id(cpu)] = x
            if self.dtype is None and x.is_floating_point():
                self.dtype = x.dtype
        return self.alias[id(x)]

    def leave(self, x):
        if isinstance(x, (list, tuple)):
            return type(x)(self.leave(v) for v in x)
        if not isinstance(x, Tensor):
            return x
        if id(x) not in self.returned:
            self.returned[id(x)] = _handed_over(x, _PRETEND)
            self.kept = (*getattr(self, "kept", ()), x)  # ids stay unique while the call lasts
        return self.returned[id(x)]

    def run(self):
        self.check_devices()
        if self.name in WAITING:
            one = self.name == "_local_scalar_dense"
            _waited(self.name, size=self.given[0].element_size() if one else 0)
        self.numbers_as_tensors()
        drawn = torch.Tag.nondeterministic_seeded in self.op.tags and not self.generator
        empty = [k for k, v in self.kwargs.items() if self.is_empty_out(k, v)]
        targets = {k: self.returned[id(self.kwargs[k])] for k in empty}
        for k in empty:  # the kernel makes it larger, which memory of others cannot be
            self.kwargs[k] = torch.empty(0, dtype=self.kwargs[k].dtype)
            self.returned[id(self.kwargs[k])] = targets[k]
        with torch._C._AutoDispatchBelowAutograd(), _stream_of_the_device(drawn):
            out = self.op(*self.args, **self.kwargs)
        for k in empty:
            made = _handed_over(self.kwargs[k], _PRETEND)
            _aten.set_.source_Tensor._op_dk(_key.CPU, targets[k], made)
        if _watches and self.name not in ("empty", "empty_strided", "_local_scalar_dense"):
            for seen in _watches:
                seen.launches += 1
        return self.leave(out)

    def check_devices(self) -> None:
        indexing = self.name.startswith(("index", "_index", "_unsafe_index"))
        for tensor in self.foreign if self.alias else ():
            if not tensor.ndim or not tensor.numel():
                continue
            if not indexing:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, {DEVICE}:0 and {tensor.device}! (aten::{self.name})"
                )
            _waited("host index", upload=True)
        if indexing:
            rows = [x for x in self.given[1:2] if isinstance(x, (list, tuple))]
            if any(i is not None and i.dtype in (torch.bool, torch.uint8) for r in rows for i in r):
                _waited(f"{self.name} by a mask")

    def numbers_as_tensors(self) -> None:
        """torch hands over a number where it wrapped one in a tensor; few operations take it so."""
        if self.name.strip("_") in ("add", "sub", "mul", "div"):
            return
        for at, (value, said) in enumerate(zip(self.args, self.op._schema.arguments)):
            if isinstance(value, (int, float)) and str(said.type) == "Tensor":
                self.args[at] = torch.tensor(value, dtype=self.dtype)

    def is_empty_out(self, name: str, value: object) -> bool:
        said = next((a for a in self.op._schema.arguments if a.name == name), None)
        return bool(said and said.is_out and isinstance(value, Tensor) and not value.numel())


def _run(op, args, kwargs):
    return _Call(op, args, kwargs).run()


def _metadata(op, args, kwargs):
    """Views and `set_`: torch's own code, which touches sizes and storages and no memory."""
    return op._op_dk(_key.CPU, *args, **kwargs)


def _copy(op, args, kwargs):
    to, source, *rest = args
    non_blocking = rest[0] if rest else kwargs.get("non_blocking", False)
    if _here(source) and not _here(to):
        _waited("device to host", size=source.nbytes)
    elif _here(to) and not _here(source) and source.numel() and not non_blocking:
        _waited("host to device", upload=True)
    target, values = (_handed_over(t, _CPU) if _here(t) else t.detach() for t in (to, source))
    target.copy_(values)
    for seen in _watches:
        seen.launches += 1
    return to


def _resize(op, args, kwargs):
    tensor, size = args[:2]
    count = torch.Size(size).numel()
    if count > tensor.numel():
        larger = torch.empty(count, dtype=tensor.dtype, device=DEVICE)
        _handed_over(larger, _CPU)[: tensor.numel()] = _handed_over(tensor, _CPU).flatten()
        _aten.set_.source_Tensor._op_dk(_key.CPU, tensor, larger)
    strides, storage = torch.empty(size, device="meta").stride(), tensor.untyped_storage()
    where = (storage, tensor.storage_offset(), size, strides)
    return _aten.set_.source_Storage_storage_offset._op_dk(_key.CPU, tensor, *where)


def _convolution(op, args, kwargs):
    return _run(_aten.convolution.default, args, kwargs)


def _convolution_backward(op, args, kwargs):
    gradient, x, weight, *how = args
    stride, padding, dilation, transposed, output_padding, groups, wanted = how
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    how = ([channels], stride, padding, dilation, transposed, output_padding, groups, wanted)
    return _run(_aten.convolution_backward.default, (gradient, x, weight, *how), kwargs)


def _lstm_cell(op, args, kwargs):
    """The fused cell has no derivative of its own outside CUDA: its formula, on the device."""
    from_input, from_state, c, *biases = args
    gates = from_input + from_state
    for bias in biases:
        gates = gates if bias is None else gates + bias
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c, gates


_SPECIAL = {
    "copy_": _copy,
    "resize_": _resize,
    "convolution_overrideable": _convolution,
    "convolution_backward_overrideable": _convolution_backward,
    "_fused_sdp_choice": lambda op, args, kwargs: 0,  # the composite of matrix products
    "_efficientzerotensor": lambda op, args, kwargs: torch.zeros(*args, **kwargs),
    "set_.source_Storage": _metadata,
    "set_.source_Storage_storage_offset": _metadata,
    "set_.source_Tensor": _metadata,
}


def _operation(name: str):
    packet, _, overload = name.partition(".")
    return getattr(getattr(_aten, packet, None), overload or "default", None)


def _kernel_of(name: str, op):
    if found := _SPECIAL.get(name):
        return found
    alias = [r.alias_info for r in op._schema.returns if r.alias_info is not None]
    return _metadata if any(not a.is_write for a in alias) else _run


def _register_operations() -> list:
    known = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    names = {n.removeprefix("aten::") for n in known if n.startswith("aten::")} | set(_SPECIAL)
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith(("aten::_foreach_", "aten::_fused_", "aten::_amp_")):
            names.add(f"{schema.name}.{schema.overload_name}".rstrip(".").removeprefix("aten::"))
    library = torch.library.Library("aten", "IMPL")
    for name in sorted(names):
        if (op := _operation(name)) is not None:
            kernel = _kernel_of(name, op)
            library.impl(name, lambda *a, _k=kernel, _op=op, **k: _k(_op, a, k), "PrivateUse1")
    cell = _operation("_thnn_fused_lstm_cell")
    library.impl("_thnn_fused_lstm_cell", lambda *a: _lstm_cell(cell, a, {}), "AutogradPrivateUse1")
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(lambda op, *a, **k: _run(op, a, k), "PrivateUse1")
    return [library, rest]


def _register_autocast() -> list:
    library, rest = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    key = torch._C.DispatchKeySet(_key.AutocastPrivateUse1)

    def cast(x, dtype):
        if isinstance(x, (list, tuple)):
            return type(x)(cast(v, dtype) for v in x)
        narrow = _here(x) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if narrow else x

    def rule(op, half: bool):
        def call(*args, **kwargs):
            dtype = torch.get_autocast_dtype(DEVICE) if half else torch.float32
            with torch._C._ExcludeDispatchKeyGuard(key):
                kwargs = {k: cast(v, dtype) for k, v in kwargs.items()}
                return op(*cast(args, dtype), **kwargs)

        return call

    for name in _HALF + _SINGLE:
        library.impl(name, rule(_operation(name), name in _HALF), "AutocastPrivateUse1")
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return [library, rest]


# ---- torch.pretend -------------------------------------------------------------------------------


class _Module:
    """`torch.pretend`: what torch and code for accelerators ask of a device's module."""

    _is_in_bad_fork = staticmethod(lambda: False)
    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    synchronize = set_device = empty_cache = staticmethod(lambda *_: None)
    reset_peak_memory_stats = staticmethod(lambda *_: None)
    max_memory_allocated = memory_allocated = staticmethod(lambda *_: 0)
    mem_get_info = staticmethod(lambda *_: (2**33, 2**34))
    get_device_name = staticmethod(lambda *_: "pretend")
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])
    device = staticmethod(lambda _: contextlib.nullcontext())

    @staticmethod
    def manual_seed(seed):
        _default.manual_seed(seed)

    manual_seed_all = manual_seed

    @staticmethod
    def get_rng_state(device=None):
        return _default.get_state()

    @staticmethod
    def set_rng_state(state, device=None):
        _default.set_state(state)

    @staticmethod
    def get_rng_state_all():
        return [_default.get_state()]

    @staticmethod
    def set_rng_state_all(states):
        _default.set_state(states[0])

    @staticmethod
    def set_sync_debug_mode(mode):
        global _refusing
        _refusing = mode == "error"


def _moved(storage, device: str):
    """A copy of a storage on either device: torch's own copy knows no such device."""
    there = storage.device.type
    held = torch.empty(0, dtype=torch.uint8, device=there).set_(storage)
    return (held.clone() if there == device else held.to(device)).untyped_storage()


def _install_storages() -> None:
    """For `torch.save`, `torch.load` and `copy.deepcopy`."""
    base = torch.storage._StorageBase
    to, clone, cpu = base.to, base.clone, base.cpu

    def concerned(storage, device):
        return DEVICE in (storage.device.type, torch.device(device).type)

    setattr(base, DEVICE, lambda self, *_, **__: _moved(self, DEVICE))
    base.cpu = lambda self: _moved(self, "cpu") if concerned(self, "cpu") else cpu(self)
    base.clone = lambda self: _moved(self, DEVICE) if concerned(self, "cpu") else clone(self)
    base.to = lambda self, *, device, non_blocking=False: (
        _moved(self, torch.device(device).type)
        if concerned(self, device)
        else to(self, device=device, non_blocking=non_blocking)
    )


def _install() -> list:
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(DEVICE, _Module())
    torch.Generator = Generator
    for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"):
        _refuses_foreign_generator(torch, name)
    for name in ("normal_", "uniform_", "bernoulli_", "random_", "exponential_"):
        _refuses_foreign_generator(Tensor, name)
    _install_storages()
    Tensor.pin_memory = lambda self, *_: self
    return [_register_operations(), _register_autocast()]


_default = _DeviceGenerator()
_kept = _install()  # a library's registrations end with it
_default.manual_seed(0)
