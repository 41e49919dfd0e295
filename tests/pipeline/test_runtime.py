import dataclasses

import pytest
import torch

from fast_train.common.processes import World
from fast_train.pipeline import device
from fast_train.pipeline.config.settings import RunConfig
from fast_train.pipeline.engine import runtime, trial
from fast_train.pipeline.engine.runtime import apply_global_flags, resolve_runtime, running
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.ranks import Ranks


def _resolve(**run):
    return resolve_runtime(RunConfig(device="cpu", **run))


@pytest.mark.parametrize(("computes", "expected"), [(True, torch.bfloat16), (False, None)])
def test_auto_takes_bf16_only_where_the_processor_computes_in_it(monkeypatch, computes, expected):
    """Emulated, bfloat16 is slower than float32 by far."""
    monkeypatch.setattr(runtime, "computes_bf16", lambda device: computes)
    assert _resolve(amp="auto").amp is expected


def test_types_that_are_asked_for():
    assert _resolve(amp="off").amp is None
    assert _resolve(amp="bf16").amp is torch.bfloat16
    assert _resolve(amp="fp16").amp is torch.float16
    assert _resolve(amp="off").image_dtype is torch.float32
    assert _resolve(amp="fp16").image_dtype is torch.float16


def test_the_cpu_runs_eagerly_unless_asked():
    chosen = _resolve()
    assert (chosen.compile, chosen.graph) == (False, False)
    assert _resolve(compile=True).compile


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="apt-get install g"):
        _resolve(compile=True)


def test_compiling_needs_pythons_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"Python\.h is not there; install them .* or add --no-compile"):
        _resolve(compile=True)
    assert not _resolve().compile


def test_what_a_machine_without_a_gpu_says(monkeypatch):
    for kind in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    assert resolve_runtime(RunConfig(device="auto")).device.type == "cpu"
    with pytest.raises(ConfigError, match="no device 'cuda' is visible"):
        resolve_runtime(RunConfig(device="cuda"))
    with pytest.raises(ConfigError, match="no device 'mps' is visible"):
        resolve_runtime(RunConfig(device="mps"))
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        _resolve(graph=True)


@pytest.fixture
def a_mac(monkeypatch):
    """What resolving asks a Mac; the function makes the trial of its GPU end well, or with a reason."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    return lambda reason: monkeypatch.setattr(runtime, "fault", lambda amp=None: reason)


@pytest.mark.parametrize("name", ["auto", "mps"])
def test_a_macs_gpu_trains_eagerly_in_float32_and_plain_memory(a_mac, name):
    a_mac(None)
    chosen = resolve_runtime(RunConfig(device=name, amp="auto"))
    assert (chosen.device.type, chosen.amp, chosen.compile, chosen.graph) == ("mps", None, False, False)
    assert not chosen.channels_last, "PyTorch computes wrong gradients of BatchNorm in it there"
    assert (chosen.describe(), chosen.notes()) == ("Apple's GPU, float32", [])
    assert device.data_device(chosen.device).type == "cpu"
    for bad, message in [
        ({"graph": True}, "--graph needs a CUDA device"), ({"compile": True}, "Apple's GPU; add --no-compile"),
        ({"deterministic": True}, "add --device cpu"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            resolve_runtime(RunConfig(device=name, **bad))


def test_where_the_trial_of_a_macs_gpu_fails_the_cpu_trains_and_a_line_says_why(a_mac):
    a_mac("a step fails there (no such operation)")
    chosen = resolve_runtime(RunConfig(device="auto"))
    assert chosen.device.type == "cpu"
    assert chosen.notes() == [
        "note: this runs on the CPU and not on Apple's GPU: a step fails there (no such operation)"
    ]
    assert resolve_runtime(RunConfig(device="cpu")).notes() == []
    with pytest.raises(ConfigError, match=r"--device mps: a step fails there \(no such operation\); give --device cpu"):
        resolve_runtime(RunConfig(device="mps"))


def test_half_precision_on_a_macs_gpu_has_a_trial_of_its_own(a_mac, monkeypatch):
    monkeypatch.setattr(runtime, "fault", lambda amp=None: amp and f"no {amp}")
    with pytest.raises(ConfigError, match=r"--amp fp16: no torch.float16; give --amp off, or --device cpu"):
        resolve_runtime(RunConfig(device="mps", amp="fp16"))
    monkeypatch.setattr(runtime, "fault", lambda amp=None: None)
    assert resolve_runtime(RunConfig(device="mps", amp="bf16")).amp is torch.bfloat16


def test_ranks_do_not_share_a_macs_gpu(a_mac, monkeypatch):
    a_mac(None)
    monkeypatch.setattr(runtime, "current", lambda: Ranks(World(rank=0, size=2, local_rank=0, local_size=2)))
    assert runtime.resolve_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="several ranks can't share it; give --device cpu"):
        runtime.resolve_device("mps")


def test_the_trial_compares_losses_with_the_cpus(monkeypatch):
    assert trial.fault(device="cpu") is None
    assert "a step fails there (" in trial.fault(device="xpu" if torch.backends.mps.is_available() else "mps")
    rates = iter([0.1, 0.2])
    config = trial.OptimizerConfig
    monkeypatch.setattr(trial, "OptimizerConfig", lambda **given: config(**{**given, "lr": next(rates)}))
    assert "a wrong loss, " in trial.fault(torch.bfloat16, device="cpu")


@pytest.fixture
def one_gpu(monkeypatch):
    """What resolving asks a machine with an H100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_a_gpu_needs_what_triton_builds_its_launchers_with(one_gpu, monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(runtime.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setattr(runtime.shutil, "which", {"gcc": "/usr/bin/gcc"}.get)
    assert resolve_runtime(RunConfig(device="cuda")).graph
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"there is no C compiler; install both .* or add --device cpu"):
        resolve_runtime(RunConfig(device="cuda"))
    monkeypatch.setenv("CC", "tcc")
    assert not resolve_runtime(RunConfig(device="cuda")).compile
    (tmp_path / "Python.h").unlink()
    with pytest.raises(ConfigError, match=r"Python\.h is not there; install both"):
        resolve_runtime(RunConfig(device="cuda"))
    assert resolve_runtime(RunConfig(device="cpu")).device.type == "cpu"


@pytest.mark.parametrize(("name", "chosen"), [("cuda:1", [1]), ("cuda", []), ("cpu", [])])
def test_a_numbered_gpu_becomes_the_current_one(monkeypatch, name, chosen):
    """Triton launches its kernels on the current device, wherever their tensors lie."""
    seen = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append(device.index))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    apply_global_flags(RunConfig(), dataclasses.replace(_resolve(), device=torch.device(name)))
    assert seen == chosen


