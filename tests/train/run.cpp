#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "moecod/train/flags.hpp"
#include "moecod/train/metrics_log.hpp"
#include "moecod/train/progress.hpp"
#include "moecod/train/schedule.hpp"
#include "tests/train/scratch.hpp"

namespace {

using namespace moecod;
using namespace moecod::train;
using namespace moecod::test;

// ------------------------------------------------------------------------------------------------------ flags.hpp

struct Inner {
  double beta1 = 0.9, weight_decay = 1e-4;
  static constexpr auto options = std::make_tuple(option(&Inner::beta1, "beta1", "decay", between(0, 1)),
                                                  option(&Inner::weight_decay, "weight-decay", "", at_least(0)));
};

struct Settings {
  double rate = 1e-3;
  int64_t epochs = 40;
  bool amp = true;
  std::string name = "run";
  std::vector<std::string> folders{"a", "b"};
  std::optional<std::string> resume;
  Schedule::Shape shape = Schedule::Shape::Cosine;
  Inner adam;
  static constexpr auto options = std::make_tuple(
      option(&Settings::rate, "lr", "peak rate", above(0)), option(&Settings::epochs, "epochs", "epochs", at_least(1)),
      option(&Settings::amp, "amp", "mixed precision"), option(&Settings::name, "name", "name"),
      option(&Settings::folders, "data-root", "folders"), option(&Settings::resume, "resume-from", "checkpoint"),
      option(&Settings::shape, "scheduler", "shape", Schedule::shapes), nested(&Settings::adam));
};

Settings parsed(const std::string& line) {
  Settings settings;
  CLI::App app;
  add_flags(app, settings);
  app.parse(line);
  return settings;
}

TEST(Flags, SetEveryKindOfMember) {
  const Settings s = parsed("--lr 2e-4 --epochs 3 --no-amp --name x --data-root c d e --resume-from last "
                            "--scheduler cosine_restart --weight-decay 0.5");
  EXPECT_EQ(s.rate, 2e-4);
  EXPECT_EQ(s.epochs, 3);
  EXPECT_FALSE(s.amp);
  EXPECT_EQ(s.name, "x");
  EXPECT_EQ(s.folders, (std::vector<std::string>{"c", "d", "e"}));
  EXPECT_EQ(s.resume, "last");
  EXPECT_EQ(s.shape, Schedule::Shape::CosineRestart);
  EXPECT_EQ(s.adam.weight_decay, 0.5);
  EXPECT_EQ(options_to_json(parsed("")), options_to_json(Settings{}));
}

TEST(Flags, ErrorsNameFlagExpectedAndGiven) {
  EXPECT_EQ(error_of([] { parsed("--lr 0"); }), "--lr: expected a number > 0, got 0");
  EXPECT_EQ(error_of([] { parsed("--epochs 2.5"); }), "--epochs: expected an integer >= 1, got 2.5");
  EXPECT_EQ(error_of([] { parsed("--scheduler step"); }),
            "--scheduler: expected one of none, cosine, onecycle, cosine_restart, got step");
  EXPECT_NE(error_of([] { parsed("--beta1 1.5"); }).find("--beta1: expected a number in [0, 1]"), std::string::npos);
  EXPECT_NE(error_of([] { parsed("--epoch 3"); }).find("--epoch"), std::string::npos);
}

TEST(Flags, HelpShowsDefaultsAndWhatIsAccepted) {
  Settings settings;
  CLI::App app;
  add_flags(app, settings);
  const std::string help = app.help();
  for (const char* part : {"--lr", "a number > 0", "0.001", "--no-amp", "default: on", "one of none, cosine", "a b"})
    EXPECT_NE(help.find(part), std::string::npos) << part << " is not in\n" << help;
}

TEST(Flags, JsonRoundTrips) {
  const Settings before = parsed("--lr 0.1 --no-amp --resume-from x --scheduler none --beta1 0.5 --data-root z");
  Settings after;
  options_from_json(nlohmann::json::parse(options_to_json(before).dump()), after);
  EXPECT_EQ(options_to_json(after), options_to_json(before));
  EXPECT_EQ(options_to_json(before)["scheduler"], "none");
  EXPECT_TRUE(options_to_json(Settings{})["resume-from"].is_null());
  options_from_json({{"resume-from", nullptr}}, after);
  EXPECT_FALSE(after.resume.has_value());
  EXPECT_EQ(after.rate, 0.1);
}

TEST(Flags, JsonErrorsChangeNothing) {
  Settings s;
  EXPECT_EQ(error_of([&] { options_from_json({{"lr", 0.5}, {"zeta", 1}, {"alpha", 2}}, s); }),
            "options: unknown keys: alpha, zeta");
  EXPECT_EQ(error_of([&] { options_from_json({{"lr", 0.5}, {"epochs", 1.5}}, s); }),
            "--epochs: expected an integer >= 1, got 1.5");
  EXPECT_NE(error_of([&] { options_from_json({{"lr", "fast"}}, s); }).find("got \"fast\""), std::string::npos);
  EXPECT_NE(error_of([&] { options_from_json(nlohmann::json::array(), s); }), "");
  EXPECT_EQ(s.rate, 1e-3);
}

// --------------------------------------------------------------------------------------------------- schedule.hpp

constexpr auto every_shape = {Schedule::Shape::None, Schedule::Shape::Cosine, Schedule::Shape::OneCycle,
                              Schedule::Shape::CosineRestart};

TEST(Schedule, StaysBetweenFloorAndPeakAndReachesThem) {
  for (const auto shape : every_shape) {
    for (const int64_t warmup : {0, 7}) {
      const Schedule rate{.shape = shape, .peak = 1, .floor = 0.01, .warmup_steps = warmup, .total_steps = 100};
      double highest = 0;
      for (int64_t s = 0; s < 100; ++s) {
        EXPECT_GE(rate(s), 0.01);
        EXPECT_LE(rate(s), 1);
        highest = std::max(highest, rate(s));
      }
      EXPECT_DOUBLE_EQ(highest, 1);
      EXPECT_DOUBLE_EQ(rate(99), shape == Schedule::Shape::None ? 1 : 0.01);
      EXPECT_DOUBLE_EQ(rate(5000), rate(99));
      for (int64_t s = 1; s < warmup; ++s) EXPECT_GT(rate(s), rate(s - 1));
      if (warmup > 0) {
        EXPECT_DOUBLE_EQ(rate(warmup - 1), 1);
      }
    }
  }
}

TEST(Schedule, CosineIsTheFormula) {
  const Schedule rate{.peak = 2, .floor = 1, .warmup_steps = 3, .total_steps = 14};
  EXPECT_NEAR(rate(0), 1 + 1.0 / 3, 1e-12);
  for (int64_t s = 3; s < 14; ++s)
    EXPECT_NEAR(rate(s), 1 + 0.5 * (1 + std::cos(std::acos(-1.0) * static_cast<double>(s - 3) / 10)), 1e-12);
}

TEST(Schedule, RestartsBeginAtThePeakAndDoubleInLength) {
  const Schedule rate{.shape = Schedule::Shape::CosineRestart, .peak = 1, .floor = 0, .total_steps = 70, .cycles = 3};
  for (const int64_t begin : {0, 10, 30}) EXPECT_DOUBLE_EQ(rate(begin), 1);
  for (const int64_t end : {9, 29, 69}) EXPECT_NEAR(rate(end), 0, 1e-15);
  int rises = 0;
  for (int64_t s = 1; s < 70; ++s) rises += rate(s) > rate(s - 1);
  EXPECT_EQ(rises, 2);
}

TEST(Schedule, TinyAndImpossibleOnes) {
  for (const auto shape : every_shape)
    for (int64_t total = 1; total < 5; ++total)
      for (int64_t s = 0; s < total; ++s)
        EXPECT_TRUE(std::isfinite(Schedule{.shape = shape, .total_steps = total}(s)));
  EXPECT_THROW(Schedule{}(-1), std::invalid_argument);
  EXPECT_THROW((Schedule{.warmup_steps = 2}(0)), std::invalid_argument);
  EXPECT_THROW((Schedule{.peak = 1e-9}(0)), std::invalid_argument);
}

// --------------------------------------------------------------------------------- metrics_log.hpp, progress.hpp

using Logs = Folder;

TEST_F(Logs, AppendWholeLinesAndForgetWhatWillBeRunAgain) {
  const fs::path file = path / "metrics.jsonl";
  {
    MetricsLog log(file);
    log.write({{"options", "x"}});
    for (int epoch = 0; epoch < 4; ++epoch)
      log.write({{"epoch", epoch}, {"loss", epoch == 1 ? std::numeric_limits<double>::quiet_NaN() : 0.5}});
  }
  EXPECT_EQ(text_of(file), "{\"options\":\"x\"}\n{\"epoch\":0,\"loss\":0.5}\n{\"epoch\":1,\"loss\":null}\n"
                           "{\"epoch\":2,\"loss\":0.5}\n{\"epoch\":3,\"loss\":0.5}\n");
  std::ofstream(file, std::ios::app) << "{\"epoch\":0,\"lo";
  MetricsLog(file, 2).write({{"epoch", 2}});
  EXPECT_EQ(text_of(file),
            "{\"options\":\"x\"}\n{\"epoch\":0,\"loss\":0.5}\n{\"epoch\":1,\"loss\":null}\n{\"epoch\":2}\n");
  std::ofstream(file, std::ios::app) << "nonsense\n";
  EXPECT_NE(error_of([&] { MetricsLog(file, 2); }).find("line 5"), std::string::npos);
  EXPECT_THROW(MetricsLog(path / "absent" / "x.jsonl"), std::runtime_error);
}

TEST_F(Logs, ProgressIsPlainLinesWhereThereIsNoTerminal) {
  std::FILE* out = std::fopen((path / "out").c_str(), "w");
  {
    Progress progress("train", 4, out, /*interval=*/0);
    for (int i = 1; i <= 4; ++i) progress.update(i, "loss 0.5");
  }
  std::fclose(out);
  const std::string text = text_of(path / "out");
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 5);
  EXPECT_EQ(text.find('\r'), std::string::npos);
  EXPECT_NE(text.find("4/4"), std::string::npos);

  out = std::fopen((path / "out").c_str(), "w");
  {
    Progress quiet("train", 1000, out, /*interval=*/3600);
    for (int i = 1; i <= 1000; ++i) quiet.update(i);
  }
  std::fclose(out);
  const std::string once = text_of(path / "out");
  EXPECT_EQ(std::count(once.begin(), once.end(), '\n'), 1);
}

TEST(Progress, LineFitsItsWidthAndShowsTheRest) {
  const std::string line = progress_line("train", 25, 100, 50, "loss 0.31", 100);
  EXPECT_NE(line.find("25/100"), std::string::npos);
  EXPECT_NE(line.find("2:30 left"), std::string::npos);
  EXPECT_NE(line.find("loss 0.31"), std::string::npos);
  const std::string bar = line.substr(line.find('[') + 1, line.find(']') - line.find('[') - 1);
  EXPECT_EQ(std::count(bar.begin(), bar.end(), '#'), static_cast<int>(bar.size() / 4));
  for (std::size_t width = 1; width < 120; ++width) EXPECT_LE(progress_line("a", 3, 9, 7, "note", width).size(), width);
  EXPECT_EQ(duration_text(3725), "1:02:05");
}

}  // namespace
