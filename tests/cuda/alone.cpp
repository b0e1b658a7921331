// The kernels without LibTorch, so that a checker of memory sees only them: every output is written, and read back.
//
//     compute-sanitizer --tool initcheck test_cuda_alone        also: memcheck, racecheck, synccheck
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "cuda/kernels.hpp"

namespace {

using namespace moecod;

constexpr int skipped = 77;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("does not hold: %s\n", what);
  std::exit(1);
}

/// Device memory that starts as nothing.
template <class T>
class Array {
 public:
  explicit Array(std::size_t size) : size_(size) {
    void* data = nullptr;
    check(cudaMalloc(&data, size * sizeof(T) + 1), "cudaMalloc");
    data_.reset(static_cast<T*>(data), [](T* p) { cudaFree(p); });
  }
  explicit Array(const std::vector<T>& from) : Array(from.size()) {
    check(cudaMemcpy(data(), from.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
  }
  T* data() const { return data_.get(); }
  std::vector<T> host() const {
    std::vector<T> out(size_);
    check(cudaMemcpy(out.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost), "copy from the device");
    return out;
  }

 private:
  std::size_t size_;
  std::shared_ptr<T> data_;
};

std::vector<float> values(std::size_t size, unsigned seed) {
  std::vector<float> out(size);
  for (float& x : out) {
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<float>(seed >> 8) / (1 << 23) - 1;
  }
  return out;
}

/// Routes rows, gathers, combines, and goes all the way back; combine(gather(x)) must be x times the sum of weights.
void run(int64_t rows, int experts, int k, int64_t width, kernel::Gate gate) {
  const auto slots = static_cast<std::size_t>(rows * k), scores_size = static_cast<std::size_t>(rows * experts);
  const Array<float> logits(values(scores_size, 1)), bias(values(experts, 2)), scores(scores_size), weights(slots);
  const Array<int32_t> chosen(slots), order(slots), offsets(experts + 1), position(slots);
  const Array<int64_t> counts(experts);
  check(cuda::select_forward({logits.data(), bias.data(), bias.data(), rows, experts, k, gate, scores.data(),
                              chosen.data(), weights.data(), counts.data()},
                             nullptr),
        "select_forward");
  int64_t workspace_size = 0;
  check(cuda::plan_workspace(rows * k, experts, &workspace_size), "plan_workspace");
  const Array<int32_t> workspace(workspace_size);
  check(cuda::plan({chosen.data(), rows * k, experts, rows * k, workspace.data(), order.data(), offsets.data(),
                    position.data()},
                   nullptr),
        "plan");

  const std::vector<float> x_host = values(rows * width, 3);
  const Array<float> x(x_host), sorted(slots * width), y(rows * width), d_sorted(slots * width), d_x(rows * width);
  const Array<float> d_weights(slots), d_logits(scores_size);
  const int64_t row_bytes = width * static_cast<int64_t>(sizeof(float));
  check(cuda::gather({x.data(), position.data(), rows, k, row_bytes, 0, rows * k, sorted.data()}, nullptr), "gather");
  check(cuda::combine_forward({sorted.data(), weights.data(), position.data(), rows, k, width, kernel::Type::float32, 0,
                               rows * k, y.data()},
                              nullptr),
        "combine_forward");
  kernel::CombineBackward backward{.grad = y.data(),
                                   .sorted = sorted.data(),
                                   .weights = weights.data(),
                                   .position = position.data(),
                                   .rows = rows,
                                   .slots = k,
                                   .width = width,
                                   .d_sorted = d_sorted.data(),
                                   .d_weights = d_weights.data()};
  const Array<float> partial(slots * cuda::combine_backward_splits(backward));
  backward.partial = partial.data();
  check(cuda::combine_backward(backward, nullptr), "combine_backward");
  check(cuda::combine_forward({d_sorted.data(), nullptr, position.data(), rows, k, width, kernel::Type::float32, 0,
                               rows * k, d_x.data()},
                              nullptr),
        "gather_backward");
  check(cuda::select_backward({scores.data(), d_weights.data(), scores.data(), chosen.data(), weights.data(), rows,
                               experts, k, gate, d_logits.data()},
                              nullptr),
        "select_backward");
  check(cudaDeviceSynchronize(), "kernels");

  const std::vector<float> w = weights.host(), combined = y.host(), d_l = d_logits.host(), d = d_x.host();
  const std::vector<int32_t> o = order.host(), p = position.host(), bounds = offsets.host(), e = chosen.host();
  const std::vector<int64_t> c = counts.host();
  for (std::size_t i = 0; i < slots; ++i) {
    require(o[p[i]] == static_cast<int32_t>(i), "order and position are each other's inverse");
    require(bounds[e[i]] <= p[i] && p[i] < bounds[e[i] + 1], "a slot lies among its expert's");
  }
  for (int i = 0; i < experts; ++i) require(bounds[i + 1] - bounds[i] == c[i], "offsets are sums of counts");
  for (int64_t n = 0; n < rows; ++n) {
    float sum = 0;
    for (int s = 0; s < k; ++s) sum += w[n * k + s];
    for (int64_t i = n * width; i < (n + 1) * width; ++i) {
      require(std::abs(combined[i] - sum * x_host[i]) < 1e-5f, "combine(gather(x)) is x times the sum of its weights");
      require(std::abs(d[i] - sum * combined[i]) < 1e-5f, "and so is the way back");
    }
  }
  for (float g : d_l) require(std::isfinite(g), "gradients of the logits are finite");
}

using Bits = uint16_t;  // of bfloat16

std::vector<Bits> rounded(const std::vector<float>& from) {
  std::vector<Bits> out(from.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &from[i], 4);
    out[i] = static_cast<Bits>(bits >> 16);
  }
  return out;
}

std::vector<float> widened(const std::vector<Bits>& from) {
  std::vector<float> out(from.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    const uint32_t bits = uint32_t(from[i]) << 16;
    std::memcpy(&out[i], &bits, 4);
  }
  return out;
}

void require_close(const std::vector<float>& got, const std::vector<float>& exact, const char* what) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += (double(got[i]) - exact[i]) * (double(got[i]) - exact[i]);
    norm += double(exact[i]) * exact[i];
  }
  require(std::sqrt(error) <= 1e-2 * std::sqrt(norm), what);  // NaN is never close
}

