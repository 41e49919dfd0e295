"""The command on a tiny set, the floors against numbers worked out by hand, kernels by their names."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fast_train.benchmarks.lab import cli as step_lab
from fast_train.benchmarks.lab import floors, profile, registers
from fast_train.benchmarks.lab import options as lab_options
from fast_train.benchmarks.lab import run as lab_run
from fast_train.benchmarks.lab.cli import Flags
from fast_train.benchmarks.lab.losses import compare
from fast_train.benchmarks.lab.records import OPTIONS, POINTS
from fast_train.benchmarks.lab.run import kernel_rows
from fast_train.pipeline.config.settings import ModelConfig

ROOT = Path(__file__).parents[2]


def _run(path, out, *flags):
    # By SGD: Muon brings small directions of a gradient to full length, and with them what is left of rounding.
    arguments = ["--data", str(path), "--device", "cpu", "--arch", "resnet8", "--recipe", "cpu-sgd", "--quick"]
    arguments += ["--out", str(out), *flags]
    status = step_lab.main(arguments)
    return status, json.loads((out / "step-lab.json").read_text())


@pytest.fixture(scope="module")
def lab(prepared_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lab_run, "repeat_seconds", lambda **_: 0.02)
        status, data = _run(prepared_path, out)
    assert status == 0
    return data, (out / "step-lab.md").read_text()


def test_each_option_and_point_is_measured_or_listed_with_a_reason(lab):
    data, _ = lab
    measured = {(row["details"]["point"], row["details"]["option"]) for row in data["rows"] if row["suite"] == "step"}
    assert {
        (point, option) for point in ("step", "end-to-end") for option in ("plain", "fused norm", "fused conv")
    } <= measured
    listed = {(skipped["suite"], skipped["name"].split(",")[0]) for skipped in data["skipped"]}
    for option in Flags().chosen_options():
        for point in ("step", "end-to-end", "kernels", "losses"):
            in_losses = point == "losses" and option.name in {"plain", *data["losses"]["difference"]}
            anyhow = (point, "all options") in listed
            assert (point, option.name) in measured | listed or in_losses or anyhow, (point, option.name)
    assert ("augmentation", "batch 8") in listed
    assert ("step", "the captured step") in listed
    assert all(skipped["reason"] for skipped in data["skipped"])


def test_comparisons_follow_from_the_rows(lab):
    rows = {row["name"]: row for row in lab[0]["rows"] if row["suite"] == "step"}
    plain, fused = rows["plain, batch 32"], rows["fused norm, batch 32"]
    assert plain["details"]["over_plain"] == 1
    assert fused["details"]["over_plain"] == pytest.approx(fused["value"] / plain["value"])
    fed = rows["plain, batch 32, resident loader"]
    assert fed["details"]["share_of_step"] == pytest.approx(fed["value"] / plain["value"])
    assert "fused norm" in fused["details"]["runtime"]


def test_losses_of_an_option_stay_within_those_of_another_seed(lab):
    """On a CPU the fused ones round in float32 as the plain one, so their losses are nearly the same; seeds differ."""
    losses = lab[0]["losses"]
    first, second = (losses["losses"][f"plain, seed {seed}"] for seed in (0, 1))
    assert len(first) == losses["steps"] == 8
    assert first != second
    for option in ("fused norm", "fused conv"):
        assert losses["losses"][option] == pytest.approx(first, rel=0.1)
    assert all(0 < loss < 20 for loss in first)


def test_the_augmentation_of_a_cpu_is_compared_with_its_reference(lab):
    data, text = lab
    rows = {row["name"]: row for row in data["rows"] if row["suite"] == "augmentation-cpu"}
    case = "reflect crop 4, flip, cutout 8"
    assert set(rows) == {
        f"{kind}, {case}: {which}" for kind in ("float32", "bfloat16") for which in ("reference", "cpu")
    }
    fast, reference = rows[f"float32, {case}: cpu"], rows[f"float32, {case}: reference"]
    assert fast["details"]["over_reference"] == pytest.approx(fast["value"] / reference["value"])
    assert reference["details"]["over_reference"] is None
    assert "times the reference" in text


def test_a_point_of_a_cpu_is_measured_elsewhere_only_where_it_is_asked_for():
    assert "augmentation-cpu" in Flags().points(cpu=True)
    assert "augmentation-cpu" not in Flags().points(cpu=False)
    assert Flags(only="augmentation-cpu").points(cpu=False) == ["augmentation-cpu"]


def test_the_text_says_what_is_computed_and_what_is_measured(lab):
    _, text = lab
    assert "Floors, computed, not measured" in text
    assert "measured here" in text
    assert "| conv1 |" in text


def test_no_time_means_no_step_and_says_so(prepared_path, tmp_path, instant):
    status, data = _run(prepared_path, tmp_path, "--only", "step", "--minutes", "0")
    assert status == 0
    assert not [row for row in data["rows"] if row["suite"] == "step"]
    reasons = {skipped["name"]: skipped["reason"] for skipped in data["skipped"]}
    assert "--minutes" in reasons["plain, batch 32"]
    assert {point for point in POINTS if point != "step"} <= {skipped["suite"] for skipped in data["skipped"]}


def test_parts_of_the_fused_norm_are_of_a_gpu(prepared_path, tmp_path, instant):
    status, data = _run(prepared_path, tmp_path, "--only", "step", "--options", "fused norm,norm without bits")
    assert status == 0
    assert [row["name"] for row in data["rows"] if row["suite"] == "step"] == ["fused norm, batch 32"]
    reasons = {skipped["name"]: skipped["reason"] for skipped in data["skipped"]}
    assert reasons["norm without bits, batch 32"] == "it is about kernels of a GPU"


def test_tma_is_told_to_be_missing(monkeypatch):
    """On a GPU that has none; the other switches are about any."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    runtime = SimpleNamespace(device=torch.device("cuda"), amp=torch.bfloat16)
    reasons = {option.name: lab_options.why_not(option, runtime) for option in OPTIONS if option.switches}
    assert "compute capability 9.0" in reasons.pop("conv with tma")
    assert not any(reasons.values())


