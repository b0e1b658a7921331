// Compares a trained mixture with its experts and with other ways to combine them, and shows its decisions: writes
// DIR/summary.json and DIR/samples for the report.
//
//   inspect --checkpoint checkpoints_moe/ensemble_best.safetensors --data-root camo --output DIR

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <future>
#include <iostream>
#include <map>
#include <random>
#include <set>

#include "examples/camo_model.hpp"
#include "examples/device.hpp"
#include "moecod/data/any_source.hpp"
#include "moecod/data/loader.hpp"
#include "moecod/data/open_source.hpp"
#include "moecod/io/file.hpp"
#include "moecod/io/image_file.hpp"
#include "moecod/io/map_image.hpp"
#include "moecod/metric/evaluator.hpp"
#include "moecod/model/answers.hpp"
#include "moecod/moe/monitor.hpp"
#include "moecod/train/batch.hpp"
#include "moecod/train/progress.hpp"

namespace {

using namespace moecod;
using examples::Camo;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;
constexpr int64_t E = Camo::num_experts;

/// One way to answer, over a data set.
struct Way {
  metric::Evaluator evaluator;
  std::vector<double> iou;  ///< of each picture at 0.5
};

/// One picture kept for the report.
struct Picture {
  std::string name;
  int64_t index = 0;  ///< of the source
  int64_t regime = -1;
  Image truth, prediction;
  std::vector<int64_t> experts;
  std::vector<double> weights;
  double iou = 0;
};

struct Results {
  std::map<std::string, Way> ways;
  std::vector<Picture> pictures;
  std::vector<int64_t> regimes;
  Monitor monitor;
};

std::vector<std::vector<int64_t>> all_pairs() {
  std::vector<std::vector<int64_t>> pairs;
  for (int64_t a = 0; a < E; ++a)
    for (int64_t b = a + 1; b < E; ++b) pairs.push_back({a, b});
  return pairs;
}

std::string pair_name(const std::vector<int64_t>& pair) {
  return "pair_" + std::to_string(pair[0]) + std::to_string(pair[1]);
}

/// Intersection over union where the probability is above 0.5; 0 where both are empty. No rescaling of the map, which
/// PySODMetrics' iou_binary has.
double iou_at_half(const Image& prediction, const Image& truth) {
  int64_t both = 0, any = 0;
  for (std::size_t i = 0; i < truth.pixels.size(); ++i) {
    const bool p = prediction.pixels[i] >= 128, t = truth.pixels[i] >= 128;
    both += p && t;
    any += p || t;
  }
  return any > 0 ? double(both) / double(any) : 0;
}

/// Scores each way's answers for a batch, the ways side by side: answers of a way [H, W] logits, a picture each.
void score(Results& results, const std::map<std::string, std::vector<at::Tensor>>& ways, const std::vector<Image>& truths) {
  std::vector<std::future<void>> scoring;
  for (const auto& [name, answers] : ways) {
    Way& way = results.ways[name];
    scoring.push_back(std::async(std::launch::async, [&way, &answers, &truths] {
      for (std::size_t i = 0; i < truths.size(); ++i) {
        const Image& truth = truths[i];
        const Image map = io::map_image(answers[i], truth.height, truth.width);
        way.evaluator.add(metric::ImageStatistics({map.pixels.data(), truth.pixels.data(), truth.height, truth.width}));
        way.iou.push_back(iou_at_half(map, truth));
      }
    }));
  }
  for (std::future<void>& way : scoring) way.get();
}

void look_at_batch(Camo& model, Camo* alone, int64_t alone_expert, data::Batch&& raw, at::Device device,
                   std::mt19937_64& random, Results& results) {
  const train::DeviceBatch batch = train::to_device(std::move(raw), device);
  const Answers answers = ask_all(model, batch.images);
  std::map<std::string, std::vector<at::Tensor>> ways;
  const auto add = [&](const std::string& name, const at::Tensor& logits) { ways[name] = logits.select(1, 0).unbind(); };
  const auto expert = [](int64_t e) { return "expert_" + std::to_string(e); };
  std::vector<int64_t> everyone;
  for (int64_t e = 0; e < E; ++e) {
    add(expert(e), answers.experts[std::size_t(e)]);
    everyone.push_back(e);
  }
  add("ensemble", answers.routed());
  add("dense", answers.gated());
  add("uniform", answers.mean(everyone));
  const auto pairs = all_pairs();
  for (const auto& pair : pairs) add(pair_name(pair), answers.mean(pair));
  if (alone != nullptr) add("alone", ask_all(*alone, batch.images).experts[std::size_t(alone_expert)]);
  for (std::size_t i = 0; i < batch.names.size(); ++i)
    ways["random_top2"].push_back(ways.at(pair_name(pairs[random() % pairs.size()]))[i]);
  const std::size_t before = results.pictures.size();
  score(results, ways, batch.full_masks);
  std::vector<at::Tensor> best;
  for (std::size_t i = 0; i < batch.names.size(); ++i) {
    const auto iou = [&](int64_t e) { return results.ways.at(expert(e)).iou[before + i]; };
    const int64_t oracle = *std::max_element(everyone.begin(), everyone.end(),
                                             [&](int64_t a, int64_t b) { return iou(a) < iou(b); });
    best.push_back(ways.at(expert(oracle))[i]);
  }
  score(results, {{"oracle", best}}, batch.full_masks);

  const at::Tensor chosen = answers.routing.experts.to(at::kCPU), weights = answers.routing.weights.to(at::kCPU);
  for (std::size_t i = 0; i < batch.names.size(); ++i) {
    const Image& truth = batch.full_masks[i];
    Picture picture{batch.names[i], batch.indices[i], batch.regimes[i], truth,
                    io::map_image(ways.at("ensemble")[i], truth.height, truth.width), {}, {},
                    results.ways.at("ensemble").iou[before + i]};
    for (int64_t k = 0; k < chosen.size(1); ++k) {
      picture.experts.push_back(chosen[int64_t(i)][k].item<int64_t>());
      picture.weights.push_back(weights[int64_t(i)][k].item<double>());
    }
    results.pictures.push_back(std::move(picture));
    results.regimes.push_back(batch.regimes[i]);
  }
  const bool labelled = std::all_of(batch.regimes.begin(), batch.regimes.end(), [](int64_t r) { return r >= 0; });
  results.monitor.observe(answers.routing, labelled ? batch.regimes : std::vector<int64_t>{});
}

Results look_at(Camo& model, Camo* alone, int64_t alone_expert, const data::AnySource& source, int64_t size,
                int64_t batch_size, at::Device device, const std::string& label) {
  data::Loader<data::AnySource> loader(
      source, {.batch = batch_size, .height = size, .width = size, .train = false, .full_masks = true});
  Results results;
  std::mt19937_64 random(7);
  train::Progress progress(label, loader.batches());
  loader.start(0);
  while (auto batch = loader.next()) {
    look_at_batch(model, alone, alone_expert, std::move(*batch), device, random, results);
    progress.update(loader.position());
  }
  progress.finish();
  TORCH_CHECK(!results.pictures.empty(), "no readable picture for ", label);
  return results;
}

double mean_of(const std::vector<double>& x) {
  double sum = 0;
  for (double v : x) sum += v;
  return sum / double(x.size());
}

double error_of(const std::vector<double>& x) {
  const double mean = mean_of(x);
  double squares = 0;
  for (double v : x) squares += (v - mean) * (v - mean);
  return x.size() > 1 ? std::sqrt(squares / double(x.size() - 1) / double(x.size())) : NAN;
}

Json or_null(double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); }

