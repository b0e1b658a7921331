#include "examples/prediction/mask_predictor.hpp"

#include <ATen/core/grad_mode.h>

#include <utility>

#include "examples/device.hpp"
#include "examples/prediction/loaded_model.hpp"
#include "moecod/io/map_image.hpp"
#include "moecod/post/ensemble.hpp"
#include "moecod/post/tta.hpp"
#include "moecod/train/batch.hpp"

namespace moecod::examples {

namespace {

/// One checkpoint's model, and what it answered for the batch at hand.
struct Member {
  LoadedModel model;
  Asked last;
};

/// The side that the models see: the one asked for, or that of the checkpoints' training.
int64_t side_of(const PredictionFlags& flags, const std::vector<Member>& members) {
  const int64_t size = flags.size > 0 ? flags.size : members.front().model.size;
  for (std::size_t m = 0; flags.size == 0 && m < members.size(); ++m)
    TORCH_CHECK(members[m].model.size == size, "--checkpoint: ", flags.checkpoints.front(), " was trained at ", size,
                " pixels, ", flags.checkpoints[m], " at ", members[m].model.size, ": say which to use with --img-size");
  TORCH_CHECK(size % 32 == 0, "--img-size must be a multiple of 32, got ", size);
  return size;
}

/// A member keeps its answer for the first view, which is the picture as it is.
post::Ensemble ensemble_of(std::vector<Member>& members, const std::vector<post::View>& views) {
  std::vector<post::Ensemble::Model> models;
  for (Member& member : members)
    models.emplace_back(post::Augmented(
        [&member](const at::Tensor& images) {
          Asked out = member.model.ask(images);
          if (!member.last.logits.defined()) member.last = out;
          return out.logits;
        },
        views));
  return post::Ensemble(std::move(models));
}

/// levels as [B, K] on the host; the decisions for picture b.
std::vector<Decision> decisions_of(const std::vector<LevelDecision>& levels, int64_t b) {
  std::vector<Decision> out;
  for (const LevelDecision& level : levels) {
    Decision& decision = out.emplace_back();
    for (int64_t k = 0; k < level.experts.size(1); ++k) {
      decision.experts.push_back(level.experts[b][k].item<int64_t>());
      decision.weights.push_back(level.weights[b][k].item<double>());
    }
  }
  return out;
}

/// LibTorch's errors carry a backtrace in what(); users get the message.
template <class Work>
auto without_backtrace(const Work& work) {
  try {
    return work();
  } catch (const c10::Error& error) {
    throw std::runtime_error(error.what_without_backtrace());
  }
}

}  // namespace

struct MaskPredictor::Models {
  at::Device device;
  std::vector<Member> members;
  int64_t size;
  post::Ensemble ensemble;

  Models(const PredictionFlags& flags)
      : device(device_named(flags.device)),
        members(load(flags, device)),
        size(side_of(flags, members)),
        ensemble(ensemble_of(members, post::views_from(flags.views))) {}

  static std::vector<Member> load(const PredictionFlags& flags, at::Device device) {
    std::vector<Member> out;
    for (const std::string& checkpoint : flags.checkpoints) out.push_back({load_model(checkpoint, device), {}});
    TORCH_CHECK(!out.empty(), "--checkpoint: expected at least one, got none");
    return out;
  }
};

MaskPredictor::MaskPredictor(const PredictionFlags& flags)
    : models_(without_backtrace([&] { return std::make_unique<Models>(flags); })) {}
MaskPredictor::~MaskPredictor() = default;

const std::vector<std::string>& MaskPredictor::experts(std::size_t checkpoint) const {
  return models_->members.at(checkpoint).model.experts;
}

std::vector<Prediction> MaskPredictor::operator()(const std::vector<Image>& pictures) {
  if (pictures.empty()) return {};
  return without_backtrace([&] {
    const at::NoGradGuard no_grad;
    data::Batch batch;
    batch.height = batch.width = models_->size;
    for (const Image& picture : pictures)
      data::append(batch, {.image = picture, .mask = Image(1, 1, 1)}, batch.size);
    const at::Tensor logits = models_->ensemble(train::to_device(std::move(batch), models_->device).images);
    std::vector<Prediction> out(pictures.size());
    for (std::size_t i = 0; i < pictures.size(); ++i)
      out[i].mask = io::map_image(logits[int64_t(i)][0], pictures[i].height, pictures[i].width);
    for (Member& member : models_->members) {
      for (LevelDecision& level : member.last.levels) level = {level.experts.to(at::kCPU), level.weights.to(at::kCPU)};
      for (std::size_t i = 0; i < pictures.size(); ++i)
        out[i].decisions.push_back(decisions_of(member.last.levels, int64_t(i)));
      member.last = {};
    }
    return out;
  });
}

}  // namespace moecod::examples
