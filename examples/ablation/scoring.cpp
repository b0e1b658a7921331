#include "examples/ablation/scoring.hpp"

#include <algorithm>
#include <cmath>

#include "moecod/data/loader.hpp"
#include "moecod/data/open_source.hpp"
#include "moecod/io/map_image.hpp"
#include "moecod/metric/evaluator.hpp"
#include "moecod/moe/monitor.hpp"
#include "moecod/train/batch.hpp"
#include "moecod/train/image_iou.hpp"

namespace moecod::examples::ablation {

nlohmann::ordered_json score_test(const std::function<Answer(const at::Tensor& images)>& ask, const std::string& data_root,
                                  int64_t size, int64_t batch_size, int64_t max_bad, at::Device device) {
  using Json = nlohmann::ordered_json;
  const at::NoGradGuard no_grad;
  data::Loader<data::AnySource> loader(
      data::open_source(data_root, data::Split::Test, {.max_bad = max_bad}),
      {.batch = batch_size, .height = size, .width = size, .train = false, .full_masks = true});
  metric::Evaluator evaluator;
  std::vector<Monitor> monitors;
  double iou = 0;
  int64_t pictures = 0;
  loader.start(0);
  while (auto raw = loader.next()) {
    const train::DeviceBatch batch = train::to_device(std::move(*raw), device);
    const Answer answer = ask(batch.images);
    iou += train::image_iou(answer.logits, batch.masks).sum().item<double>();
    pictures += batch.images.size(0);
    for (std::size_t i = 0; i < batch.names.size(); ++i) {
      const Image& truth = batch.full_masks[i];
      const Image map = io::map_image(answer.logits[int64_t(i)][0], truth.height, truth.width);
      evaluator.add({map.pixels.data(), truth.pixels.data(), truth.height, truth.width});
    }
    const bool labelled = std::all_of(batch.regimes.begin(), batch.regimes.end(), [](int64_t r) { return r >= 0; });
    monitors.resize(answer.routing.size());
    for (std::size_t i = 0; i < monitors.size(); ++i) {
      // Labels are of pictures: a routing by position has none.
      const bool by_picture = answer.routing[i].rows() == int64_t(batch.regimes.size());
      monitors[i].observe(answer.routing[i], labelled && by_picture ? batch.regimes : std::vector<int64_t>{});
    }
  }
  TORCH_CHECK(pictures > 0, "--data-root: no readable picture in the test part of ", data_root);
  const auto or_null = [](double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); };
  Json out{{"pictures", pictures}};
  out["metrics"]["mean_iou"] = iou / double(pictures);
  for (const auto& [name, value] : evaluator.results()) out["metrics"][name] = or_null(value);
  for (const Monitor& monitor : monitors) {
    const Monitor::Report report = monitor.report();
    out["levels"].push_back({{"usage", report.usage},
                             {"max_violation", report.max_violation},
                             {"noise_floor", report.noise_floor},
                             {"entropy", or_null(report.entropy)},
                             {"label_information", or_null(report.label_information)},
                             {"label_information_chance", or_null(report.label_information_chance)}});
  }
  return out;
}

}  // namespace moecod::examples::ablation
