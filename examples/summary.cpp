// What the model-level mixture costs: parameters and multiply-adds of the backbone, the router and each expert.
//
//   summary --backbone pvt_v2_b2 --img-size 448
//   summary --json
#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <string>

#include "examples/camo_model.hpp"
#include "moecod/model/summary.hpp"

namespace {

using namespace moecod;

using examples::Camo;

void print_table(const Summary& summary, int64_t size) {
  std::printf("%-10s %12s %16s\n", "", "parameters", "multiply-adds");
  const auto line = [](const Summary::Part& part) {
    std::printf("%-10s %10.2f M %14.2f G\n", part.name.c_str(), part.parameters * 1e-6, part.macs * 1e-9);
  };
  for (const auto& part : summary.parts) line(part);
  line(summary.total);
  line(summary.active);
  std::printf("one image of %lld x %lld; active: backbone, router and %lld of %lld experts under balanced load\n",
              static_cast<long long>(size), static_cast<long long>(size),
              static_cast<long long>(Camo::mixture_type::select_type::per_row),
              static_cast<long long>(Camo::num_experts));
}

void print_json(const Summary& summary, const std::string& backbone, int64_t size) {
  nlohmann::ordered_json out{{"backbone", backbone}, {"img_size", size}};
  const auto describe = [](const Summary::Part& part) {
    return nlohmann::ordered_json{{"name", part.name}, {"parameters", part.parameters}, {"macs", part.macs}};
  };
  for (const auto& part : summary.parts) out["parts"].push_back(describe(part));
  out["total"] = describe(summary.total);
  out["active"] = describe(summary.active);
  std::printf("%s\n", out.dump(2).c_str());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Parameters and multiply-adds of the model-level mixture, part by part"};
  Camo::Options options;
  int64_t size = 448;
  bool json = false;
  app.add_option("--backbone", options.backbone.name, "timm's name")
      ->check(CLI::IsMember(backbone::Any::names()))
      ->capture_default_str();
  app.add_option("--img-size", size, "height and width, a multiple of 32")->capture_default_str();
  app.add_flag("--json", json, "print JSON");
  CLI11_PARSE(app, argc, argv);
  try {
    Camo model(options);
    const Summary summary = summarise(model, size, size);
    json ? print_json(summary, options.backbone.name, size) : print_table(summary, size);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "summary: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "summary: %s\n", error.what());
    return 1;
  }
}