/// All figures of one way, with its difference to the best expert, paired by picture.
Json way_json(const Way& way, const Way& reference) {
  Json json;
  for (const auto& [name, value] : way.evaluator.results()) json[name] = or_null(value);
  std::vector<double> difference;
  for (std::size_t i = 0; i < way.iou.size(); ++i) difference.push_back(way.iou[i] - reference.iou[i]);
  json["mean_iou"] = mean_of(way.iou);
  json["mean_iou_error"] = or_null(error_of(way.iou));
  json["difference"] = mean_of(difference);
  json["difference_error"] = or_null(error_of(difference));
  return json;
}

Json dataset_json(const Results& test, const std::string& best_expert, const std::string& best_pair,
                  const std::vector<std::string>& regimes) {
  Json json{{"images", test.pictures.size()}, {"best_expert", best_expert}, {"best_pair", best_pair}};
  const auto regime_means = [&](const Way& way) {
    Json means = Json::array();
    for (std::size_t r = 0; r < regimes.size(); ++r) {
      std::vector<double> mine;
      for (std::size_t i = 0; i < way.iou.size(); ++i)
        if (test.regimes[i] == int64_t(r)) mine.push_back(way.iou[i]);
      means.push_back(mine.empty() ? Json(nullptr) : Json(mean_of(mine)));
    }
    return means;
  };
  for (const auto& [name, way] : test.ways) {
    if (name.starts_with("pair_") && name != best_pair) continue;
    const std::string shown = name == best_pair ? "best_pair" : name;
    json["models"][shown] = way_json(way, test.ways.at(best_expert));
    json["iou_by_regime"][shown] = regime_means(way);
  }
  const Monitor::Report report = test.monitor.report();
  Json by_regime = Json::array();
  for (std::size_t r = 0; r < regimes.size(); ++r) {
    std::vector<double> share(E, 0);
    double total = 0;
    for (const Picture& picture : test.pictures) {
      if (picture.regime != int64_t(r)) continue;
      for (int64_t e : picture.experts) ++share[std::size_t(e)], ++total;
    }
    for (double& s : share) s = total > 0 ? s / total : 0;
    by_regime.push_back(share);
  }
  json["routing"] = {{"usage", report.usage},
                     {"usage_by_regime", by_regime},
                     {"max_violation", report.max_violation},
                     {"noise_floor", report.noise_floor},
                     {"entropy", or_null(report.entropy)},
                     {"normalised_mutual_information", or_null(report.label_information)},
                     {"information_chance_99", or_null(report.label_information_chance)},
                     {"dead", report.dead}};
  return json;
}

