"""Two pretended GPUs on a CPU: tensors that hold their values here and obey CUDA's rules.

Mixing devices raises, CUDA's autocast and gradient scaler are at work, and what passes between host
and device is counted. Nothing is learned of speed, memory or CUDA's own kernels. It changes torch
for the whole process, so test_gpu.py starts one of its own for it.
"""

from __future__ import annotations

import collections
import contextlib
import subprocess
from pathlib import Path

import torch
import torch.nn.modules.rnn as rnn
from torch.utils import cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

# What autograd asks for to run backward on a device: which there are, and streams, which here do
# nothing. It is preloaded (LD_PRELOAD), so that it is there before torch looks for GPUs.
GUARD = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
static thread_local DeviceIndex current = 0;
struct Pretended final : impl::DeviceGuardImplInterface {
  static constexpr DeviceType kind = DeviceType::CUDA;
  DeviceType type() const override { return kind; }
  Device getDevice() const override { return Device(kind, current); }
  void setDevice(Device d) const override { current = d.index(); }
  void uncheckedSetDevice(Device d) const noexcept override { current = d.index(); }
  Device exchangeDevice(Device d) const override {
    Device old = getDevice(); setDevice(d); return old;
  }
  DeviceIndex deviceCount() const noexcept override { return 2; }
  Stream getStream(Device d) const noexcept override { return Stream(Stream::DEFAULT, d); }
  Stream getDefaultStream(Device d) const override { return getStream(d); }
  Stream exchangeStream(Stream s) const noexcept override { return s; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
static Pretended guard;
static bool known = [] {
  impl::device_guard_impl_registry[static_cast<size_t>(DeviceType::CUDA)].store(&guard);
  return true;
}();
namespace at {
struct CUDAHooks : CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 2; }
  DeviceIndex getCurrentDevice() const override { return current; }
};
REGISTER_CUDA_HOOKS(CUDAHooks);
}
"""
counts: collections.Counter = collections.Counter()  # what passes between host and device
# May take indices and scalars from the host.
aten = torch.ops.aten
FROM_HOST = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = {aten._to_copy.default, aten.copy_.default}
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default}


def compile_guard(folder: Path) -> Path:
    """The library; raises FileNotFoundError or CalledProcessError where it cannot be compiled."""
    source, library = Path(folder) / "guard.cpp", Path(folder) / "guard.so"
    source.write_text(GUARD)
    include = [f"-I{path}" for path in cpp_extension.include_paths()]
    link = [f"-L{path}" for path in cpp_extension.library_paths()]
    command = ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", *include, str(source)]
    command += ["-o", str(library), *link, "-ltorch_cpu", "-lc10"]
    command += [f"-Wl,-rpath,{path}" for path in cpp_extension.library_paths()]
    subprocess.run(command, check=True, capture_output=True)
    return library


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a GPU, around one that holds its values."""

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        return run(operation, arguments, options or {})

    def numpy(self):
        raise TypeError("can't convert a cuda tensor to numpy; use Tensor.cpu() first")

    def tolist(self):
        counts["waits"] += 1
        return self.held.tolist()


def as_device(device) -> torch.device | None:
    """With its number, as CUDA has it; None for none, and for the host."""
    if device is None or torch.device(device).type != "cuda":
        return None
    return torch.device("cuda", torch.device(device).index or 0)


def run(operation, arguments, options):
    """Do it on the host, after the checks that CUDA makes, and send the result where it belongs."""
    tensors = [t for t in tree_flatten((arguments, options))[0] if isinstance(t, torch.Tensor)]
    there = {t.device for t in tensors if isinstance(t, OnGpu)}
    here = [t for t in tensors if not isinstance(t, OnGpu) and t.dim() > 0]
    target = next(iter(there), None)
    if operation not in COPIES and (len(there) > 1 or (there and here)):
        host_index = operation in FROM_HOST and isinstance(arguments[0], OnGpu) and len(there) == 1
        if not host_index:
            raise RuntimeError(f"Expected all tensors to be on the same device in {operation}")
        counts["to the device"] += 1
    if operation in WAITS and there:
        counts["waits"] += 1
    if "device" in options:
        target = as_device(options["device"])
        options = options | {"device": torch.device("cpu")}
    if operation is aten.copy_.default and isinstance(arguments[0], OnGpu) != bool(
        isinstance(arguments[1], OnGpu)
    ):
        counts["to the device" if isinstance(arguments[0], OnGpu) else "waits"] += 1
    if operation is aten._to_copy.default and (target is None) != (not there):
        counts["waits" if there else "to the device"] += 1
    options = {name: value for name, value in options.items() if name != "pin_memory"}
    if operation is aten._softmax.default or operation is aten._log_softmax.default:
        # From half precision straight to float32: CUDA alone can.
        arguments = (arguments[0].float() if arguments[2] else arguments[0], arguments[1], False)
    held = tree_map_only(OnGpu, lambda t: t.held, (arguments, options))
    result = operation(*held[0], **held[1])
    if operation is aten.copy_.default:
        return arguments[0]
    if target is None:
        return result
    result = tree_map_only(torch.Tensor, lambda t: OnGpu(t, target), result)
    if there and any(value.alias_info for value in operation._schema.returns):
        return return_and_correct_aliasing(operation, arguments, options, result)
    return result


class Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options = options or {}
        tensors = tree_flatten((arguments, options))[0]
        if as_device(options.get("device")) or any(isinstance(t, OnGpu) for t in tensors):
            return run(operation, arguments, options)
        return operation(*arguments, **options)


class HostLSTM:
    """The LSTM's own operation has no kernel that could be used: it runs on copies on the host."""

    def __init__(self, own):
        self.own = own

    def __getattr__(self, name):
        return getattr(self.own, name)

    def lstm(self, x, states, weights, *more):
        before = counts.copy()
        devices = {t.device for t in (x, *states, *weights)}
        assert len(devices) == 1, devices
        # In half precision a GPU's LSTM reads and gives half; what follows must bear that.
        half = torch.is_autocast_enabled("cuda") and x.device.type == "cuda"
        with torch.autocast("cuda", enabled=False):
            x, *rest = (t.float().cpu() for t in (x, *states, *weights))
            made = self.own.lstm(x, tuple(rest[:2]), list(rest[2:]), *more)
            made = tuple(t.to(devices.copy().pop()) for t in made)
        counts.clear()
        counts.update(before)
        kind = torch.get_autocast_dtype("cuda")
        return tuple(t.to(kind) for t in made) if half else made


@contextlib.contextmanager
def pretend(capability=(7, 5)):
    """GPUs of that compute capability: (7, 5) is a T4's, without bf16."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.inference_mode = lambda mode=True: torch.no_grad()  # its tensors cannot be wrapped
    torch.cuda._lazy_init = lambda: None
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 2
    torch.cuda.get_device_capability = lambda device=None: capability
    torch.cuda.mem_get_info = lambda device=None: (1e9, 1e9)
    torch.cuda.manual_seed_all = lambda seed: None
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    rnn._VF = HostLSTM(rnn._VF)
    with Pretending():
        yield