/// f() as the first call of its thread to the device, which autograd's may be.
template <class F>
cudaError_t as_first_call(F&& f) {
  cudaError_t error = cudaSuccess;
  std::thread([&] { error = f(); }).join();
  return error;
}

/// The slots of sorted rows that lie the other way around.
std::vector<int32_t> backwards(int64_t rows) {
  std::vector<int32_t> slots(rows);
  for (int64_t n = 0; n < rows; ++n) slots[n] = static_cast<int32_t>(rows - 1 - n);
  return slots;
}

/// Rows of `width` numbers, `each` slots a row, as the slots sort them.
std::vector<Bits> sorted_rows(const std::vector<Bits>& from, int64_t width, const std::vector<int32_t>& slots, int each) {
  std::vector<Bits> to;
  for (int32_t slot : slots) to.insert(to.end(), from.begin() + slot / each * width, from.begin() + (slot / each + 1) * width);
  return to;
}

void run_conv_weight(kernel::ConvWeight weight, const char* name) {
  int64_t size = 0;
  check(cuda::conv_weight_partial(weight, &size), "conv_weight_partial");
  const Array<float> partial(size);
  weight.partial = partial.data();
  check(as_first_call([&] { return cuda::conv_weight(weight, nullptr); }), name);
  check(cudaDeviceSynchronize(), name);  // before the sums go
}

/// Convolution, its gradients, and normalisation with ReLU of images sorted by expert.
void run_images(const std::vector<int32_t>& offsets, int in, int out, int height, int width) {
  const auto experts = static_cast<int>(offsets.size()) - 1;
  const kernel::ConvShape shape{
      .height = height, .width = width, .in = in, .out = out, .kernel = {3, 3}, .padding = {1, 1}};
  if (!cuda::conv_takes(shape)) return;
  const int64_t positions = int64_t(height) * width, items = offsets.back() * positions, taps = 9;
  const Array<int32_t> bounds(offsets);
  const kernel::Groups groups{.offsets = bounds.data(), .experts = experts, .rows = offsets.back(), .each = positions};
  const Array<Bits> x(rounded(values(items * in, 1))), w(rounded(values(experts * out * taps * in, 2)));
  const Array<Bits> grad(rounded(values(items * out, 3)));
  const Array<Bits> y(items * out), d_x(items * in), d_w(experts * out * taps * in), z(items * out), d_y(items * out);
  const int piece = cuda::conv_piece(groups, out);
  const Array<float> moments(groups.pieces(piece) * 2 * out);
  kernel::Conv conv{.groups = groups, .shape = shape, .x = x.data(), .weight = w.data(), .y = y.data(),
                    .moments = moments.data()};
  check(cuda::conv(conv, nullptr), "conv");
  conv.transposed = true;
  conv.x = grad.data();
  conv.y = d_x.data();
  conv.moments = nullptr;
  check(cuda::conv(conv, nullptr), "conv, transposed");
  const kernel::ConvWeight weight{
      .groups = groups, .shape = shape, .x = x.data(), .grad = grad.data(), .d_weight = d_w.data()};
  run_conv_weight(weight, "conv_weight");

  const std::size_t parameters = experts * out;
  const Array<float> scale(values(parameters, 4)), shift(values(parameters, 5)), mean(values(parameters, 6));
  const Array<float> var(std::vector<float>(parameters, 1)), used(2 * parameters);
  const Array<float> d_scale(parameters), d_shift(parameters);
  const Array<int64_t> tracked(std::vector<int64_t>(experts, 0));
  check(cuda::normalise({.groups = groups, .channels = out, .x = y.data(), .weight = scale.data(), .bias = shift.data(),
                         .running_mean = mean.data(), .running_var = var.data(), .tracked = tracked.data(),
                         .relu = true, .moments = moments.data(), .piece = piece, .used = used.data(), .y = z.data()},
                        nullptr),
        "normalise");
  const Array<float> sums(groups.pieces(kernel::norm_piece(items)) * 2 * out);
  check(cuda::normalise_backward({.groups = groups, .channels = out, .grad = grad.data(), .x = y.data(),
                                  .weight = scale.data(), .bias = shift.data(), .used = used.data(), .relu = true,
                                  .partial = sums.data(), .d_weight = d_scale.data(), .d_bias = d_shift.data(),
                                  .d_x = d_y.data()},
                                 nullptr),
        "normalise_backward");
  check(cudaDeviceSynchronize(), "kernels");

  const auto xs = widened(x.host()), ws = widened(w.host()), gs = widened(grad.host());
  std::vector<float> ys(items * out), dxs(items * in), dws(experts * out * taps * in);
  for (int e = 0; e < experts; ++e)
    for (int64_t n = offsets[e]; n < offsets[e + 1]; ++n)
      for (int64_t p = 0; p < positions; ++p)
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t h = p / width + tap / 3 - 1, v = p % width + tap % 3 - 1;
          if (h < 0 || v < 0 || h >= height || v >= width) continue;
          for (int64_t o = 0; o < out; ++o)
            for (int64_t i = 0; i < in; ++i) {
              const int64_t from = (n * positions + h * width + v) * in + i, to = (n * positions + p) * out + o;
              const int64_t by = ((e * out + o) * taps + tap) * in + i;
              ys[to] += xs[from] * ws[by];
              dxs[from] += gs[to] * ws[by];
              dws[by] += gs[to] * xs[from];
            }
        }
  require_close(widened(y.host()), ys, "the convolution");
  require_close(widened(d_x.host()), dxs, "the gradient of its input");
  require_close(widened(d_w.host()), dws, "the gradient of its weights");
  for (const auto& result : {widened(z.host()), widened(d_y.host()), d_scale.host(), d_shift.host(), used.host()})
    for (float v : result) require(std::isfinite(v), "the normalisation is finite");
  const auto t = tracked.host();
  for (int e = 0; e < experts; ++e)
    require(t[e] == (offsets[e] < offsets[e + 1]), "statistics of experts with images moved once");
}