/// Three pictures of each regime for the report: the best, the middle and the worst of the ensemble.
Json write_samples(const fs::path& output, const data::AnySource& source, const Results& test, const std::string& set,
                   int64_t regimes) {
  fs::create_directories(output / "samples");
  Json samples = Json::array();
  for (int64_t r = regimes > 0 ? 0 : -1; r < std::max<int64_t>(regimes, 0); ++r) {
    std::vector<const Picture*> mine;
    for (const Picture& picture : test.pictures)
      if (picture.regime == r) mine.push_back(&picture);
    std::stable_sort(mine.begin(), mine.end(), [](auto* a, auto* b) { return a->iou > b->iou; });
    std::set<std::size_t> places;
    if (!mine.empty()) places = {mine.size() / 20, mine.size() / 2, mine.size() - 1 - mine.size() / 20};
    for (std::size_t place : places) {
      const Picture& picture = *mine[place];
      Json sample{{"name", picture.name}, {"dataset", set}, {"regime", picture.regime}};
      const auto keep = [&](const char* kind, const Image& image) {
        const std::string path = "samples/" + picture.name + "_" + kind + io::lossless_ending(image.channels);
        io::write_image(output / path, image);
        sample[kind] = path;
      };
      keep("image", source.sample(0, picture.index).image);
      keep("truth", picture.truth);
      keep("prediction", picture.prediction);
      sample["experts"] = picture.experts;
      sample["weights"] = picture.weights;
      sample["iou"] = picture.iou;
      samples.push_back(sample);
    }
  }
  return samples;
}

/// The mean seconds a step of each stage, from the trainer's logs.
Json seconds_per_step(const fs::path& folder) {
  Json out = Json::object();
  for (int stage = 1; stage <= 3; ++stage) {
    std::ifstream log(folder / ("metrics_stage" + std::to_string(stage) + ".jsonl"));
    std::vector<double> seconds;
    for (std::string line; std::getline(log, line);)
      if (const auto record = nlohmann::json::parse(line, nullptr, false); record.is_object())
        seconds.push_back(record.value("seconds_per_step", 0.0));
    if (!seconds.empty()) out["stage" + std::to_string(stage)] = mean_of(seconds);
  }
  return out;
}

