#pragma once
// The model-level model that the programs train and use: its type, its options, and how a file records them.

#include <nlohmann/json.hpp>

#include <memory>
#include <string>
#include <tuple>

#include "examples/policy_options.hpp"
#include "moecod/backbone/any.hpp"
#include "moecod/core/options.hpp"
#include "moecod/expert/pranet.hpp"
#include "moecod/expert/sinet.hpp"
#include "moecod/expert/ujsc.hpp"
#include "moecod/expert/zoomnet.hpp"
#include "moecod/io/weights.hpp"
#include "moecod/model/model_level.hpp"
#include "moecod/moe/balance/loss_free.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/experts/distinct.hpp"
#include "moecod/moe/router/pyramid.hpp"
#include "moecod/moe/select/top_k.hpp"
#include "moecod/train/flags.hpp"

namespace moecod::examples {

inline const std::vector<std::string> expert_names{"SINet", "PraNet", "ZoomNet", "UJSC"};

/// The variant compiled. What is a template argument cannot be a flag: --num-experts and --top-k accept these values
/// only. For another number or another policy, change these lines (with the include of the policy) and build again.
using Camo = ModelLevel<backbone::Any,
                        Mixture<router::Pyramid<>, Distinct<expert::SINet, expert::PraNet, expert::ZoomNet, expert::Ujsc>,
                                select::TopK<2>, balance::LossFree, dispatch::Batched>>;

/// What makes one model of that type differ from another.
struct CamoOptions {
  std::string backbone = "pvt_v2_b2";
  int64_t num_experts = Camo::num_experts;
  int64_t top_k = experts_per_row<Camo::mixture_type>();
  int64_t sinet_width = expert::SINet::Options().width;
  int64_t pranet_width = expert::PraNet::Options().width;
  int64_t zoomnet_width = expert::ZoomNet::Options().width;
  int64_t ujsc_width = expert::Ujsc::Options().width;
  bool zoom_resample = false;
  int64_t router_width = router::Pyramid<>::Options().width;
  BalanceFlags<Camo::mixture_type::balance_type> balance;
  bool gradient_checkpointing = false;

  static constexpr auto options = std::make_tuple(
      option(&CamoOptions::backbone, "backbone", "timm's name of the shared backbone"),
      option(&CamoOptions::num_experts, "num-experts", "experts; as compiled",
             between(Camo::num_experts, Camo::num_experts)),
      option(&CamoOptions::top_k, "top-k", "experts a picture; as compiled",
             between(experts_per_row<Camo::mixture_type>(), experts_per_row<Camo::mixture_type>())),
      option(&CamoOptions::sinet_width, "sinet-width", "channels of the SINet-style decoder", at_least(8)),
      option(&CamoOptions::pranet_width, "pranet-width", "channels of the PraNet-style decoder", at_least(8)),
      option(&CamoOptions::zoomnet_width, "zoomnet-width", "channels of the ZoomNet-style decoder", at_least(8)),
      option(&CamoOptions::ujsc_width, "ujsc-width", "channels of the UJSC-style decoder", at_least(8)),
      option(&CamoOptions::zoom_resample, "zoom-resample",
             "ZoomNet-style: resize features instead of encoding the picture at two more scales"),
      option(&CamoOptions::router_width, "router-width", "channels of the router's branches", at_least(1)),
      nested(&CamoOptions::balance),
      option(&CamoOptions::gradient_checkpointing, "gradient-checkpointing",
             "compute activations anew in the backward pass instead of keeping them"));
};

/// The options of that model, or of one that differs from it in the policies of its mixture.
template <class Model = Camo>
typename Model::Options camo_options(const CamoOptions& o) {
  typename Model::Options out;
  out.backbone.name = o.backbone;
  auto& [sinet, pranet, zoomnet, ujsc] = out.mixture.experts.each;
  sinet.width = o.sinet_width;
  pranet.width = o.pranet_width;
  zoomnet.width = o.zoomnet_width;
  zoomnet.resample = o.zoom_resample;
  ujsc.width = o.ujsc_width;
  out.mixture.router.width = o.router_width;
  out.mixture.balance = o.balance;
  out.recompute = o.gradient_checkpointing;
  return out;
}

/// The key under which a weights file records the model's options, as JSON.
inline constexpr const char* model_key = "moecod.model";

/// The key under which it records the side of the pictures it was trained on, in pixels.
inline constexpr const char* size_key = "moecod.img_size";

/// The side that a weights file was trained at, or 448 where it does not say.
inline int64_t recorded_size(const std::filesystem::path& path) {
  const auto metadata = io::SafetensorsFile(io::detail::weights_file(path)).metadata();
  const auto found = metadata.find(size_key);
  return found == metadata.end() ? 448 : std::stoll(found->second);
}

/// The options of the model in a weights file.
/// Errors: std::runtime_error if the file holds no model of these programs.
inline CamoOptions recorded_options(const std::filesystem::path& path) {
  const io::SafetensorsFile file(io::detail::weights_file(path));
  const auto found = file.metadata().find(model_key);
  if (found == file.metadata().end())
    throw std::runtime_error(path.string() + " does not record a model (no '" + model_key +
                             "' in its header): give a checkpoint of one of the trainers");
  CamoOptions options;
  train::options_from_json(nlohmann::json::parse(found->second), options);
  return options;
}

/// The model of a weights file, in eval mode.
/// Errors: as recorded_options; one c10::Error that lists the keys that do not fit.
inline std::unique_ptr<Camo> load_camo(const std::filesystem::path& path) {
  check_variant<Camo>(path.string(), io::SafetensorsFile(io::detail::weights_file(path)).metadata());
  auto model = std::make_unique<Camo>(camo_options(recorded_options(path)));
  io::load_state(*model, io::read_state(path));
  model->eval();
  return model;
}

}  // namespace moecod::examples
