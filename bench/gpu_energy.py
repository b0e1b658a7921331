"""What the products of large SwiGLU mixtures cost in energy, and dense products of as many operations.

    python bench/gpu_energy.py build/cuda/cuda/libmoecod_cuda.so [seconds a row]

A large product draws as much power as a GPU is allowed to, so its energy decides its time: each row is repeated for some
time until the clocks have settled, and then measured over as long again by NVML's counter of energy. Dense: one weight matrix
for all rows, by cuBLAS, without any routing. A table in Markdown; J and ms are those of one call.
"""

import ctypes
import sys
import time

import torch

SHAPES = {"P6": (32768, 2048, 768, 128, 8), "P7": (4096, 4096, 14336, 8, 2)}  # T, d, n, E, K


class Energy:
    """The energy counter of GPU 0."""

    def __init__(self):
        self.library, self.device = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
        if self.library.nvmlInit_v2() or self.library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self.device)):
            raise RuntimeError("gpu_energy: NVML does not give GPU 0")

    def joules(self):
        value = ctypes.c_ulonglong()
        if self.library.nvmlDeviceGetTotalEnergyConsumption(self.device, ctypes.byref(value)):
            raise RuntimeError("gpu_energy: the GPU has no counter of energy")
        return value.value / 1000


def measure(energy, seconds, call):
    """ms and J of a call."""

    def repeat(count):
        begin = time.perf_counter()
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    repeat(3)
    count = max(1, round(seconds / (repeat(3) / 3)))
    repeat(count // 2)
    before = energy.joules()
    duration = repeat(count)
    return 1e3 * duration / count, (energy.joules() - before) / count


def products(ops, T, d, n, E, K):
    """(name, operations, by the mixture's kernels, dense or None)."""
    normal = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / shape[-1] ** 0.5
    x, d_y, up, down = d ** 0.5 * normal(T, d), normal(T, d), normal(E, 2 * n, d), normal(E, d, n)
    _, chosen, weights, _ = ops.select((x @ normal(E, d).T).float(), None, None, K, "softmax_top_k")
    order, offsets, position = ops.plan(chosen, E, T * K)
    rows = ops.gather(x, order, position, 0)
    h, a = ops.grouped_swiglu_kept(rows, up, offsets)
    y = ops.grouped_linear(a, down, None, offsets, "none")
    small = 2 * T * K * d * n

    def linear_backward(grad, of, weight, needed):
        return ops.grouped_linear_backward(grad, of, weight, offsets, "none", [*needed, False])

    def combine_backward(*needed):
        return ops.grouped_swiglu_combine_backward(d_y, h, down, offsets, weights, order, position, needed)

    return [
        ("first layer and gate, h kept", 2 * small, lambda: ops.grouped_swiglu_kept(rows, up, offsets), lambda: rows @ up[0].T),
        ("the same, rows sorted as loaded", 2 * small, lambda: ops.grouped_swiglu_kept(x, up, offsets, order, position), None),
        ("second layer", small, lambda: ops.grouped_linear(a, down, None, offsets, "none"), lambda: a @ down[0].T),
        ("through second layer and gate, sorted as loaded", small, lambda: combine_backward(True, False, True), lambda: y @ down[0]),
        ("its weights, sorted", small, lambda: linear_backward(y, a, down, (False, True)), lambda: y.T @ a),
        ("the gate and its weights, sorted as loaded", 2 * small, lambda: combine_backward(True, True, True), None),
        ("gradient of the rows", 2 * small, lambda: linear_backward(h, rows, up, (True, False)), lambda: h @ up[0]),
        ("first layer's weights, sorted", 2 * small, lambda: linear_backward(h, rows, up, (False, True)), lambda: h.T @ rows),
        ("the same, sorted as loaded", 2 * small,
         lambda: ops.grouped_swiglu_backward(h, x, up, offsets, order, position, [False, True]), None),
        ("gather", 0, lambda: ops.gather(x, order, position, 0), None),
        ("combine", 0, lambda: ops.combine(y, weights, order, position), None),
    ]


def main():
    torch.ops.load_library(sys.argv[1])
    energy, seconds = Energy(), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    print(f"{torch.cuda.get_device_name()}, LibTorch {torch.__version__}\n")
    print("| shape | call | ms | J | J/TFLOP | dense ms | dense J | dense J/TFLOP |\n|---|---|---:|---:|---:|---:|---:|---:|")
    for shape, sizes in SHAPES.items():
        torch.manual_seed(1)
        total = 0
        for name, operations, call, dense in products(torch.ops.moecod, *sizes):
            cells = []
            for f in (call, dense):
                if not f:
                    cells += ["", "", ""]
                    continue
                ms, joules = measure(energy, seconds, f)
                cells += [f"{ms:.3f}", f"{joules:.3f}", f"{joules / operations * 1e12:.2f}" if operations else ""]
                total += ms if f is dense else 0
            print(f"| {shape} | {name} | {' | '.join(cells)} |", flush=True)
        print(f"| {shape} | all dense products | | | | {total:.2f} | | |")
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