/// For results that TMA stores, which initcheck does not see; NaN is close to nothing.
Array<Bits> nothing(int64_t size) { return Array<Bits>(std::vector<Bits>(size, 0xffff)); }

/// Linear layers of rows sorted by expert, as convolutions of images of one position: the product, its gradients, and the
/// gate in its epilogue, forward and backward. Two sorted rows are one of x and of grad each, so that kernels which sort as
/// they load give the same.
void run_linear(const std::vector<int32_t>& offsets, int in, int out) {
  const auto experts = static_cast<int>(offsets.size()) - 1;
  const kernel::ConvShape shape{.height = 1, .width = 1, .in = in, .out = out};
  if (!cuda::conv_takes(shape)) return;
  const int64_t rows = offsets.back();
  const int half = out / 2;
  const Array<int32_t> bounds(offsets);
  const kernel::Groups groups{.offsets = bounds.data(), .experts = experts, .rows = rows};
  const std::vector<int32_t> slots = backwards(rows);
  const std::vector<Bits> sources = rounded(values((rows + 1) / 2 * in, 1)), sources_grad = rounded(values((rows + 1) / 2 * out, 3));
  const Array<Bits> unsorted(sources), unsorted_grad(sources_grad);
  const Array<Bits> x(sorted_rows(sources, in, slots, 2)), w(rounded(values(int64_t(experts) * out * in, 2)));
  const Array<Bits> grad(sorted_rows(sources_grad, out, slots, 2)), kept(rounded(values(rows * 2 * in, 4)));
  const auto y = nothing(rows * out), d_x = nothing(rows * in), d_w = nothing(int64_t(experts) * out * in);
  const auto a = nothing(rows * half), again = nothing(rows * half), h = nothing(rows * out);
  const auto d_h = nothing(rows * 2 * in), b = nothing(rows * in);
  const kernel::Conv forward{.groups = groups, .shape = shape, .x = x.data(), .weight = w.data(), .y = y.data()};
  check(as_first_call([&] { return cuda::conv(forward, nullptr); }), "conv of rows");
  kernel::Conv gated = forward;
  gated.gated = true;
  gated.y = a.data();
  check(cuda::conv(gated, nullptr), "conv, gated");
  gated.y = again.data();
  gated.h = h.data();
  check(cuda::conv(gated, nullptr), "conv, gated and kept");
  kernel::Conv backward = forward;
  backward.transposed = true;
  backward.x = grad.data();
  backward.y = d_x.data();
  check(cuda::conv(backward, nullptr), "conv of rows, transposed");
  backward.gated = true;
  backward.y = d_h.data();
  backward.h = kept.data();
  backward.a = b.data();
  check(cuda::conv(backward, nullptr), "conv through the gate");
  const auto counts = values(rows, 5);
  const Array<int32_t> order(slots);
  const Array<float> weights(counts), partial(cuda::conv_gate_parts(backward) * rows), d_weights(rows);
  const auto d_h_weighted = nothing(rows * 2 * in), b_weighted = nothing(rows * in);
  backward.weights = weights.data();
  backward.order = order.data();
  backward.partial = partial.data();
  backward.d_weights = d_weights.data();
  backward.y = d_h_weighted.data();
  backward.a = b_weighted.data();
  check(cuda::conv(backward, nullptr), "conv through the gate, of rows with weights");
  const kernel::ConvWeight weight{
      .groups = groups, .shape = shape, .x = x.data(), .grad = grad.data(), .d_weight = d_w.data()};
  run_conv_weight(weight, "conv_weight of rows");
  check(cudaDeviceSynchronize(), "kernels");
  const auto require_same = [](const auto& got, const auto& want, const char* what) {
    require(got.host() == want.host(), what);
  };
  const auto a_gathered = nothing(rows * half), again_gathered = nothing(rows * half), h_gathered = nothing(rows * out);
  gated.x = unsorted.data();
  gated.order = order.data();
  gated.slots = 2;
  gated.y = again_gathered.data();
  gated.h = h_gathered.data();
  check(cuda::conv(gated, nullptr), "conv, gated and kept, rows gathered");
  gated.y = a_gathered.data();
  gated.h = nullptr;
  check(cuda::conv(gated, nullptr), "conv, gated, rows gathered");
  const auto d_h_gathered = nothing(rows * 2 * in), b_gathered = nothing(rows * in);
  backward.x = unsorted_grad.data();
  backward.slots = 2;
  backward.y = d_h_gathered.data();
  backward.a = b_gathered.data();
  const Array<float> partial_gathered(partial.host().size()), d_weights_gathered(rows);
  backward.partial = partial_gathered.data();
  backward.d_weights = d_weights_gathered.data();
  check(cuda::conv(backward, nullptr), "conv through the gate, of rows with weights, gathered");
  const auto by_x = nothing(int64_t(experts) * out * in), by_grad = nothing(int64_t(experts) * out * in);
  kernel::ConvWeight gathering = weight;
  gathering.order = order.data();
  gathering.slots = 2;
  gathering.gathers = kernel::ConvWeight::Gathers::x;
  gathering.x = unsorted.data();
  gathering.d_weight = by_x.data();
  run_conv_weight(gathering, "conv_weight, rows of x gathered");
  gathering.gathers = kernel::ConvWeight::Gathers::grad;
  gathering.x = x.data();
  gathering.grad = unsorted_grad.data();
  gathering.d_weight = by_grad.data();
  run_conv_weight(gathering, "conv_weight, rows of grad gathered");
  check(cudaDeviceSynchronize(), "kernels that gather");
  require_same(a_gathered, a, "the gate of gathered rows");
  require_same(again_gathered, again, "the gate of gathered rows, with what it takes kept");
  require_same(h_gathered, h, "what the gate of gathered rows takes");
  require_same(d_h_gathered, d_h_weighted, "the gate's gradient of gathered rows");
  require_same(b_gathered, b_weighted, "the activation, of gathered rows");
  require_same(d_weights_gathered, d_weights, "the gradient of the weights, of gathered rows");
  require_same(by_x, d_w, "the gradient of the weights, of gathered rows of x");
  require_same(by_grad, d_w, "the gradient of the weights, of gathered rows of grad");

  const auto xs = widened(x.host()), ws = widened(w.host()), gs = widened(grad.host()), ks = widened(kept.host());
  std::vector<float> ys(rows * out), dxs(rows * in), dws(int64_t(experts) * out * in), as(rows * half);
  std::vector<float> dhs(rows * 2 * in), bs(rows * in), dhs_weighted(rows * 2 * in), bs_weighted(rows * in), dcounts(rows);
  for (int e = 0; e < experts; ++e)
    for (int64_t n = offsets[e]; n < offsets[e + 1]; ++n)
      for (int64_t o = 0; o < out; ++o)
        for (int64_t i = 0; i < in; ++i) {
          const int64_t by = (int64_t(e) * out + o) * in + i;
          ys[n * out + o] += xs[n * in + i] * ws[by];
          dxs[n * in + i] += gs[n * out + o] * ws[by];
          dws[by] += gs[n * out + o] * xs[n * in + i];
        }
  const auto sigmoid = [](float g) { return 1 / (1 + std::exp(-g)); };
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t c = 0; c < half; ++c) {
      const float g = ys[n * out + c];
      as[n * half + c] = g * sigmoid(g) * ys[n * out + half + c];
    }
    for (int64_t c = 0; c < in; ++c) {
      const float g = ks[n * 2 * in + c], u = ks[n * 2 * in + in + c], s = sigmoid(g), d = dxs[n * in + c];
      bs[n * in + c] = g * s * u;
      dhs[n * 2 * in + c] = d * u * s * (1 + g * (1 - s));
      dhs[n * 2 * in + in + c] = d * g * s;
      dcounts[slots[n]] += d * bs[n * in + c];
    }
    for (int64_t c = 0; c < in; ++c) bs_weighted[n * in + c] = counts[slots[n]] * bs[n * in + c];
    for (int64_t c = 0; c < 2 * in; ++c) dhs_weighted[n * 2 * in + c] = counts[slots[n]] * dhs[n * 2 * in + c];
  }
  require_close(widened(y.host()), ys, "the product");
  require_close(widened(d_x.host()), dxs, "the gradient of its rows");
  require_close(widened(d_w.host()), dws, "the gradient of its weights");
  require_close(widened(a.host()), as, "the gate");
  require_close(widened(d_h_weighted.host()), dhs_weighted, "the gate's gradient, of rows with weights");
  require_close(widened(b_weighted.host()), bs_weighted, "the activation, of rows with weights");
  require_close(d_weights.host(), dcounts, "the gradient of the weights");
  require_close(widened(again.host()), as, "the gate, with what it takes kept");
  require_close(widened(h.host()), ys, "what the gate takes");
  require_close(widened(d_h.host()), dhs, "the gradient through the gate");
  require_close(widened(b.host()), bs, "the gate computed anew");
}

