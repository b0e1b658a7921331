// The kernels without LibTorch, so that a checker of memory sees only them: every output is written, and read back.
//
//     compute-sanitizer --tool initcheck test_cuda_alone        also: memcheck, racecheck, synccheck
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
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
  std::puts("ok");
}