def test_floors_of_another_machine(prepared_path, tmp_path):
    rates = ["--copy-bandwidth", "1e9", "--matrix-rate", "1e12", "--batch-sizes", "7"]
    _, data = _run(prepared_path, tmp_path, "--only", "floors", *rates)
    assert not data["rows"]
    found = data["floors"]
    assert (found["batch"], found["copy_bytes_per_second"], found["given"]) == (7, 1e9, True)
    assert sum(found["groups"].values()) == pytest.approx(sum(part["floor_seconds"] for part in found["parts"]))


@pytest.mark.parametrize(("flags", "message"), [
    (["--only", "steps"], "did you mean 'step'"),
    (["--batch-sizes", "12,many"], "are not sizes"),
    (["--batch-sizes", "0"], "are not sizes"),
    (["--copy-bandwidth", "-1"], "must be above 0"),
    (["--minutes", "-1"], "--minutes -1.0 must be 0 or more"),
    (["--only", ","], "--only ',' names no point"),
    (["--options", "fused norms"], "did you mean 'fused norm'"),
    (["--only", "floors", "--options", "plain"], "--options means nothing without a point of steps"),
    (["--only", "step", "--matrix-rate", "1e12"], "--matrix-rate means nothing without the point floors"),
    (["--data", "nowhere"], "nowhere"),
])  # fmt: skip
def test_bad_input_is_one_line(prepared_path, tmp_path, capsys, flags, message):
    assert step_lab.main(["--data", str(prepared_path), "--device", "cpu", "--out", str(tmp_path / "lab"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "lab").exists()


def _floors(prepared_path, *flags):
    arguments = ["--data", str(prepared_path), "--device", "cpu", "--arch", "resnet8", "--only", "floors"]
    return step_lab.main([*arguments, "--copy-bandwidth", "1e9", "--matrix-rate", "1e12", *flags])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--only", "floors"], False),
        (["--only", "kernels"], True),
        (["--only", "kernels", "--batch-sizes", "64"], False),
    ],
)
def test_smaller_batches_are_said_where_steps_take_them(flags, said, prepared_path, tmp_path):
    arguments = ["--data", str(prepared_path), "--device", "cpu", "--arch", "resnet50", "--minutes", "0", *flags]
    if "floors" in flags:
        arguments += ["--copy-bandwidth", "1e9", "--matrix-rate", "1e12"]
    assert step_lab.main([*arguments, "--out", str(tmp_path / "lab")]) == 0
    warnings = json.loads((tmp_path / "lab" / "step-lab.json").read_text())["warnings"]
    found = [warning for warning in warnings if "images instead of" in warning]
    assert [warning.startswith("steps of recipe fast-sgd take 16 images") for warning in found] == [True] * said