/// The gradient of weights where their tiles fill the device once and a little more, so that the last are cut into parts
/// (on 132 multiprocessors). Channels of a row of x differ by powers of two alone, which makes the sums on the host few.
void run_weights_in_parts(const std::vector<int32_t>& offsets) {
  constexpr int in = 384, out = 1792;
  const auto experts = static_cast<int>(offsets.size()) - 1;
  const int64_t rows = offsets.back();
  const kernel::ConvShape shape{.height = 1, .width = 1, .in = in, .out = out};
  if (!cuda::conv_takes(shape)) return;
  const Array<int32_t> bounds(offsets);
  const std::vector<Bits> of_rows = rounded(values(rows, 1));
  const auto factor = [](int64_t c) { return static_cast<float>(1 << (c + c / 64) % 3); };
  const auto by = widened(of_rows);
  std::vector<float> scaled(rows * in);
  for (int64_t i = 0; i < rows * in; ++i) scaled[i] = by[i / in] * factor(i % in);
  const std::vector<Bits> xs = rounded(scaled);
  const Array<Bits> x(xs), grad(rounded(values(rows * out, 2)));
  const auto d_w = nothing(int64_t(experts) * out * in);
  kernel::ConvWeight weight{.groups = {.offsets = bounds.data(), .experts = experts, .rows = rows}, .shape = shape,
                            .x = x.data(), .grad = grad.data(), .d_weight = d_w.data()};
  run_conv_weight(weight, "conv_weight in parts");
  // The same of rows that lie the other way around and are gathered.
  const std::vector<int32_t> slots = backwards(rows);
  const Array<int32_t> order(slots);
  const Array<Bits> x_reversed(sorted_rows(xs, in, slots, 1)), grad_reversed(sorted_rows(grad.host(), out, slots, 1));
  weight.order = order.data();
  weight.slots = 1;
  for (const auto gathers : {kernel::ConvWeight::Gathers::x, kernel::ConvWeight::Gathers::grad}) {
    const bool of_x = gathers == kernel::ConvWeight::Gathers::x;
    const auto gathered = nothing(int64_t(experts) * out * in);
    weight.gathers = gathers;
    weight.x = of_x ? x_reversed.data() : x.data();
    weight.grad = of_x ? grad.data() : grad_reversed.data();
    weight.d_weight = gathered.data();
    run_conv_weight(weight, "conv_weight in parts, gathered");
    require(gathered.host() == d_w.host(), "the gradient of weights in parts, of gathered rows");
  }
  const auto gs = widened(grad.host());
  std::vector<float> sums(int64_t(experts) * out), dws(int64_t(experts) * out * in);
  for (int e = 0; e < experts; ++e)
    for (int64_t n = offsets[e]; n < offsets[e + 1]; ++n)
      for (int64_t o = 0; o < out; ++o) sums[int64_t(e) * out + o] += gs[n * out + o] * by[n];
  for (std::size_t i = 0; i < dws.size(); ++i) dws[i] = sums[i / in] * factor(static_cast<int64_t>(i) % in);
  require_close(widened(d_w.host()), dws, "the gradient of weights in parts");
}

