// Trains every row of rows.def with several seeds, on the same data and with the same budget, and writes what they reach.
//
//   ablation --data-root demo/data --output ablation --seeds 3
//
// Runs that are done are kept, one that was interrupted goes on from its last epoch. DIR/results.csv has a line a run;
// scripts/ablation_page.py makes a page of it.

#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <CLI/CLI.hpp>
#include <fcntl.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "examples/ablation/processes.hpp"
#include "examples/ablation/run.hpp"
#include "examples/ablation/table.hpp"
#include "moecod/train/flags.hpp"
#include "moecod/train/progress.hpp"

namespace {

using namespace moecod;
using namespace moecod::examples;
using namespace moecod::examples::ablation;
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct ProgramOptions {
  std::string output = "./ablation";
  std::vector<std::string> rows;
  int64_t seeds = 3;
  int64_t at_once = 0;
  double run_memory = 2;
  int64_t head_width = 24;
  std::string device = "auto";
  DataOptions data;

  static constexpr auto options = std::make_tuple(
      option(&ProgramOptions::output, "output", "folder for the runs and results.csv"),
      option(&ProgramOptions::rows, "rows", "only rows of these tables or with these policies; all without it"),
      option(&ProgramOptions::seeds, "seeds", "runs a row, from --seed upwards", at_least(1)),
      option(&ProgramOptions::at_once, "at-once", "runs side by side; 0 for as many as cores and memory allow",
             at_least(0)),
      option(&ProgramOptions::run_memory, "run-memory", "GiB that a run takes, for --at-once 0", above(0)),
      option(&ProgramOptions::head_width, "head-width", "channels of the head", at_least(8)),
      option(&ProgramOptions::device, "device", "where to train", choices("auto", "cpu", "cuda")),
      nested(&ProgramOptions::data));
};

template <std::size_t... I>
std::vector<RowEntry> make_rows(std::index_sequence<I...>) {
  return {make_row<I>()...};
}

/// The rows that --rows names, or all. Errors: c10::Error that lists what there is.
std::vector<RowEntry> chosen_rows(const std::vector<std::string>& words) {
  std::vector<RowEntry> all = make_rows(std::make_index_sequence<MOECOD_ABLATION_COUNT>()), out;
  std::set<std::string> known;
  for (const RowEntry& row : all) {
    known.insert(row.table);
    known.insert(row.policies.begin(), row.policies.end());
    const bool named = std::any_of(words.begin(), words.end(), [&](const std::string& word) {
      return word == row.table || std::count(row.policies.begin(), row.policies.end(), word) > 0;
    });
    // A model that stands in two tables is trained once.
    const bool there = std::any_of(out.begin(), out.end(), [&](const RowEntry& r) { return r.key() == row.key(); });
    if ((words.empty() || named) && !there) out.push_back(row);
  }
  for (const std::string& word : words) {
    std::string list;
    for (const std::string& name : known) list += (list.empty() ? "" : ", ") + name;
    TORCH_CHECK(known.contains(word), "--rows: there is no table or policy '", word, "'; there are ", list);
  }
  return out;
}

/// GiB that the machine can still give.
double free_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string word; file >> word;)
    if (double kib = 0; word == "MemAvailable:" && file >> kib) return kib / (1 << 20);
  return 0;
}

/// As many runs as there are cores, and as fit into the memory of the machine and of its GPU.
int64_t runs_at_once(const ProgramOptions& options) {
  if (options.at_once > 0) return options.at_once;
  const auto cores = int64_t(std::max(1u, std::thread::hardware_concurrency()));
  int64_t fitting = std::min(cores, int64_t(free_memory() / options.run_memory));
  // Asked in a child: this process must not have touched the GPU before it forks.
  run_in_processes({[&] {
                     try {
                       const at::Device device = device_named(options.device);
                       if (!device.is_cuda()) return 255;
                       const auto [free, total] = at::accelerator::getMemoryInfo(device.index());
                       return int(std::min(254.0, double(free) / double(1 << 30) / options.run_memory));
                     } catch (const std::exception&) {
                       return 0;
                     }
                   }},
                   1, [&](std::size_t, int status) { if (status < 255) fitting = std::min(fitting, int64_t(status)); });
  return std::max<int64_t>(1, fitting);
}