def test_no_report_is_overwritten(prepared_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _floors(prepared_path) == 0
    first = (tmp_path / "reports" / "step-lab" / "step-lab.json").read_bytes()
    assert _floors(prepared_path) == 0
    assert (tmp_path / "reports" / "step-lab-2" / "step-lab.json").exists()
    capsys.readouterr()
    assert _floors(prepared_path, "--out", "reports/step-lab") == 2
    assert "holds a report already; give another --out" in capsys.readouterr().err
    assert (tmp_path / "reports" / "step-lab" / "step-lab.json").read_bytes() == first


def test_an_error_of_any_kind_costs_no_other_point_its_figures(prepared_path, tmp_path, monkeypatch, instant):
    def fail(*args, **options):
        raise OSError("Too many open files")

    monkeypatch.setattr("fast_train.benchmarks.lab.run.augmentation.measure", fail)
    status, data = _run(prepared_path, tmp_path, "--only", "floors,augmentation")
    assert status == 1
    assert data["floors"]
    assert "failed: Too many open files" in {skipped["reason"] for skipped in data["skipped"]}


def test_a_batch_larger_than_the_split_is_listed(prepared_path, tmp_path, instant):
    status, data = _run(prepared_path, tmp_path, "--only", "step", "--batch-sizes", "4096")
    assert status == 1
    assert any("fewer than one batch" in skipped["reason"] for skipped in data["skipped"])


def _parts(**model):
    return {(part.layer, part.what): part for part in floors.parts(ModelConfig(**model), itemsize=2)}


def test_floors_of_one_layer_by_hand():
    """layer1.0 of ResNet-18 on 32x32 at batch 1,024 in bfloat16: 64 x 32 x 32 = 65,536 values of an image."""
    found = _parts(arch="resnet18")
    convolution = found["layer1.0.conv1", "forward"]
    # 1,024 x 65,536 outputs of 64 x 3 x 3 = 576 multiply-adds.
    assert 1024 * convolution.flops == 77_309_411_328
    # 134,217,728 bytes in, as many out, and 64 x 576 weights of two.
    assert convolution.moved(1024) == 268_435_456 + 73_728
    assert convolution.seconds(1024, copy=3.0e12, matrix=798e12) == pytest.approx(77_309_411_328 / 798e12)
    assert convolution.seconds(1024, copy=1.0e12, matrix=798e12) == pytest.approx(268_509_184 / 1e12)
    # Without residual: x twice, y; then dy and x twice, dx.
    assert found["layer1.0.bn1", "forward"].moved(1024) == 3 * 134_217_728
    assert found["layer1.0.bn1", "backward"].moved(1024) == 5 * 134_217_728
    # And the residual and a bit a value; two gradients, x, the bits, their sum; the sum, x, dx.
    assert found["layer1.0.bn2", "forward"].moved(1024) == 4 * 134_217_728 + 8_388_608
    assert found["layer1.0.bn2", "backward"].moved(1024) == 7 * 134_217_728 + 8_388_608
    # A projection's norm is applied by the block's last one, whose residual its x is: x once more; x twice and dx.
    assert found["layer2.0.downsample.1", "forward"].moved(1024) == 67_108_864
    assert found["layer2.0.downsample.1", "backward"].moved(1024) == 3 * 67_108_864
    # The stride halves the image before the convolution reads it: 128 x 16 x 16 out of 64 x 32 x 32, a 1x1 kernel.
    projection = found["layer2.0.downsample.0", "data gradient"]
    assert projection.flops == 2 * 32_768 * 64
    assert projection.bytes == 2 * (65_536 + 32_768)


def test_floors_of_the_whole_network():
    found = _parts(arch="resnet18")
    # 3.33 GFLOP for a training image, 1.11 of them forward.
    assert sum(part.flops for part in found.values()) == pytest.approx(3.33e9, rel=5e-3)
    assert sum(part.flops for (_, what), part in found.items() if what == "forward") == pytest.approx(1.11e9, rel=5e-3)
    assert ("conv1", "data gradient") not in found
    assert ("conv1", "weight gradient") in found
    # Nothing comes after the last block, so its norm has one gradient: one pass less.
    last, before = found["layer4.1.bn2", "backward"], found["layer4.0.bn2", "backward"]
    assert before.bytes - last.bytes == 2 * 8192


@pytest.mark.parametrize("arch", ["resnet50", "preact-resnet20", "plain-20", "resnet8"])
def test_every_convolution_and_norm_has_floors(arch):
    layers = {layer for layer, _ in _parts(arch=arch)}
    from torch import nn

    from fast_train.pipeline.models import build_model

    model = build_model(ModelConfig(arch=arch))
    wanted = {name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))}
    assert layers == wanted