/// Biases, their gradients, activations and zeros of rows sorted by expert.
void run_rows(const std::vector<int32_t>& offsets, int64_t width, kernel::Activation activation) {
  const auto experts = static_cast<int>(offsets.size()) - 1;
  const int64_t rows = offsets.back(), wide = activation == kernel::Activation::swiglu ? 2 * width : width;
  const Array<int32_t> bounds(offsets);
  const kernel::Groups groups{.offsets = bounds.data(), .experts = experts, .rows = rows};
  const Array<float> h(values(rows * wide, 1)), bias(values(experts * wide, 2)), d_a(values(rows * width, 3));
  const Array<float> a(rows * width), again(rows * width), d_h(rows * wide), sums(experts * wide);
  const Array<float> partial(groups.pieces(kernel::column_sums_piece) * wide), kept(std::vector<float>(experts * 4, 1));
  check(cuda::add_bias({.groups = groups, .bias = bias.data(), .width = wide, .x = h.data()}, nullptr), "add_bias");
  check(cuda::activate({.h = h.data(), .rows = rows, .width = width, .activation = activation, .a = a.data()}, nullptr),
        "activate");
  check(cuda::activate_backward({.d_a = d_a.data(), .h = h.data(), .rows = rows, .width = width,
                                 .activation = activation, .d_h = d_h.data(), .a = again.data()},
                                nullptr),
        "activate_backward");
  check(cuda::column_sums({.groups = groups, .x = d_h.data(), .width = wide, .partial = partial.data(),
                           .sums = sums.data()},
                          nullptr),
        "column_sums");
  check(cuda::zero_idle({.groups = groups, .row_bytes = 16, .x = kept.data()}, nullptr), "zero_idle");
  check(cudaDeviceSynchronize(), "kernels");
  require_close(again.host(), a.host(), "the activation computed anew");
  const auto d = d_h.host(), s = sums.host(), k = kept.host();
  std::vector<float> exact(experts * wide);
  for (int e = 0; e < experts; ++e) {
    for (int64_t i = offsets[e] * wide; i < offsets[e + 1] * wide; ++i) exact[e * wide + i % wide] += d[i];
    require(k[4 * e] == (offsets[e] < offsets[e + 1]), "zeros for idle experts alone");
  }
  require_close(s, exact, "sums of columns");
}