/// In the child: one run, with its words in folder/log.txt.
int train(const RowEntry& row, RunOptions options, const ProgramOptions& program, int64_t seed, const fs::path& folder,
          int threads) {
  const int log = ::open((folder / "log.txt").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (log < 0 || ::dup2(log, STDOUT_FILENO) < 0 || ::dup2(log, STDERR_FILENO) < 0) return 1;
  try {
    at::set_num_threads(threads);
    options.trainer.seed = seed;
    options.device = device_named(program.device);
    run_row(options, row, folder);
    return 0;
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << std::endl;
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
  }
  return 1;
}

/// A folder belongs to the options it was begun with. Errors: c10::Error naming the first that differs.
void check_same_options(const fs::path& folder, const Json& mine) {
  const fs::path file = folder / "options.json";
  if (!fs::exists(file)) {
    io::write_atomically(file, mine.dump(1) + "\n");
    return;
  }
  std::ifstream in(file);
  const Json before = Json::parse(in, nullptr, false);
  for (const auto& [flag, value] : mine.items())
    TORCH_CHECK(before.contains(flag) && before.at(flag) == value, "--output: the runs in ", folder.string(), " had --",
                flag, " ", before.contains(flag) ? before.at(flag).dump() : "(none)", ", these have ", value.dump(),
                ": give another folder");
}

int run(const ProgramOptions& program, RunOptions options) {
  const fs::path output = program.output;
  TORCH_CHECK(!options.data.data_root.empty(), "--data-root is missing: give the folder of a data set");
  check_single_process(false);
  TORCH_CHECK(options.trainer.stop_after == 0, "--stop-after: an ablation runs to its end; interrupt it and start it again");
  data::open(options.data.data_root, data::Split::Test);  // here and not after hours of training
  feature_stages("pvt_v2_b0", options.recipe, options.trainer);
  const std::vector<RowEntry> rows = chosen_rows(program.rows);
  fs::create_directories(output);
  Json recorded{{"head-width", options.head_width}};
  recorded.update(train::options_to_json(options.data));
  recorded.update(train::options_to_json(options.recipe));
  recorded.update(train::options_to_json(options.trainer));
  recorded.erase("num-workers");
  check_same_options(output, recorded);

  struct Run {
    const RowEntry* row;
    int64_t seed;
    fs::path folder;
  };
  std::vector<Run> all, left;
  for (int64_t seed = options.trainer.seed; seed < options.trainer.seed + program.seeds; ++seed)
    for (const RowEntry& row : rows) all.push_back({&row, seed, output / row.key() / ("seed" + std::to_string(seed))});
  std::copy_if(all.begin(), all.end(), std::back_inserter(left),
               [](const Run& r) { return !fs::exists(r.folder / "result.json"); });
  const int64_t at_once = std::min<int64_t>(runs_at_once(program), std::max<std::size_t>(1, left.size()));
  const auto threads = int(std::max<int64_t>(1, int64_t(std::thread::hardware_concurrency()) / at_once));
  std::cout << rows.size() << " rows, " << program.seeds << " seeds, " << all.size() - left.size() << " runs done, "
            << left.size() << " to go, " << at_once << " at once" << std::endl;

  std::vector<std::function<int()>> tasks;
  for (const Run& r : left) {
    fs::create_directories(r.folder);
    tasks.push_back([&] { return train(*r.row, options, program, r.seed, r.folder, threads); });
  }
  std::vector<std::string> failed;
  int64_t done = 0;
  train::Progress progress("runs", int64_t(left.size()));
  run_in_processes(tasks, at_once, [&](std::size_t i, int status) {
    if (status != 0)
      failed.push_back((left[i].folder / "log.txt").string() + " (exit status " + std::to_string(status) + ")");
    progress.update(++done, left[i].row->key() + " seed " + std::to_string(left[i].seed));
  });
  if (!left.empty()) progress.finish();

  std::vector<Json> results;
  for (const Run& r : all) {
    std::ifstream file(r.folder / "result.json");
    if (!file) continue;
    results.push_back(Json::parse(file));
    add_training(results.back(), r.folder);
  }
  io::write_atomically(output / "results.csv", to_csv(results, axis_names));
  std::cout << (output / "results.csv").string() << std::endl;
  for (const std::string& log : failed) std::cerr << "ablation: a run failed; its log: " << log << '\n';
  return failed.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains every row of an ablation with several seeds.");
  ProgramOptions program;
  RunOptions options;
  apply_recipe_preset("demo", options.trainer, options.recipe);
  train::add_flags(app, program);
  train::add_flags(app, options.recipe);
  train::add_flags(app, options.trainer);
  CLI11_PARSE(app, argc, argv);
  options.data = program.data;
  options.head_width = program.head_width;
  try {
    return run(program, options);
  } catch (const c10::Error& error) {
    std::cerr << "ablation: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "ablation: " << error.what() << '\n';
  }
  return 1;
}
