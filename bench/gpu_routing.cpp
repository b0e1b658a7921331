// Select, plan, gather and combine on a GPU, forward and backward: the kernels of moecod::cuda against their bytes and
// against LibTorch's operations.
//
//     bench_gpu_routing --benchmark_out=routing.json --benchmark_out_format=json
//     python bench/gpu_table.py routing.json
#include "bench/gpu.hpp"
#include "moecod/moe/combine.hpp"
#include "moecod/moe/select/top_k.hpp"

namespace moecod::bench {
namespace {

constexpr int64_t million = 1 << 20;

at::TensorOptions on(at::ScalarType type) { return at::TensorOptions().dtype(type).device(at::kCUDA); }

/// Logits [N, E] of a load: even, by a Zipf law, or every row to the same experts.
at::Tensor logits_of(const std::string& load, int64_t rows, int64_t experts) {
  const at::Tensor noise = at::randn({rows, experts}, on(at::kFloat));
  if (load == "uniform") return noise;
  const at::Tensor rank = at::arange(experts, on(at::kFloat));
  return load == "zipf" ? noise - rank.add(1).log() * 2 : noise - rank * 20;
}

struct Shape {
  int64_t rows, experts, per_row;
  std::string load = "uniform";
  std::string text() const {
    return "/N:" + std::to_string(rows) + "/E:" + std::to_string(experts) + "/K:" + std::to_string(per_row) +
           "/load:" + load;
  }
};

struct SelectBackward {
  static constexpr const char* name = "moecod::select_backward";
  using signature = at::Tensor(const std::optional<at::Tensor>&, const std::optional<at::Tensor>&, const at::Tensor&,
                               const at::Tensor&, const at::Tensor&, std::string_view);
};
struct GatherBackward {
  static constexpr const char* name = "moecod::gather_backward";
  using signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt);
};
struct CombineBackward {
  static constexpr const char* name = "moecod::combine_backward";
  using signature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                       const at::Tensor&, const at::Tensor&, std::array<bool, 2>);
};

Routing select_by_kernel(const at::Tensor& logits, int64_t k) {
  Routing r;
  std::tie(r.scores, r.experts, r.weights, r.counts) =
      operators::find<operators::Select>()->call(logits, std::nullopt, std::nullopt, k, "top_k_softmax");
  r.assignments = r.experts.numel();
  return r;
}

void select(benchmark::State& state, const Shape& s, bool kernel, bool graph) {
  torch::manual_seed(1);
  const double bytes = double(s.rows) * (8.0 * s.experts + 8.0 * s.per_row);
  std::vector<at::Tensor> logits(sets_for(bytes));
  for (auto& l : logits) l = logits_of(s.load, s.rows, s.experts);
  time(
      state, bytes, graph,
      [&](int i) {
        if (kernel) {
          select_by_kernel(logits[i], s.per_row);
        } else {
          select::detail::top_k<gate::TopKSoftmax>(logits[i], {}, s.per_row);
        }
      },
      static_cast<int>(logits.size()));
}

/// Through the weights alone, or with the scores, as an auxiliary loss does.
void select_backward(benchmark::State& state, const Shape& s, bool scores, bool kernel) {
  torch::manual_seed(1);
  const double bytes = double(s.rows) * (4.0 * s.experts * (scores ? 3 : 1) + 12.0 * s.per_row);
  std::vector<std::function<void()>> calls;
  for (int i = 0; i < sets_for(bytes); ++i) {
    const at::Tensor x = logits_of(s.load, s.rows, s.experts).set_requires_grad(true);
    const Routing r =
        kernel ? select_by_kernel(x.detach(), s.per_row) : select::detail::top_k<gate::TopKSoftmax>(x, {}, s.per_row);
    const at::Tensor ds = at::randn_like(r.scores), dw = at::randn_like(r.weights);
    if (kernel) {
      calls.push_back([=] {
        operators::find<SelectBackward>()->call(scores ? std::optional(ds) : std::nullopt, dw, r.scores, r.experts,
                                                r.weights, "top_k_softmax");
      });
    } else {
      calls.push_back([=] {
        if (scores) {
          torch::autograd::grad({r.scores, r.weights}, {x}, {ds, dw}, /*retain_graph=*/true);
        } else {
          torch::autograd::grad({r.weights}, {x}, {dw}, /*retain_graph=*/true);
        }
      });
    }
  }
  time(state, bytes, /*graph=*/true, [&](int i) { calls[i](); }, static_cast<int>(calls.size()));
}