@pytest.mark.parametrize(("capability", "run", "name"), [
    ((9, 0), {}, "TF32"), ((9, 0), {"tf32": False}, "float32"), ((7, 5), {}, "float32"),
    ((9, 0), {"amp": "bf16"}, "bfloat16"), ((7, 5), {"amp": "auto"}, "float16"),
])  # fmt: skip
def test_a_run_names_what_its_convolutions_compute_in(one_gpu, monkeypatch, capability, run, name):
    """torch computes float32 convolutions in TF32 where it can; a record must not call that float32."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(runtime, "_check_triton_builds", lambda: None)
    chosen = resolve_runtime(RunConfig(device="cuda", **run))
    assert chosen.dtype_name == name
    assert f"GPU, {name}" in chosen.describe()
    assert _resolve().dtype_name == "float32"


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_set_for_convolutions(monkeypatch, tf32):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    with running(RunConfig(tf32=tf32, device="cpu")):
        assert torch.backends.cudnn.allow_tf32 == tf32
    assert torch.backends.cudnn.allow_tf32 != tf32


def test_a_gpu_that_torch_compile_does_not_know_runs_eagerly(one_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080")
    monkeypatch.setattr(runtime, "_check_triton_builds", lambda: None)
    assert not resolve_runtime(RunConfig(device="cuda")).compile
    with pytest.raises(ConfigError, match=r"generate code for GTX 1080; add --no-compile"):
        resolve_runtime(RunConfig(device="cuda", compile=True))


@pytest.mark.parametrize(("amp", "name", "flags", "told"), [
    ("fp16", "float16", "avx512f", True), ("fp16", "float16", "avx512_fp16 amx_tile", False),
    ("bf16", "bfloat16", "avx512f", True), ("bf16", "bfloat16", "avx512_bf16", False), ("off", "float32", "", False),
])  # fmt: skip
def test_half_precision_that_a_processor_only_emulates_is_told(monkeypatch, amp, name, flags, told):
    monkeypatch.setattr(device.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(device, "_cpuinfo", lambda: flags)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flags == "avx512_bf16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    notes = [f"note: this CPU only emulates {name}, far slower than float32; leave out --amp, or give --amp auto"]
    assert _resolve(amp=amp).notes() == (notes if told else [])


@pytest.mark.gpu
def test_gpu_compiles_and_captures_by_default():
    chosen = resolve_runtime(RunConfig(device="auto", amp="auto"))
    assert chosen.device.type == "cuda"
    assert chosen.compile
    assert chosen.graph
    assert chosen.amp in (torch.bfloat16, torch.float16)


@pytest.mark.parametrize(("capability", "cores", "slow"), [
    ("AVX2", 2, True), ("DEFAULT", 1, True), ("AVX2", 4, False), ("AVX512", 2, False),
])  # fmt: skip
def test_a_processor_is_slow_by_its_vectors_and_cores(monkeypatch, capability, cores, slow):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(device, "usable_cores", lambda: cores)
    assert device.is_slow_cpu() == slow