/// y, d_x and the gradients of filters and bias of a depthwise convolution against sums on the host.
void run_depthwise(const std::vector<int32_t>& offsets, const kernel::ConvShape& s) {
  const auto experts = static_cast<int>(offsets.size()) - 1;
  const int images = offsets.back(), c = s.in, taps = s.taps(), oh = s.out_height(), ow = s.out_width();
  const std::size_t in_size = std::size_t(images) * s.height * s.width * c, out_size = std::size_t(images) * oh * ow * c;
  const auto x = values(in_size, 1), w = values(std::size_t(experts) * taps * c, 2), b = values(std::size_t(experts) * c, 3);
  const auto g = values(out_size, 4);
  const Array<int32_t> bounds(offsets);
  const Array<float> dx(x), dw(w), db(b), dg(g), y(out_size), d_x(in_size), d_w(std::size_t(experts) * (taps + 1) * c);
  const kernel::Groups groups{.offsets = bounds.data(), .experts = experts, .rows = images, .each = int64_t(oh) * ow};
  const Array<float> partial(std::size_t(groups.pieces(kernel::column_sums_piece)) * (taps + 1) * c);
  check(cuda::depthwise({.groups = groups, .shape = s, .x = dx.data(), .weight = dw.data(), .bias = db.data(), .y = y.data()},
                        nullptr),
        "depthwise");
  check(cuda::depthwise({.groups = groups, .shape = s, .transposed = true, .x = dg.data(), .weight = dw.data(),
                         .y = d_x.data()},
                        nullptr),
        "depthwise, transposed");
  check(cuda::depthwise_weight({.groups = groups, .shape = s, .x = dx.data(), .grad = dg.data(), .partial = partial.data(),
                                .d_weight = d_w.data()},
                               nullptr),
        "depthwise_weight");
  check(cudaDeviceSynchronize(), "kernels");
  std::vector<float> right_y(out_size), right_x(in_size), right_w(std::size_t(experts) * (taps + 1) * c);
  for (int e = 0; e < experts; ++e)
    for (int n = offsets[e]; n < offsets[e + 1]; ++n)
      for (int i = 0; i < oh; ++i)
        for (int j = 0; j < ow; ++j)
          for (int k = 0; k < c; ++k) {
            const std::size_t out = ((std::size_t(n) * oh + i) * ow + j) * c + k;
            right_y[out] = b[std::size_t(e) * c + k];
            right_w[(std::size_t(e) * (taps + 1) + taps) * c + k] += g[out];
            for (int t = 0; t < taps; ++t) {
              const int row = i - s.padding[0] + t / s.kernel[1] * s.dilation[0];
              const int column = j - s.padding[1] + t % s.kernel[1] * s.dilation[1];
              if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
              const std::size_t in = ((std::size_t(n) * s.height + row) * s.width + column) * c + k;
              const std::size_t at = (std::size_t(e) * taps + t) * c + k;
              right_y[out] += x[in] * w[at];
              right_x[in] += g[out] * w[at];
              right_w[(std::size_t(e) * (taps + 1) + t) * c + k] += g[out] * x[in];
            }
          }
  if (s.taps() == 9 && s.dilation[0] == 1 && s.dilation[1] == 1 && oh == s.height && ow == s.width &&
      cuda::depthwise_3x3_takes(c, images, s.height, s.width)) {
    const Array<float> y3(out_size), d_x3(in_size), d_w3(std::size_t(experts) * 10 * c);
    const Array<float> strips(std::size_t(images) * kernel::depthwise_3x3_strips(s.height) * 10 * c);
    check(cuda::depthwise_3x3({.groups = groups, .height = oh, .width = ow, .channels = c, .x = dx.data(), .weight = dw.data(),
                               .bias = db.data(), .y = y3.data()},
                              nullptr),
          "depthwise_3x3");
    check(cuda::depthwise_3x3_backward({.groups = groups, .height = oh, .width = ow, .channels = c, .grad = dg.data(),
                                        .x = dx.data(), .weight = dw.data(), .partial = strips.data(), .d_x = d_x3.data(),
                                        .d_weight = d_w3.data()},
                                       nullptr),
          "depthwise_3x3_backward");
    require_close(y3.host(), right_y, "a depthwise convolution by 3x3 filters");
    require_close(d_x3.host(), right_x, "its data gradient");
    kernel::Depthwise3x3 call{.groups = groups, .height = oh, .width = ow, .channels = c, .gelu = true, .x = dx.data(),
                              .weight = dw.data(), .bias = db.data(), .y = y3.data()};
    std::vector<float> value(out_size), slope(out_size);
    for (std::size_t i = 0; i < out_size; ++i) {
      const float h = right_y[i], phi = 0.5f * (1 + std::erf(h * 0.70710678f));
      value[i] = h * phi;
      slope[i] = g[i] * (phi + h * 0.39894228f * std::exp(-0.5f * h * h));
    }
    check(cuda::depthwise_3x3(call, nullptr), "depthwise_3x3 with GELU");
    require_close(y3.host(), value, "GELU of a depthwise convolution");
    call.grad = dg.data();
    check(cuda::depthwise_3x3(call, nullptr), "depthwise_3x3 with GELU's derivative");
    require_close(y3.host(), slope, "the gradient through GELU");
    check(cuda::depthwise_3x3({.groups = groups, .height = oh, .width = ow, .channels = c, .transposed = true,
                               .x = dg.data(), .weight = dw.data(), .y = d_x3.data()},
                              nullptr),
          "depthwise_3x3, transposed");
    require_close(d_x3.host(), right_x, "its data gradient alone");
    require_close(d_w3.host(), right_w, "its gradients of filters and bias");
  }
  require_close(y.host(), right_y, "a depthwise convolution");
  require_close(d_x.host(), right_x, "its data gradient");
  require_close(d_w.host(), right_w, "its gradients of filters and bias");
}