void plan(benchmark::State& state, const Shape& s, bool kernel, bool graph) {
  torch::manual_seed(1);
  const double bytes = 12.0 * double(s.rows) * double(s.per_row);
  std::vector<Routing> routings(sets_for(bytes));
  for (auto& r : routings) {
    r = select_by_kernel(logits_of(s.load, s.rows, s.experts), s.per_row);
    r.scores = r.weights = at::Tensor();
  }
  time(
      state, bytes, graph,
      [&](int i) {
        const Routing& r = routings[i];
        if (kernel) {
          operators::find<operators::Plan>()->call(r.experts, s.experts, r.assignments);
        } else {
          detail::plan(r.experts, r.counts, r.assignments);
        }
      },
      static_cast<int>(routings.size()));
}

enum class Rows { gather, gather_backward, combine, combine_backward };

void rows(benchmark::State& state, Rows what, const Shape& s, std::vector<int64_t> row, at::ScalarType type,
          bool kernel) {
  torch::manual_seed(1);
  int64_t width = 1;
  for (int64_t size : row) width *= size;
  const double in = double(s.rows) * width * c10::elementSize(type), sorted = in * s.per_row;
  const double slots = double(s.rows) * s.per_row;
  const double bytes = what == Rows::combine_backward ? in + 2 * sorted + 12 * slots
                                                      : in + sorted + (what == Rows::combine ? 8 : 4) * slots;
  struct Set {
    at::Tensor few, many, weights;
    Plan plan;
  };
  std::vector<Set> sets;
  for (int i = 0; i < sets_for(bytes); ++i) {
    const Routing r = select_by_kernel(logits_of(s.load, s.rows, s.experts), s.per_row);
    std::vector<int64_t> few(row), many(row);
    few.insert(few.begin(), s.rows);
    many.insert(many.begin(), s.rows * s.per_row);
    const bool reads_many = what != Rows::gather, reads_few = what == Rows::gather || what == Rows::combine_backward;
    sets.push_back({reads_few ? at::randn(few, on(type)) : at::Tensor(),
                    reads_many ? at::randn(many, on(type)) : at::Tensor(), r.weights, Plan(r)});
  }
  const auto call = [&](int i) {
    const auto& [few, many, weights, plan] = sets[i];
    const at::NoGradGuard no_grad;
    switch (what) {
      case Rows::gather:
        if (kernel) {
          gather(few, plan);
        } else {
          at::index_select(few, 0, plan.rows());
        }
        break;
      case Rows::gather_backward:
        if (kernel) {
          operators::find<GatherBackward>()->call(many, plan.order, plan.position, 0);
        } else {
          auto sizes = many.sizes().vec();
          sizes[0] = s.rows;
          detail::gather_backward(many, plan.rows(), sizes);
        }
        break;
      case Rows::combine:
        if (kernel) {
          combine(many, weights, plan);
        } else {
          detail::combine_forward(many, weights, plan.position);
        }
        break;
      case Rows::combine_backward:
        if (kernel) {
          operators::find<CombineBackward>()->call(few, many, weights, plan.order, plan.position, {true, true});
        } else {
          detail::combine_backward(few, many, weights, plan.order, plan.position, true, true);
        }
    }
  };
  time(state, bytes, /*graph=*/true, call, static_cast<int>(sets.size()));
}