@pytest.mark.parametrize(("kernel", "group"), [
    ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_execute_kernel__5x_cudnn",
     profile.CONVOLUTION_FORWARD),
    ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_128x64_64x3_nhwc_unity_stride>",
     profile.CONVOLUTION_DATA),
    ("sm80_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize64x256x32",
     profile.CONVOLUTION_WEIGHT),
    ("triton_tem_fused_convolution_3", profile.CONVOLUTION_FORWARD),
    ("triton_tem_fused_convolution_backward_9", profile.CONVOLUTION_GRADIENT),
    ("triton_red_fused__native_batch_norm_legit_functional_convolution_relu_2", profile.NORM),
    ("triton_poi_fused_add_native_batch_norm_backward_threshold_backward_14", profile.NORM),
    ("gradient_sums_kernel", profile.NORM),
    ("apply_kernel", profile.NORM),
    ("convolution_kernel", profile.CONVOLUTION_FORWARD),
    ("cudnn_generated_fort_native_sm90_convFwd_pointwise_reduction_knob_3_128x128x64_5_0", profile.CONVOLUTION_FORWARD),
    ("cudnn_generated_fort_native_sm90_convBwdData_pointwise_reduction_knob_6_256x64x64_4_0", profile.CONVOLUTION_DATA),
    ("data_gradient_kernel", profile.CONVOLUTION_DATA),
    ("input_gradient_kernel", profile.NORM),
    ("augment_kernel", profile.AUGMENTATION),
    ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::FusedSgdMathFunctor<float, 2>>",
     profile.OPTIMIZER),
    ("Memcpy DtoD (Device -> Device)", profile.REST),
    ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", profile.MATRIX),
    ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", profile.MATRIX),
    ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn", profile.MATRIX),
])  # fmt: skip
def test_kernels_are_told_apart_by_their_names(kernel, group):
    assert profile.classify(kernel) == group


def test_groups_add_up():
    sums = profile.by_group(
        {"augment_kernel": 1.0, "triton_poi_fused_0": 2.0, "triton_red_fused_1": 3.0, "Memset": 4.0}
    )
    assert sums[profile.NORM] == 5.0
    assert (sums[profile.AUGMENTATION], sums[profile.REST], sums[profile.OPTIMIZER]) == (1.0, 4.0, 0.0)
    assert set(sums) == set(profile.GROUPS)


def test_rows_of_kernels():
    """Two repeats; the augmentation takes 0.1 of 10 ms in the first and 0.3 of 10 ms in the second."""
    rows = []
    taken = [{"augment_kernel": 1e-4, "sm80_xmma_fprop": 9.9e-3}, {"augment_kernel": 3e-4, "sm80_xmma_fprop": 9.7e-3}]
    kernel_rows(SimpleNamespace(add=rows.append), "plain, batch 8", taken)
    by_name = {row.name.removeprefix("plain, batch 8: "): row for row in rows}
    assert set(by_name) == {"all", *profile.GROUPS}
    assert by_name["all"].repeats == pytest.approx((10.0, 10.0))
    assert by_name["all"].details.longest[0].kernel == "sm80_xmma_fprop"
    assert by_name[profile.AUGMENTATION].repeats == pytest.approx((0.1, 0.3))
    assert by_name[profile.AUGMENTATION].details.share == pytest.approx(0.02)
    assert by_name[profile.NORM].value == 0
    with pytest.raises(RuntimeError, match="saw no kernel"):
        kernel_rows(SimpleNamespace(add=rows.append), "plain, batch 8", [{}])