/// y and the gradients of a layer normalisation against sums on the host.
void run_layer_norm(const std::vector<int32_t>& offsets, int each, int width) {
  const auto experts = static_cast<int>(offsets.size()) - 1;
  const std::size_t items = std::size_t(offsets.back()) * each, size = items * width, own = std::size_t(experts) * width;
  const auto x = values(size, 1), g = values(size, 2), w = values(own, 3), b = values(own, 4);
  const float eps = 1e-5f;
  const Array<int32_t> bounds(offsets);
  const Array<float> dx(x), dg(g), dw(w), db(b), y(size), d_x(size), both(2 * own);
  const kernel::Groups groups{.offsets = bounds.data(), .experts = experts, .rows = offsets.back(), .each = each};
  const Array<float> partial(std::size_t(groups.pieces(kernel::layer_norm_piece(groups.items()))) * 2 * width);
  check(cuda::layer_norm({.groups = groups, .width = width, .eps = eps, .x = dx.data(), .weight = dw.data(),
                          .bias = db.data(), .y = y.data()},
                         nullptr),
        "layer_norm");
  check(cuda::layer_norm_backward({.groups = groups, .width = width, .eps = eps, .grad = dg.data(), .x = dx.data(),
                                   .weight = dw.data(), .partial = partial.data(), .d_weight = both.data(),
                                   .d_bias = both.data() + own, .d_x = d_x.data()},
                                  nullptr),
        "layer_norm_backward");
  check(cudaDeviceSynchronize(), "kernels");
  std::vector<float> right_y(size), right_x(size), right_both(2 * own);
  for (int e = 0; e < experts; ++e)
    for (int64_t i = int64_t(offsets[e]) * each; i < int64_t(offsets[e + 1]) * each; ++i) {
      const float *row = &x[std::size_t(i) * width], *grad = &g[std::size_t(i) * width], *weight = &w[std::size_t(e) * width];
      double mean = 0, variance = 0, along = 0, around = 0;
      for (int c = 0; c < width; ++c) mean += row[c] / double(width);
      for (int c = 0; c < width; ++c) variance += (row[c] - mean) * (row[c] - mean) / width;
      const double rstd = 1 / std::sqrt(variance + eps);
      for (int c = 0; c < width; ++c) {
        const double z = (row[c] - mean) * rstd;
        around += double(grad[c]) * weight[c] / width;
        along += double(grad[c]) * weight[c] * z / width;
        right_y[std::size_t(i) * width + c] = float(z * weight[c] + b[std::size_t(e) * width + c]);
        right_both[std::size_t(e) * width + c] += float(grad[c] * z);
        right_both[own + std::size_t(e) * width + c] += grad[c];
      }
      for (int c = 0; c < width; ++c)
        right_x[std::size_t(i) * width + c] =
            float(rstd * (double(grad[c]) * weight[c] - around - (row[c] - mean) * rstd * along));
    }
  require_close(y.host(), right_y, "a layer normalisation");
  require_close(d_x.host(), right_x, "its data gradient");
  require_close(both.host(), right_both, "its gradients of weight and bias");
}

