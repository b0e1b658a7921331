#pragma once
#include <torch/nn/module.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "moecod/core/options.hpp"
#include "moecod/core/walk.hpp"
#include "moecod/layers/stack.hpp"
#include "moecod/train/parameter_groups.hpp"

namespace moecod::train {

/// Which experts see a picture while a stage trains.
enum class Exposure {
  drawn,   ///< the same few experts for all pictures of a step, drawn anew each step
  only,    ///< one given expert
  routed,  ///< those that the router chooses
  all      ///< every expert on every picture; the answer still combines the router's choice
};

/// What a stage's loss is made of; zero leaves a term out.
///
///     loss = mixture * mean_n L(y_n) + mean over assignments (r_ne E_n) (own * l_ne + answer * L(y_ne))
///            + router * CE(r_n, softmax(logits_n))
///
/// L is the structure loss, of the combined answer y_n and of expert e's own answer y_ne, l_ne the expert's own loss
/// on picture n, E_n the number of experts that saw the picture. r_ne, the expert's responsibility for the picture, is
/// 1/E_n up to `from` of the stage, then
///
///     r_n = (1 - floor) softmax_e(-(L(y_ne) - handicap * m_e - mean_e) / (spread * temperature)) + floor / E_n
///
/// with m_e a running mean of L(y_ne) and spread the running deviation of the centred losses. The router
/// learns r without the floor. With `detach_gates` the combined answer trains experts and backbone only.
struct Objective {
  double mixture = 0;
  double own = 1;
  double answer = 0;
  double router = 0;
  bool detach_gates = false;
  double temperature = 1;  ///< > 0, in units of the spread
  double floor = 0.2;      ///< in [0, 1]
  double handicap = 0.5;   ///< in [0, 1]
  double from = 1;         ///< share of the stage before responsibilities begin, in [0, 1]; 1: never

  static constexpr auto options = std::make_tuple(
      option(&Objective::mixture, "mixture-weight", "weight of the combined answer's loss", at_least(0)),
      option(&Objective::own, "own-weight", "weight of the experts' own losses", at_least(0)),
      option(&Objective::answer, "answer-weight",
             "weight of the structure loss of the experts' final maps, beside their own", at_least(0)),
      option(&Objective::router, "router-weight",
             "weight of the router's cross-entropy with the experts' responsibilities", at_least(0)),
      option(&Objective::detach_gates, "detach-gates", "the combined answer does not train the router"),
      option(&Objective::temperature, "responsibility-temperature", "in units of the losses' spread", above(0)),
      option(&Objective::floor, "responsibility-floor", "share of a picture's loss that is spread evenly",
             between(0, 1)),
      option(&Objective::handicap, "responsibility-handicap", "share of an expert's mean loss taken off its own",
             between(0, 1)),
      option(&Objective::from, "responsibility-from",
             "share of the stage before responsibilities begin; 1 for never", between(0, 1)));
};

/// One stage of training, as data.
struct Stage {
  int64_t number = 1;
  std::string name;
  std::vector<std::string> trains;      ///< prefixes of parameters; all others are frozen and stay in eval mode
  bool fixed_statistics = false;        ///< batch statistics stay as they are, also in what trains
  std::vector<RateFactor> rate_factors;
  Exposure exposure = Exposure::routed;
  int64_t experts_per_step = 0;         ///< Exposure::drawn
  int64_t expert = -1;                  ///< Exposure::only
  Objective objective;
};

/// Puts a model into the state a stage wants: what does not train requires no gradient (zero gradients would still
/// meet weight decay) and is in eval mode (its statistics must not drift).
/// Errors: c10::Error for a prefix that names nothing.
inline void enter(const Stage& stage, torch::nn::Module& model) {
  const auto trained = [&](const std::string& name) {
    return std::any_of(stage.trains.begin(), stage.trains.end(),
                       [&](const std::string& prefix) { return detail::below(name, prefix); });
  };
  std::set<std::string> names;
  for_each_module(model, [&](const std::string& name, torch::nn::Module&) { names.insert(name); });
  for (const std::string& prefix : stage.trains)
    TORCH_CHECK(names.contains(prefix), "stage ", stage.name, ": the model has no part '", prefix, "'");
  for (auto& item : model.named_parameters()) item.value().set_requires_grad(trained(item.key()));
  for_each_module(model, [&](const std::string& name, torch::nn::Module& module) {
    const bool fixed = stage.fixed_statistics && dynamic_cast<layers::BatchStatistics*>(&module) != nullptr;
    module.train(trained(name) && !fixed);
  });
}

}  // namespace moecod::train
