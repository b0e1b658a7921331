#pragma once
#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include <concepts>
#include <cstdint>
#include <string>

#include "moecod/core/state.hpp"
#include "moecod/data/any_source.hpp"
#include "moecod/data/loader.hpp"
#include "moecod/distributed/group.hpp"
#include "moecod/train/stage.hpp"

namespace moecod::train {

/// How good a model is on a validation set: words for the terminal, members for the line of the log. `routed` says
/// whether the stage asks the router at all.
template <class S>
concept score = std::default_initializable<S> && requires(const S& s, nlohmann::ordered_json& json, bool routed) {
  { s.summary() } -> std::convertible_to<std::string>;
  s.add_to(json, routed);
};

/// What a trainer has to know of a kind of model.
///
///     Task(const Stage&, at::Device, int64_t replicas)
///     draw(rows)                      random choices that all replicas of a micro-batch share; called once for it
///     loss(r, model, images, masks, drawn, progress) -> []   of replica r's share of a micro-batch: the mean over it;
///                                     images [B, 3, H, W], masks [B, 1, H, W] in [0, 1], progress in [0, 1). Called
///                                     from several threads at once, each with its own r.
///     score(model, loader, group)     in eval mode and without gradients; the loader gives this rank's share, the result is
///                                     that of all ranks' shares together; leaves the model's modes as they were
///     state()                         tensors of this rank to be saved and put back, live
template <class T>
concept task =
    std::constructible_from<T, const Stage&, at::Device, int64_t> && score<typename T::score_type> &&
    requires(T& task, const T& constant, typename T::model_type& model, const at::Tensor& t, int64_t n, double progress,
             data::Loader<data::AnySource>& loader,
             distributed::Group& group) {
      { task.loss(n, model, t, t, task.draw(n), progress) } -> std::same_as<at::Tensor>;
      { task.score(model, loader, group) } -> std::same_as<typename T::score_type>;
      { constant.state() } -> std::same_as<StateDict>;
    };

}  // namespace moecod::train