/// A kernel that does nothing to speak of: what any launch costs.
void launch(benchmark::State& state, bool graph) {
  at::Tensor one = at::zeros({1}, on(at::kFloat));
  time(state, 4, graph, [&](int) { one.zero_(); }, 1);
}

void add_all() {
  for (bool graph : {true, false})
    add(std::string("launch/by:") + (graph ? "kernel" : "kernel_eager"),
        [=](benchmark::State& state) { launch(state, graph); });

  std::vector<Shape> shapes;
  for (int64_t experts : {6, 64, 256})
    for (int64_t per_row : {2, 8}) {
      if (per_row > experts) continue;
      for (int64_t rows : {int64_t{4096}, int64_t{65536}, million}) shapes.push_back({rows, experts, per_row});
      for (const char* load : {"zipf", "one"}) shapes.push_back({million, experts, per_row, load});
    }
  for (const Shape& s : shapes) {
    add("select" + s.text() + "/by:kernel", [=](benchmark::State& state) { select(state, s, true, true); });
    add("plan" + s.text() + "/by:kernel", [=](benchmark::State& state) { plan(state, s, true, true); });
    if (s.load != "uniform") continue;
    add("select" + s.text() + "/by:libtorch", [=](benchmark::State& state) { select(state, s, false, true); });
    add("plan" + s.text() + "/by:libtorch", [=](benchmark::State& state) { plan(state, s, false, true); });
    if (s.rows <= 65536) {
      add("select" + s.text() + "/by:kernel_eager", [=](benchmark::State& state) { select(state, s, true, false); });
      add("plan" + s.text() + "/by:kernel_eager", [=](benchmark::State& state) { plan(state, s, true, false); });
    }
    for (bool scores : {false, true})
      for (bool kernel : {true, false})
        add((scores ? "select_backward_with_scores" : "select_backward") + s.text() +
                (kernel ? "/by:kernel" : "/by:libtorch"),
            [=](benchmark::State& state) { select_backward(state, s, scores, kernel); });
  }

  struct Case {
    Shape shape;
    std::vector<int64_t> row;
    at::ScalarType type;
  };
  const std::vector<Case> cases{
      {{4096, 8, 2}, {320}, at::kBFloat16},           {{65536, 8, 2}, {320}, at::kBFloat16},
      {{million, 8, 2}, {320}, at::kBFloat16},        {{million, 8, 2, "zipf"}, {320}, at::kBFloat16},
      {{million, 8, 2, "one"}, {320}, at::kBFloat16}, {{million, 64, 8}, {320}, at::kBFloat16},
      {{million, 8, 2}, {64}, at::kBFloat16},         {{65536, 128, 8}, {1536}, at::kBFloat16},
      {{million, 8, 2}, {320}, at::kFloat},           {{million, 8, 2}, {35}, at::kBFloat16},
      {{64, 6, 2}, {320, 28, 28}, at::kBFloat16},     {{12, 6, 2}, {320, 28, 28}, at::kBFloat16},
  };
  const std::pair<const char*, Rows> kinds[] = {{"gather", Rows::gather},
                                                {"gather_backward", Rows::gather_backward},
                                                {"combine", Rows::combine},
                                                {"combine_backward", Rows::combine_backward}};
  for (const auto& [name, what] : kinds)
    for (const Case& c : cases)
      for (bool kernel : {true, false}) {
        if (!kernel && c.shape.load != "uniform") continue;
        std::string width;
        for (int64_t size : c.row) width += (width.empty() ? "" : "x") + std::to_string(size);
        add(name + c.shape.text() + "/row:" + width + "/type:" + c10::toString(c.type) +
                (kernel ? "/by:kernel" : "/by:libtorch"),
            [=, what = what](benchmark::State& state) { rows(state, what, c.shape, c.row, c.type, kernel); });
      }
}

}  // namespace
}  // namespace moecod::bench

int main(int argc, char** argv) {
  moecod::bench::add_all();
  return moecod::bench::run(argc, argv);
}