def test_the_verdict_on_losses():
    """The last quarter of eight steps is two; the seeds' ends are 1.0, 1.3 and 1.1."""
    plain = {0: [3.0] * 6 + [1.1, 0.9], 1: [2.0] * 6 + [1.3, 1.3], 2: [2.5] * 6 + [1.0, 1.2]}
    found = compare(plain, {"near": [9.0] * 6 + [1.2, 1.2], "far": [3.0] * 6 + [1.5, 1.5]})
    assert found["noise"] == pytest.approx(0.3)
    assert found["difference"] == pytest.approx({"near": 0.2, "far": 0.5})
    assert found["within_noise"] == {"near": True, "far": False}


@pytest.mark.slow
def test_the_kernels_compile_for_an_h100_without_one(tmp_path):
    """And spill no register, read activations 16 bytes at a time, and leave room for several programs a processor;
    convolutions multiply by warp groups."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fast_train.benchmarks.lab.registers"]
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    said = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    records = json.loads(said.splitlines()[-1])
    # What reads no rows of activations: sums, and crops, whose bytes lie where a box says.
    crops = {"draw_kernel", "crop_kernel", "finish_kernel"}
    narrow = {"statistics_kernel", "join_sums_kernel", *crops}
    assert len({record["kernel"] for record in records}) == 8 + len(crops)
    for record in records:
        multiplies = record["kernel"] in ("convolution_kernel", "data_gradient_kernel")
        assert (record["group_products"] > 0) == multiplies
        assert not record["serialized"]
        assert (record["tma_loads"] > 0) == record["constants"].get("TMA", False)
        # A convolution may spill a little at its end, after thousands of loads.
        assert record["spilled_bytes"] <= (320 if multiplies else 0)
        assert record["programs_a_processor"] >= (1 if multiplies else 4)
        dependent = record["constants"].get("PDL", False)
        assert (record["dependency_controls"] > 0) == dependent
        # A load ahead of the wait might read what the kernel before it has yet to write.
        waits = dependent and record["kernel"] not in ("moments_kernel", "gradient_sums_kernel")
        assert record["loads_before_wait"] == (0 if waits else None)
        assert record["wide_loads"] + record["tma_loads"] > 0 or record["kernel"] in narrow


def test_the_kernels_are_not_compiled_where_triton_interprets_them(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert registers.main([]) == 2
    error = capsys.readouterr().err
    assert "TRITON_INTERPRET is set" in error
    assert len(error.splitlines()) == 1
    for flag, status in (("--help", 0), ("--nonsense", 2)):
        with pytest.raises(SystemExit) as ended:
            registers.main([flag])
        assert ended.value.code == status


def test_a_kernel_that_does_not_compile_is_one_line(monkeypatch, capsys):
    def fail():
        raise RuntimeError("ptxas failed on apply_kernel:\nno such register")

    monkeypatch.setattr(registers, "measure", fail)
    assert registers.main([]) == 1
    assert "error: ptxas failed on apply_kernel: no such register" in capsys.readouterr().err


@pytest.mark.gpu
def test_gpu_kernels_of_a_captured_step_are_found(prepared_path, tmp_path):
    arguments = ["--data", str(prepared_path), "--arch", "resnet8", "--quick", "--batch-sizes", "32"]
    assert step_lab.main([*arguments, "--recipe", "fast-sgd", "--out", str(tmp_path), "--only", "kernels,losses"]) == 0
    data = json.loads((tmp_path / "step-lab.json").read_text())
    rows = {row["name"]: row["value"] for row in data["rows"] if row["suite"] == "kernels"}
    for group in (profile.AUGMENTATION, profile.CONVOLUTION_FORWARD, profile.NORM, profile.OPTIMIZER):
        for option in ("plain", "fused norm"):
            assert rows[f"{option}, batch 32: {group}"] > 0
    assert set(data["losses"]["difference"]) >= {"fused norm", "fp16"}