/// The backward pass of a map of which output i is the mean of samples i to i + reach on each side.
void run_resample(int images, int channels, int side, int reach) {
  const int out = side - reach;
  const auto g = values(std::size_t(images) * out * out * channels, 5);
  const int taps = reach + 1 < out ? reach + 1 : out;
  std::vector<float> band(std::size_t(side) * (1 + taps));
  for (int y = 0; y < side; ++y) {
    const int first = y - reach > 0 ? y - reach : 0, begin = first + taps <= out ? first : out - taps;
    band[std::size_t(y)] = static_cast<float>(begin);
    for (int k = 0; k < taps; ++k)
      band[std::size_t(1 + k) * side + y] = begin + k <= y && y <= begin + k + reach ? 1.0f / float(reach + 1) : 0.0f;
  }
  const Array<float> grad(g), sides(band), d_x(std::size_t(images) * side * side * channels);
  check(cuda::resample({.x = grad.data(), .rows = sides.data(), .columns = sides.data(), .images = images,
                        .channels = channels, .height = out, .width = out, .out_height = side, .out_width = side,
                        .row_taps = taps, .column_taps = taps, .y = d_x.data()},
                       nullptr),
        "resample");
  check(cudaDeviceSynchronize(), "kernels");
  std::vector<float> right(std::size_t(images) * side * side * channels);
  const float weight = 1.0f / float((reach + 1) * (reach + 1));
  for (int n = 0; n < images; ++n)
    for (int i = 0; i < out; ++i)
      for (int j = 0; j < out; ++j)
        for (int k = 0; k < channels; ++k)
          for (int r = i; r <= i + reach; ++r)
            for (int q = j; q <= j + reach; ++q)
              right[((std::size_t(n) * side + r) * side + q) * channels + k] +=
                  weight * g[((std::size_t(n) * out + i) * out + j) * channels + k];
  require_close(d_x.host(), right, "the backward pass of a resampled map");
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: no CUDA device");
    return skipped;
  }
  for (const auto gate : {kernel::Gate::softmax_top_k, kernel::Gate::top_k_softmax, kernel::Gate::sigmoid}) {
    run(1, 1, 1, 1, gate);
    run(300, 6, 2, 35, gate);
    run(300, 8, 2, 64, gate);
    run(70, 20, 3, 140, gate);
    run(70, 64, 8, 320, gate);
    run(50, 256, 8, 36, gate);
    run(5000, 6, 2, 8, gate);
    run(3000, 100, 4, 4, gate);
    run(3, 4, 2, 60000, gate);
  }
  run_images({0, 2, 2, 3}, 64, 64, 9, 7);
  run_images({0, 1, 4}, 24, 136, 5, 6);
  run_images({0, 1, 2}, 320, 320, 7, 5);
  run_images({0, 0, 3, 4}, 128, 72, 12, 12);
  run_linear({0, 300, 300, 301, 560}, 72, 144);  // whole tiles, and pairs of them of two experts
  run_linear({0, 0, 5}, 8, 16);
  run_linear({0, 9000, 9001, 18000}, 8, 144);  // more tiles than blocks: clusters, tile after tile
  run_linear({0, 128, 256, 257}, 200, 336);
  run_linear({0, 130, 130, 400}, 1032, 1040);  // long sums, whose gate does not go through shared memory; expert by expert
  // Wide tiles, which leave through shared memory, several a block: of the product, and of the gradient of its rows.
  run_linear({0, 1100, 1100, 1101, 1229, 2700, 3258}, 24, 1552);
  run_linear({0, 1100, 1100, 1101, 1229, 2700, 3258}, 1552, 32);
  std::vector<int32_t> single(151);  // several tiles a block
  for (int e = 0; e <= 150; ++e) single[e] = e;
  run_linear(single, 24, 272);
  run_weights_in_parts({0, 3000, 5950, 9000, 9000, 15001});
  for (const auto activation : {kernel::Activation::gelu, kernel::Activation::swiglu}) {
    run_rows({0, 3, 3, 700, 701}, 24, activation);
    run_rows({0, 0, 5}, 7, activation);
  }
  run_depthwise({0, 2, 2, 3}, {.height = 9, .width = 7, .in = 24, .out = 24, .kernel = {3, 3}, .padding = {1, 1}});
  run_depthwise({0, 1, 4}, {.height = 12, .width = 13, .in = 35, .out = 35, .kernel = {5, 7}, .padding = {2, 3}});
  run_depthwise({0, 0, 9}, {.height = 20, .width = 17, .in = 264, .out = 264, .kernel = {3, 3}, .padding = {4, 2},
                            .dilation = {2, 2}});
  run_depthwise({0, 1, 1, 3}, {.height = 19, .width = 11, .in = 136, .out = 136, .kernel = {3, 3}, .padding = {1, 1}});
  run_layer_norm({0, 3, 3, 40}, 5, 64);
  run_layer_norm({0, 2, 3}, 7, 320);
  run_layer_norm({0, 0, 9}, 1, 12);
  run_resample(2, 3, 9, 1);
  run_resample(2, 1, 12, 1);   // four pixels a thread, two by two taps
  run_resample(2, 1, 12, 2);
  run_resample(2, 8, 9, 1);    // vectors of channels
  run_resample(3, 1, 16, 7);   // several lanes a sample
  run_resample(1, 40, 20, 17);
  std::puts("ok");
}
