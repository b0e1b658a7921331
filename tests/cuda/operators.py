"""The operators torch.ops.moecod.* from Python: results, gradients, shape functions and autograd registration.

    python tests/cuda/operators.py build/cuda/cuda/libmoecod_cuda.so

Every test runs on the CPU, and on the first GPU where there is one; without it those tests say that they are skipped.
"""

import sys
import unittest

import torch
from torch.library import opcheck

ops = torch.ops.moecod
GATES = ("softmax_top_k", "top_k_softmax", "sigmoid")


def expected_select(logits, logit_bias, selection_bias, k, gate):
    """The definition in docs/contracts.md, of stock operations."""
    x = logits if logit_bias is None else logits + logit_bias
    scores = torch.sigmoid(x) if gate == "sigmoid" else torch.softmax(x, -1)
    by = scores.detach() if selection_bias is None else scores.detach() + selection_bias
    chosen = torch.sort(by, dim=1, descending=True, stable=True).indices[:, :k]
    if gate == "top_k_softmax":
        weights = torch.softmax(x.gather(1, chosen), -1)
    else:
        weights = scores.gather(1, chosen)
        if gate == "sigmoid":
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
    return scores, chosen.int(), weights, torch.bincount(chosen.flatten(), minlength=logits.shape[1])


class Operators:
    """What is tested on each device."""

    device = "cpu"

    def setUp(self):
        torch.manual_seed(1)

    def normal(self, *shape, grad=False):
        return torch.randn(*shape).to(self.device).requires_grad_(grad)

    def routing(self, rows=37, experts=6, k=2):
        _, chosen, weights, counts = ops.select(self.normal(rows, experts), None, None, k, "top_k_softmax")
        return chosen, weights, counts, ops.plan(chosen, experts, rows * k)

    def test_select(self):
        for gate in GATES:
            for biased in (False, True):
                logits, weight = self.normal(53, 7, grad=True), self.normal(53, 3)
                biases = (self.normal(7), self.normal(7)) if biased else (None, None)
                out = ops.select(logits, *biases, 3, gate)
                want = expected_select(logits, *biases, 3, gate)
                for got, right in zip(out, want):
                    torch.testing.assert_close(got, right)
                grads = [torch.autograd.grad((r[0].square().sum() + (r[2] * weight).sum()), logits)[0]
                         for r in (out, want)]
                torch.testing.assert_close(*grads)
                only = [torch.autograd.grad((r[2] * weight).sum(), logits)[0]
                        for r in (ops.select(logits, *biases, 3, gate), expected_select(logits, *biases, 3, gate))]
                torch.testing.assert_close(*only)

    def test_logit_bias_gets_its_gradient(self):
        logits, bias = self.normal(20, 5), self.normal(5, grad=True)
        got = ops.select(logits, bias, None, 2, "softmax_top_k")[2].square().sum()
        want = expected_select(logits, bias, None, 2, "softmax_top_k")[2].square().sum()
        torch.testing.assert_close(torch.autograd.grad(got, bias), torch.autograd.grad(want, bias))

    def test_plan(self):
        chosen = torch.tensor([[1, 0], [-1, 1], [2, 0]], dtype=torch.int32, device=self.device)
        order, offsets, position = ops.plan(chosen, 4, 5)
        self.assertEqual(order.tolist(), [1, 5, 0, 3, 4])
        self.assertEqual(offsets.tolist(), [0, 2, 4, 5, 5])
        self.assertEqual(position.tolist(), [[2, 0], [-1, 3], [4, 1]])

    def test_gather_and_combine(self):
        chosen, weights, _, (order, _, position) = self.routing()
        x, w = self.normal(37, 5, 3, grad=True), weights.detach().requires_grad_()
        rows = ops.gather(x, order, position, 0)
        torch.testing.assert_close(rows, x[order.long() // 2])
        y = ops.combine(rows * 2, w, order, position)
        torch.testing.assert_close(y, 2 * x * w.sum(1).view(-1, 1, 1))
        weight = torch.randn_like(y)
        got = torch.autograd.grad((y * weight).sum(), (x, w))
        want = torch.autograd.grad((2 * x * w.sum(1).view(-1, 1, 1) * weight).sum(), (x, w))
        torch.testing.assert_close(got, want)

    OFFSETS = (0, 5, 5, 6, 11)  # of four experts, one of them idle

    def offsets(self):
        return torch.tensor(self.OFFSETS, dtype=torch.int32, device=self.device)

    def experts(self, function, *tensors):
        """function(rows, expert) over the rows of each expert, joined."""
        bounds = zip(self.OFFSETS[:-1], self.OFFSETS[1:])
        return torch.cat([function(tensors[0][a:b], e) for e, (a, b) in enumerate(bounds) if a < b])

    def check(self, got, want, inputs):
        torch.testing.assert_close(got, want)
        weight = torch.randn_like(got)
        torch.testing.assert_close(torch.autograd.grad((got * weight).sum(), inputs),
                                   torch.autograd.grad((want * weight).sum(), inputs))

    def test_grouped_linear(self):
        activations = {"none": lambda h: h, "gelu": torch.nn.functional.gelu,
                       "swiglu": lambda h: torch.nn.functional.silu(h[..., :6]) * h[..., 6:]}
        for name, activation in activations.items():
            x = self.normal(11, 3, 12 if name == "swiglu" else 6, grad=True)
            w, b = self.normal(4, 5, 6, grad=True), self.normal(4, 5, grad=True)
            got = ops.grouped_linear(x, w, b, self.offsets(), name)
            want = self.experts(lambda rows, e: activation(rows) @ w[e].T + b[e], x)
            self.check(got, want, (x, w, b))
            torch.testing.assert_close(ops.grouped_linear(x, w, None, self.offsets(), name),
                                       self.experts(lambda rows, e: activation(rows) @ w[e].T, x))

    def test_grouped_swiglu(self):
        x, w = self.normal(11, 6), self.normal(4, 10, 6)
        silu = torch.nn.functional.silu
        want = self.experts(lambda rows, e: silu(rows @ w[e, :5].T) * (rows @ w[e, 5:].T), x)
        torch.testing.assert_close(ops.grouped_swiglu(x, w, self.offsets()), want)

    def test_grouped_swiglu_kept(self):
        x, up = self.normal(11, 6, grad=True), self.normal(4, 10, 6, grad=True)
        down = self.normal(4, 7, 5, grad=True)
        silu = torch.nn.functional.silu
        h, a = ops.grouped_swiglu_kept(x, up, self.offsets())
        self.assertFalse(a.requires_grad)
        got = ops.grouped_linear(h, down, None, self.offsets(), "swiglu", a)
        want = self.experts(
            lambda rows, e: (silu(rows @ up[e, :5].T) * (rows @ up[e, 5:].T)) @ down[e].T, x)
        self.check(got, want, (x, up, down))

    def combination(self):
        """Eleven of twelve slots of six rows, sorted somehow: weights, order, position."""
        order = torch.tensor([3, 7, 0, 11, 2, 5, 9, 1, 4, 10, 6], dtype=torch.int32, device=self.device)
        position = torch.full((12,), -1, dtype=torch.int32, device=self.device)
        position[order.long()] = torch.arange(11, dtype=torch.int32, device=self.device)
        return torch.rand(6, 2, device=self.device, requires_grad=True), order, position.view(6, 2)

    def test_grouped_swiglu_of_rows_that_it_sorts(self):
        x, up = self.normal(6, 6, grad=True), self.normal(4, 10, 6, grad=True)
        _, order, position = self.combination()
        h, a = ops.grouped_swiglu_kept(x, up, self.offsets(), order, position)
        rows = ops.gather(x, order, position, 0)
        self.check(h, self.experts(lambda rows, e: rows @ up[e].T, rows), (x, up))
        want = torch.nn.functional.silu(h[:, :5]) * h[:, 5:]
        torch.testing.assert_close(a, want)
        torch.testing.assert_close(ops.grouped_swiglu(x.detach(), up.detach(), self.offsets(), order, position), want)
        with self.assertRaisesRegex(RuntimeError, "order and position come together"):
            ops.grouped_swiglu(x.detach(), up.detach(), self.offsets(), order)
        with self.assertRaisesRegex(RuntimeError, "x must be"):
            ops.grouped_swiglu(x.detach()[:5], up.detach(), self.offsets(), order, position)

    def test_grouped_swiglu_combine(self):
        x, up = self.normal(11, 6, grad=True), self.normal(4, 10, 6, grad=True)
        down = self.normal(4, 7, 5, grad=True)
        weights, order, position = self.combination()
        silu = torch.nn.functional.silu
        rows = self.experts(
            lambda rows, e: (silu(rows @ up[e, :5].T) * (rows @ up[e, 5:].T)) @ down[e].T, x)
        slots = torch.zeros(12, 7, device=self.device).index_copy(0, order.long(), rows).view(6, 2, 7)
        both = [ops.grouped_swiglu_combine(*ops.grouped_swiglu_kept(x, up, self.offsets()), down, self.offsets(), weights,
                                           order, position) for _ in range(2)]
        self.check(both[0][0], (slots * weights.unsqueeze(2)).sum(1), (x, up, down, weights))
        rows = self.experts(
            lambda rows, e: (silu(rows @ up[e, :5].T) * (rows @ up[e, 5:].T)) @ down[e].T, x)
        self.check(both[1][1], rows, (x, up, down))

    def test_grouped_conv2d(self):
        x, w = self.normal(11, 4, 6, 5, grad=True), self.normal(4, 3, 4, 3, 3, grad=True)
        got, _ = ops.grouped_conv2d(x, w, self.offsets(), [2, 1], [2, 1], False)
        want = self.experts(
            lambda rows, e: torch.nn.functional.conv2d(rows, w[e], padding=(2, 1), dilation=(2, 1)), x)
        with torch.backends.cudnn.flags(allow_tf32=False):
            self.check(got, want, (x, w))

    def test_grouped_depthwise_conv2d(self):
        x, w, b = self.normal(11, 3, 6, 5, grad=True), self.normal(4, 3, 1, 3, 3, grad=True), self.normal(4, 3, grad=True)
        for bias in (b, None):

            def convolve(rows, e):
                return torch.nn.functional.conv2d(rows, w[e], None if bias is None else bias[e], padding=(2, 1),
                                                  dilation=(2, 1), groups=3)

            for gelu in (False, True):
                got = ops.grouped_depthwise_conv2d(x, w, bias, self.offsets(), [2, 1], [2, 1], gelu)
                with torch.backends.cudnn.flags(allow_tf32=False):
                    want = self.experts(convolve, x)
                    want = torch.nn.functional.gelu(want) if gelu else want
                    self.check(got, want, (x, w) if bias is None else (x, w, b))
        images = self.normal(11, 3, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
        opcheck(ops.grouped_depthwise_conv2d, (images, w, b, self.offsets(), [1, 1], [1, 1], False))

    def test_grouped_layer_norm(self):
        x, w, b = self.normal(11, 5, 16, grad=True), self.normal(4, 16, grad=True), self.normal(4, 16, grad=True)
        got = ops.grouped_layer_norm(x, w, b, self.offsets(), 1e-5)
        self.check(got, self.experts(lambda rows, e: torch.nn.functional.layer_norm(rows, (16,), w[e], b[e]), x), (x, w, b))
        opcheck(ops.grouped_layer_norm, (x, w, b, self.offsets(), 1e-5))

    def norm(self):
        return ([self.normal(4, 3, grad=True), self.normal(4, 3, grad=True)],
                [self.normal(4, 3), self.normal(4, 3).abs() + 1, torch.zeros(4, dtype=torch.int64, device=self.device)])

    def test_grouped_batch_norm(self):
        for training in (True, False):
            for relu in (True, False):
                x, (parameters, buffers) = self.normal(11, 3, 4, 4, grad=True), self.norm()
                mean, var = buffers[0].clone(), buffers[1].clone()
                got, _ = ops.grouped_batch_norm(x, *parameters, *buffers, self.offsets(), None, training, training, 0.1,
                                                1e-5, relu)
                w, b = parameters

                def normalise(rows, e):
                    y = torch.nn.functional.batch_norm(rows, mean[e], var[e], w[e], b[e], training)
                    return y.relu() if relu else y

                self.check(got, self.experts(normalise, x), (x, w, b))
                torch.testing.assert_close(buffers[:2], [mean, var])
                self.assertEqual(buffers[2].tolist(), [1, 0, 1, 1] if training else [0] * 4)

    def test_resized_and_pooled_maps(self):
        x, seed = self.normal(2, 3, 7, 11, grad=True), self.normal(2, 3, 20, 13)
        for corners in (False, True):
            y = torch.nn.functional.interpolate(x, (20, 13), mode="bilinear", align_corners=corners)
            torch.testing.assert_close(ops.resize(x.detach(), 20, 13, corners), y.detach())
            torch.testing.assert_close(ops.resize_backward(seed, 7, 11, corners), torch.autograd.grad(y, x, seed)[0])
        seed = self.normal(2, 3, 4, 5)
        y = torch.nn.functional.adaptive_avg_pool2d(x, (4, 5))
        torch.testing.assert_close(ops.average_pool_backward(seed, 7, 11), torch.autograd.grad(y, x, seed)[0])
        y, index = torch.nn.functional.adaptive_max_pool2d(x, (4, 5), return_indices=True)
        torch.testing.assert_close(ops.max_pool_backward(seed, index, 7, 11), torch.autograd.grad(y, x, seed)[0])
        for op, arguments in ((ops.resize, (x.detach(), 20, 13, False)), (ops.resize_backward, (seed, 7, 11, True)), (ops.average_pool_backward, (seed, 7, 11)),
                              (ops.max_pool_backward, (seed, index, 7, 11))):
            opcheck(op, arguments)

    def test_opcheck_of_grouped(self):
        offsets = self.offsets()
        opcheck(ops.grouped_linear, (self.normal(11, 12, grad=True), self.normal(4, 5, 6, grad=True),
                                     self.normal(4, 5, grad=True), offsets, "swiglu"))
        opcheck(ops.grouped_swiglu, (self.normal(11, 6), self.normal(4, 10, 6), offsets))
        opcheck(ops.grouped_swiglu_kept, (self.normal(11, 6, grad=True), self.normal(4, 10, 6, grad=True), offsets))
        _, order, position = self.combination()
        opcheck(ops.grouped_swiglu_kept, (self.normal(6, 6, grad=True), self.normal(4, 10, 6, grad=True), offsets, order, position))
        opcheck(ops.grouped_swiglu_backward, (self.normal(11, 10), self.normal(6, 6), self.normal(4, 10, 6), offsets, order,
                                              position, [True, True]))
        opcheck(ops.grouped_swiglu_combine, (self.normal(11, 12, grad=True), self.normal(11, 6), self.normal(4, 5, 6, grad=True),
                                             offsets, *self.combination()))
        images = self.normal(11, 4, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.backends.cudnn.flags(allow_tf32=False):  # or two runs of the fallback differ by its rounding
            opcheck(ops.grouped_conv2d, (images, self.normal(4, 3, 4, 3, 3, grad=True), offsets, [1, 1], [1, 1], False))
        parameters, buffers = self.norm()
        opcheck(ops.grouped_batch_norm, (self.normal(11, 3, 4, 4, grad=True), *parameters, *buffers, offsets, None,
                                         True, True, 0.1, 1e-5, True))

    def test_opcheck(self):
        for gate in GATES:
            opcheck(ops.select, (self.normal(9, 6, grad=True), self.normal(6), self.normal(6), 2, gate))
        chosen, weights, _, (order, _, position) = self.routing()
        opcheck(ops.plan, (chosen, 6, 74))
        opcheck(ops.gather, (self.normal(37, 4, grad=True), order, position, 0))
        part = order[5:20]
        opcheck(ops.gather, (self.normal(37, 4, grad=True), part, position, 5))
        opcheck(ops.combine, (self.normal(74, 4, grad=True), weights.detach().requires_grad_(), order, position))

    def test_second_derivatives_are_an_error(self):
        logits = self.normal(5, 4, grad=True)
        out = ops.select(logits, None, None, 2, "softmax_top_k")[2].square().sum()
        (grad,) = torch.autograd.grad(out, logits, create_graph=True)
        with self.assertRaisesRegex(RuntimeError, "not implemented"):
            grad.sum().backward()

    def test_errors_name_the_argument(self):
        with self.assertRaisesRegex(RuntimeError, "k must lie in"):
            ops.select(self.normal(3, 4), None, None, 5, "sigmoid")
        with self.assertRaisesRegex(RuntimeError, "gate must be"):
            ops.select(self.normal(3, 4), None, None, 2, "relu")
        with self.assertRaisesRegex(RuntimeError, "position must be"):
            ops.gather(self.normal(3, 4), torch.zeros(1, device=self.device).int(),
                       torch.zeros(3, device=self.device).int(), 0)
        x, w = self.normal(11, 6), self.normal(4, 5, 6)
        with self.assertRaisesRegex(RuntimeError, r"bias must be \[4, 5\] Float, got \[4, 6\]"):
            ops.grouped_linear(x, w, self.normal(4, 6), self.offsets(), "none")

    def test_backward_passes_check_the_gradient(self):
        x, w = self.normal(11, 6), self.normal(4, 5, 6)
        _, order, position = self.combination()
        h, weights = self.normal(11, 12), torch.rand(6, 2, device=self.device)
        for move in (lambda t: t, lambda t: t.to("meta")):
            for grad in (self.normal(11, 6), self.normal(11, 5).double()):
                with self.assertRaisesRegex(RuntimeError, r"grad must be \[11, 5\] Float"):
                    ops.grouped_linear_backward(*map(move, (grad, x, w, self.offsets())), "none", [True, True, False])
            with self.assertRaisesRegex(RuntimeError, r"d_y must be \[6, 5\] Float"):
                ops.grouped_swiglu_combine_backward(
                    *map(move, (self.normal(6, 6), h, w, self.offsets(), weights, order, position)), [True, True, True])

    def test_offsets_need_not_be_contiguous(self):
        apart = torch.stack([self.offsets(), self.offsets() * 0], 1)[:, 0]
        x, w = self.normal(11, 6, grad=True), self.normal(4, 5, 6, grad=True)
        self.check(ops.grouped_linear(x, w, None, apart, "none"), ops.grouped_linear(x, w, None, self.offsets(), "none"), (x, w))


class OnCpu(Operators, unittest.TestCase):
    pass


@unittest.skipUnless(torch.cuda.is_available(), "no CUDA device")
class OnCuda(Operators, unittest.TestCase):
    device = "cuda"

    def test_fallbacks_are_counted(self):
        before = ops.fallbacks()
        ops.select(self.normal(4, 300), None, None, 2, "sigmoid")
        self.assertEqual(ops.fallbacks(), before + 1)
        ops.select(self.normal(4, 256), None, None, 2, "sigmoid")
        self.assertEqual(ops.fallbacks(), before + 1)

    def test_compiles(self):
        chosen, weights, _, (order, _, position) = self.routing()
        x = self.normal(37, 8)

        def function(x):
            return ops.combine(ops.gather(x, order, position, 0) * 3, weights, order, position)

        torch.testing.assert_close(torch.compile(function, backend="aot_eager", fullgraph=True)(x), function(x))


if __name__ == "__main__":
    torch.ops.load_library(sys.argv.pop(1))
    unittest.main(verbosity=2)
