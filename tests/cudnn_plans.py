"""cuDNN's graphs without cuDNN: what each computes in plain PyTorch, and a device that is described instead of here."""

import shutil
import subprocess

import torch
import torch.nn.functional as F

#: What cuDNN asks an H100 about itself (an H100 80GB HBM3's answers).
H100 = """{"maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536,
"multiProcessorCount": 132, "smCountOrigin": 0, "warpSize": 32, "maxSharedMemoryPerBlock": 49152,
"maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536,
"maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0,
"supportCoopLaunch": 1, "totalGlobalMem": 85029158912, "smClockRateKHz": 1980000, "memClockRateKHz": 2619000,
"l2CacheSize": 52428800, "cudaDeviceId": 0, "deviceVer": 900, "driverVer": 13000,
"deviceName": "NVIDIA H100 80GB HBM3"}"""
# The functions of the driver that cuDNN looks for before it compiles. It calls these; their results are a handle.
_FILLING = ("cuLibraryLoadData", "cuLibraryGetKernel")
_DRIVER = """
    cuCtxGetCurrent cuCtxGetLimit cuCtxPopCurrent cuCtxPushCurrent cuDeviceGet cuDeviceGetCount cuDriverGetVersion
    cuGetErrorName cuGetErrorString cuKernelGetAttribute cuKernelSetAttribute cuLaunchCooperativeKernel cuLaunchKernel
    cuLaunchKernelEx cuLibraryLoadFromFile cuLibraryUnload cuLinkAddData cuLinkComplete cuLinkCreate cuLinkDestroy
    cuOccupancyMaxPotentialClusterSize cuStreamGetCtx
"""


def stand_in_driver(folder):
    """Build a CUDA driver in ``folder`` that can do nothing: enough for kernels to be compiled without a GPU. None
    where there is no C compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    code = [f"int {name}(void **made) {{ *made = (void *)1; return 0; }}" for name in _FILLING]
    code += [f"int {name}(void) {{ return 0; }}" for name in _DRIVER.split()]
    (folder / "driver.c").write_text("\n".join(code))
    library = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "driver.c"], check=True)
    return library


class PlanInPyTorch:
    """`kernels.convolution_cudnn.Plan` on any device: the definition of a graph. Sums are added to what is there. They
    are of what is stored; cuDNN may take them before it rounds."""

    def __init__(self, graph, device):
        self.graph = graph

    def run(self, *values):
        *read, result, sums = values
        factors = (self._gradient if self.graph.gradient else self._forward)(result, *read)
        sums += torch.stack([factor.sum((0, 2, 3)) for factor in factors])

    def _forward(self, out, x, filters, shift):
        assert x.shape == self.graph.shape
        out.copy_(F.conv2d(x.float(), filters.float(), stride=self.graph.stride, padding=self.graph.size // 2))
        deviation = out.float() - _wide(shift)
        return deviation, deviation.square()

    def _gradient(self, result, dout, filters, *read):
        dz = F.conv_transpose2d(dout.float(), filters.float(), padding=self.graph.size // 2)
        if self.graph.second:
            dy2, *read = read
            dz = dz + dy2.float()
        x, mean, rstd, *mask = read
        assert x.shape == self.graph.shape
        x_hat = (x.float() - _wide(mean)) * _wide(rstd)
        y = mask[0] if self.graph.from_y else x_hat * _wide(mask[0]) + _wide(mask[1])
        result.copy_(dz * (y > 0))
        return result.float(), result.float() * x_hat


def _wide(vector):
    """[C] to [C, 1, 1]."""
    return vector[:, None, None]
