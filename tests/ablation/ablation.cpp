// The parts of examples/ablation that need no model: processes side by side, and the table of results.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "examples/ablation/processes.hpp"
#include "examples/ablation/table.hpp"
#include "tests/data/scratch.hpp"

namespace {

using namespace moecod::examples::ablation;
using testing::ElementsAre;
using testing::Pair;

std::map<std::size_t, int> statuses(const std::vector<std::function<int()>>& tasks, int64_t at_once) {
  std::map<std::size_t, int> out;
  run_in_processes(tasks, at_once, [&](std::size_t i, int status) { out[i] = status; });
  return out;
}

TEST(Processes, OneThatFailsLeavesTheOthersAlone) {
  const std::vector<std::function<int()>> tasks{
      [] { return 0; },
      [] { return 3; },
      []() -> int { throw std::runtime_error("thrown in a child"); },
      [] { return ::raise(SIGKILL); },
      [] { return 0; },
  };
  for (const int64_t at_once : {1, 2, 9})
    EXPECT_THAT(statuses(tasks, at_once),
                ElementsAre(Pair(0, 0), Pair(1, 3), Pair(2, 1), Pair(3, 128 + SIGKILL), Pair(4, 0)));
  EXPECT_TRUE(statuses({}, 2).empty());
}

TEST(Processes, RunSideBySideButNoMoreThanAskedFor) {
  const Scratch scratch;
  const auto running = [&] {
    return std::distance(std::filesystem::directory_iterator(scratch.path()), std::filesystem::directory_iterator());
  };
  // Each waits for a second one to run beside it, and fails if there is a third.
  const std::function<int()> task = [&] {
    const auto mine = scratch / std::to_string(::getpid());
    std::ofstream(mine) << "here";
    bool met = false;
    for (int i = 0; i < 200; ++i) {
      if (running() > 2) return 1;
      met |= running() == 2;
      if (met && i > 20) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    std::filesystem::remove(mine);
    return met ? 0 : 2;
  };
  for (const auto& [i, status] : statuses({task, task}, 2)) EXPECT_EQ(status, 0) << i;
}

void write(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

const char* result = R"({"metrics": {"mean_iou": 0.5, "mae": null}, "stages": 2, "seed": 3, "policies": ["A", "B"],
  "levels": [{"max_violation": 0.25, "noise_floor": 0.125, "entropy": 1.5, "label_information": null}]})";

TEST(Results, HoldWhatTheLogsSay) {
  const Scratch scratch;
  write(scratch / "metrics_stage1.jsonl", R"({"seconds_per_step": 9, "levels": [{"trained_usage": [1, 0]}]})" "\n");
  write(scratch / "metrics_stage2.jsonl",
        R"({"seconds_per_step": 1, "levels": [{"trained_usage": [0.5, 0.5]}]})" "\n"
        R"({"seconds_per_step": 2, "levels": [{"trained_usage": [0.75, 0.25]}]})" "\n");
  write(scratch / "interference_stage1.jsonl", R"({"cosine": [null], "ratio": [0.5]})" "\n");
  write(scratch / "interference_stage2.jsonl", R"({"cosine": [-0.5], "ratio": [0.25]})" "\n");
  Json json = Json::parse(result);
  add_training(json, scratch.path());
  EXPECT_EQ(json["seconds_per_step"], 1.5) << "of the last stage";
  EXPECT_EQ(json["levels"][0]["trained_usage"], Json::parse("[0.75, 0.25]")) << "of the last epoch";
  EXPECT_EQ(json["levels"][0]["gradient_cosine"], -0.5) << "of the epochs that have one";
  EXPECT_EQ(json["levels"][0]["gradient_ratio"], 0.375);
  EXPECT_EQ(to_csv({json}, {"router", "balance"}),
            "router,balance,seed,mean_iou,mae,seconds_per_step,level1_max_violation,level1_noise_floor,level1_entropy,"
            "level1_label_information,level1_gradient_cosine,level1_gradient_ratio,level1_least_use,level1_largest_use\n"
            "A,B,3,0.5,,1.5,0.25,0.125,1.5,,-0.5,0.375,0.25,0.75\n");
  EXPECT_EQ(to_csv({}, {"router"}), "");
}

TEST(Results, AreFoundWhereverTheirRunsStand) {
  const Scratch scratch;
  write(scratch / "row2" / "seed0" / "result.json", R"({"n": 2})");
  write(scratch / "row1" / "seed10" / "result.json", R"({"n": 1})");
  write(scratch / "row1" / "seed9" / "log.txt", "not done");
  write(scratch / "data" / "Info" / "result.json", "no run");
  write(scratch / "results.csv", "");
  EXPECT_EQ(run_folders(scratch.path()).size(), 3U);
  const std::vector<Json> found = all_results(scratch.path());
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0]["n"], 1);
  EXPECT_EQ(found[1]["n"], 2);
}

}  // namespace