std::string best_of(const Results& results, const std::string& prefix) {
  std::string best;
  for (const auto& [name, way] : results.ways)
    if (name.starts_with(prefix) && (best.empty() || mean_of(way.iou) > mean_of(results.ways.at(best).iou))) best = name;
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Compares a trained mixture with its experts and writes what the report shows.");
  std::string checkpoint, root, alone_path, device_name = "auto";
  fs::path output;
  int64_t size = 0, batch_size = 16, alone_expert = 0, seed = 0;
  app.add_option("--checkpoint", checkpoint, "weights of a trained model (.safetensors)")->required();
  app.add_option("--data-root", root, "data set with a validation and a test part")->required();
  app.add_option("--output", output, "folder for summary.json and samples")->required();
  app.add_option("--alone", alone_path, "weights of one expert trained alone, to compare with");
  app.add_option("--alone-expert", alone_expert, "which expert that is")->check(CLI::Range(int64_t{0}, E - 1));
  app.add_option("--img-size", size, "side that the model sees; 0 for that of its training")->capture_default_str();
  app.add_option("--batch-size", batch_size, "pictures at once")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--seed", seed, "of the run, to be shown in the report")->capture_default_str();
  app.add_option("--device", device_name, "auto, cpu or cuda")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  CLI11_PARSE(app, argc, argv);
  try {
    const at::Device device = examples::device_named(device_name);
    const auto model = examples::load_camo(checkpoint);
    model->to(device);
    std::unique_ptr<Camo> alone;
    if (!alone_path.empty()) {
      alone = std::make_unique<Camo>(examples::camo_options(examples::recorded_options(alone_path)));
      io::load_state(*alone, io::read_state(alone_path), {.partial = true});
      alone->eval();
      alone->to(device);
    }
    if (size == 0) size = examples::recorded_size(checkpoint);
    TORCH_CHECK(size % 32 == 0, "--img-size must be a multiple of 32, got ", size);

    const data::AnySource validation = data::open_source(root, data::Split::Validation),
                          test = data::open_source(root, data::Split::Test);
    Results chosen_on = look_at(*model, nullptr, 0, validation, size, batch_size, device, "validation");
    Results results = look_at(*model, alone.get(), alone_expert, test, size, batch_size, device, "test");

    Json regimes = Json::array();
    Json photographs = nullptr;
    std::vector<std::string> regime_names;
    if (std::ifstream labels(fs::path(root) / "Info" / "regimes.json"); labels) {
      regimes = {"cluttered", "clear", "multi-scale", "ambiguous"};
      regime_names = regimes.get<std::vector<std::string>>();
      const auto made = nlohmann::json::parse(labels, nullptr, false);
      for (const char* part : {"train", "validation", "test"})
        photographs[part] = made.at("parameters").at("photographs").at(part).size();
    }
    const std::string name = fs::path(root).filename().string() + " test";
    Json summary{{"title", "A mixture of " + std::to_string(E) + " experts for camouflaged objects"},
                 {"command", "inspect --checkpoint " + checkpoint + " --data-root " + root},
                 {"device", device.is_cuda() ? "GPU" : "CPU"},
                 {"seed", seed},
                 {"experts", examples::expert_names},
                 {"regimes", regimes},
                 {"photographs", photographs}};
    summary["datasets"][name] =
        dataset_json(results, best_of(chosen_on, "expert_"), best_of(chosen_on, "pair_"), regime_names);
    summary["datasets"][name]["validation_mean_iou"] = Json::object();
    for (const auto& [way, scores] : chosen_on.ways)
      summary["datasets"][name]["validation_mean_iou"][way] = mean_of(scores.iou);
    summary["seconds_per_step"] = seconds_per_step(fs::path(checkpoint).parent_path());
    summary["samples"] = write_samples(output, test, results, name, int64_t(regime_names.size()));
    io::write_atomically(output / "summary.json", summary.dump(1) + "\n");

    const Json& models = summary["datasets"][name]["models"];
    for (const auto& [way, figures] : models.items())
      std::printf("%-12s IoU %.4f +- %.4f  S %.4f  MAE %.4f  vs best expert %+.4f +- %.4f\n", way.c_str(),
                  figures["mean_iou"].get<double>(), figures["mean_iou_error"].get<double>(),
                  figures["smeasure"].get<double>(), figures["mae"].get<double>(), figures["difference"].get<double>(),
                  figures["difference_error"].get<double>());
    return 0;
  } catch (const c10::Error& error) {
    std::cerr << "inspect: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "inspect: " << error.what() << '\n';
  }
  return 1;
}
