#pragma once
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moecod/model/mac_counter.hpp"
#include "moecod/moe/experts/run.hpp"

namespace moecod {

/// Number of values in the parameters of a module; buffers do not count.
inline int64_t parameter_count(const torch::nn::Module& module) {
  int64_t total = 0;
  for (const at::Tensor& parameter : module.parameters()) total += parameter.numel();
  return total;
}

/// What a model costs: its parameters, and the multiply-adds (as MacCounter counts them) for one image.
struct Summary {
  struct Part {
    std::string name;
    int64_t parameters = 0, macs = 0;
  };
  std::vector<Part> parts;  ///< backbone, router, then each expert
  /// The whole model, and what one image uses when the load is balanced: backbone, router, and K / E of all experts.
  Part total{"total"}, active{"active"};
};

/// Measures a ModelLevel by running its parts on one image of zeros, in evaluation mode, which the model is
/// left in.
///
/// Experts are measured one by one, whatever the router would choose; passes that an expert makes through the shared
/// backbone count as the expert's. Synchronises: never, but it runs the whole model once.
/// Errors: c10::Error when the backbone does not take images of height x width.
template <class Model>
Summary summarise(Model& model, int64_t height, int64_t width) {
  using Mixture = typename Model::mixture_type;
  constexpr int64_t E = Mixture::num_experts;
  const at::NoGradGuard no_grad;
  model.eval();
  const at::Tensor image = at::zeros({1, 3, height, width}, model.parameters().front().options());
  Summary out;

  auto scene = [&] {
    const MacCounter counter;
    auto seen = model.look(image);
    out.parts.push_back({"backbone", parameter_count(*model.backbone), counter.total()});
    return seen;
  }();
  {
    const MacCounter counter;
    model.mixture->router->forward(scene);
    out.parts.push_back({"router", parameter_count(*model.mixture->router), counter.total()});
  }
  auto& experts = *model.mixture->experts;
  experts.visit(scene, [&](int64_t e, const auto& in, auto&& run) {
    const MacCounter counter;
    auto output = run(in);
    int64_t parameters = parameter_count(experts) / E;
    if constexpr (!Mixture::experts_type::stacked) parameters = parameter_count(*experts.children().at(e));
    out.parts.push_back({"expert " + std::to_string(e), parameters, counter.total()});
    return experts::Part<std::remove_cvref_t<decltype(output)>>{{}, {}, std::move(output)};
  });

  const double share = static_cast<double>(Mixture::select_type::assignments(E, E)) / static_cast<double>(E * E);
  double parameters = 0, macs = 0;
  for (std::size_t i = 0; i < out.parts.size(); ++i) {
    const auto& part = out.parts[i];
    out.total.parameters += part.parameters;
    out.total.macs += part.macs;
    parameters += (i < 2 ? 1.0 : share) * static_cast<double>(part.parameters);
    macs += (i < 2 ? 1.0 : share) * static_cast<double>(part.macs);
  }
  out.active.parameters = static_cast<int64_t>(parameters);
  out.active.macs = static_cast<int64_t>(macs);
  return out;
}

}  // namespace moecod
