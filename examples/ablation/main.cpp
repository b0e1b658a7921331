// Trains every row of rows.def with several seeds, on the same data and with the same budget, and writes what they reach.
//
//   ablation --data-root demo/data --output ablation --seeds 3
//
// Runs that are done are kept, one that was interrupted goes on from its last epoch. DIR/results.csv has a line a run;
// scripts/ablation_page.py makes a page of the folder.

#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "examples/ablation/processes.hpp"
#include "examples/ablation/run.hpp"
#include "examples/ablation/table.hpp"
#include "moecod/data/open_source.hpp"
#include "moecod/distributed/ranks.hpp"
#include "moecod/io/checksum.hpp"
#include "moecod/io/file.hpp"
#include "moecod/train/flags.hpp"
#include "moecod/train/progress.hpp"

namespace {

using namespace moecod;
using namespace moecod::examples;
using namespace moecod::examples::ablation;
namespace fs = std::filesystem;

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
      option(&ProgramOptions::rows, "rows", "only these tables, rows, or rows with these policies; all without it"),
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

/// The rows that --rows names, or all; a model that stands in two tables is trained once.
/// Errors: c10::Error that lists what there is.
std::vector<RowEntry> chosen_rows(const std::vector<RowEntry>& all, const std::vector<std::string>& words) {
  std::vector<RowEntry> out;
  std::set<std::string> known, keys;
  for (const RowEntry& row : all) {
    std::set<std::string> mine(row.policies.begin(), row.policies.end());
    mine.insert({row.table, row.key()});
    known.insert(mine.begin(), mine.end());
    const bool named = std::any_of(words.begin(), words.end(), [&](const auto& word) { return mine.contains(word); });
    if ((words.empty() || named) && keys.insert(row.key()).second) out.push_back(row);
  }
  for (const std::string& word : words) {
    std::string list;
    for (const std::string& name : known) list += (list.empty() ? "" : ", ") + name;
    TORCH_CHECK(known.contains(word), "--rows: there is no table, policy or row '", word, "'; there are ", list);
  }
  return out;
}

/// GiB that the machine can still give, or what the container's limit leaves of it.
double free_memory() {
  double free = 0;
  std::ifstream file("/proc/meminfo");
  for (std::string word; file >> word;)
    if (double kib = 0; word == "MemAvailable:" && file >> kib) free = kib / (1 << 20);
  std::ifstream limit_file("/sys/fs/cgroup/memory.max"), used_file("/sys/fs/cgroup/memory.current");
  double limit = 0, used = 0;  // the limit is the word "max" where there is none
  if (limit_file >> limit && used_file >> used) free = std::min(free, (limit - used) / (1 << 30));
  return free;
}

/// As many runs as there are cores, and as fit into the memory of the machine and of its GPU.
int64_t runs_at_once(const ProgramOptions& options) {
  if (options.at_once > 0) return options.at_once;
  const auto cores = int64_t(std::max(1u, std::thread::hardware_concurrency()));
  int64_t fitting = std::min(cores, int64_t(free_memory() / options.run_memory));
  // Asked in a child: this process must not have touched the GPU before it forks.
  constexpr int none = 126, failed = 127;
  run_in_processes({[&] {
                     try {
                       const at::Device device = device_named(options.device);
                       if (!device.is_cuda()) return none;
                       const auto [free, total] = at::accelerator::getMemoryInfo(device.index());
                       return int(std::min(100.0, double(free) / double(1 << 30) / options.run_memory));
                     } catch (const std::exception& error) {
                       std::cerr << "ablation: the GPU's memory is not known, so one run at a time: " << error.what() << '\n';
                       return failed;
                     }
                   }},
                   1, [&](std::size_t, int status) {
                     if (status < none) fitting = std::min(fitting, int64_t(status));
                     if (status >= failed) fitting = 1;
                   });
  return std::max<int64_t>(1, fitting);
}

struct Run {
  const RowEntry* row;
  int64_t seed;
  fs::path folder;
};

/// In the child: one run, with its words in folder/log.txt.
int run_in_child(const Run& run, RunOptions options, const std::string& device, int threads) {
  const int log = ::open((run.folder / "log.txt").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (log < 0 || ::dup2(log, STDOUT_FILENO) < 0 || ::dup2(log, STDERR_FILENO) < 0) return 1;
  try {
    at::set_num_threads(threads);
    options.trainer.seed = run.seed;
    options.device = device_named(device);
    run_row(options, *run.row, run.folder);
    return 0;
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << std::endl;
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
  }
  return 1;
}

/// A folder belongs to the options it was begun with; while no run has got anywhere they may change.
/// Errors: std::runtime_error naming the first that differs.
void settle_options(const fs::path& folder, const Json& mine) {
  const fs::path file = folder / "options.json";
  const std::vector<fs::path> runs = run_folders(folder);
  const bool begun = std::any_of(runs.begin(), runs.end(), [](const fs::path& run) {
    return fs::exists(run / "result.json") || fs::exists(run / "last_stage1.safetensors");
  });
  if (begun && fs::exists(file)) {
    std::ifstream in(file);
    train::check_same(Json::parse(in, nullptr, false), mine, {"num-workers"},
                      "--output: " + folder.string() + " needs the options of its runs; the run before");
  }
  io::write_atomically(file, mine.dump(1) + "\n");
}

/// One process a folder: two would write each other's checkpoints. Held until the process ends.
/// Errors: c10::Error if another one has it.
void lock(const fs::path& folder) {
  const int file = ::open((folder / ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  TORCH_CHECK(file >= 0 && ::flock(file, LOCK_EX | LOCK_NB) == 0, "--output: another ablation is at work in ",
              folder.string());
}

/// Which rows stand in which table, for the page.
void write_rows(const fs::path& folder, const std::vector<RowEntry>& rows) {
  Json list = Json::array();
  for (const RowEntry& row : rows) list.push_back({{"table", row.table}, {"row", row.key()}});
  io::write_atomically(folder / "rows.json", list.dump(1) + "\n");
}

/// The table of all runs in the folder, of this call and of others. Returns how many there are of other builds.
int64_t write_results(const fs::path& folder, const std::string& build) {
  const std::vector<Json> results = all_results(folder);
  if (results.empty()) return 0;
  io::write_atomically(folder / "results.csv", to_csv(results, axis_names));
  std::cout << (folder / "results.csv").string() << ", " << results.size() << " runs" << std::endl;
  return std::count_if(results.begin(), results.end(), [&](const Json& r) { return r.value("build", "") != build; });
}

int run(const ProgramOptions& program, RunOptions options) {
  const fs::path output = program.output;
  TORCH_CHECK(!options.data.data_root.empty(), "--data-root is missing: give the folder of a data set");
  const std::optional<distributed::Ranks> ranks = distributed::Ranks::from_environment();
  TORCH_CHECK(!ranks || ranks->world == 1, "a launcher started ", ranks->world, " processes: an ablation is one, which starts "
              "those of its runs itself");
  TORCH_CHECK(options.trainer.stop_after == 0, "--stop-after: an ablation runs to its end; interrupt it and start it again");
  TORCH_CHECK(!options.trainer.use_ema, "--use-ema: an ablation scores the last weights, not their average");
  TORCH_CHECK(options.trainer.size % 32 == 0, "--img-size must be a multiple of 32, got ", options.trainer.size);
  // Here and not after hours of training.
  data::open_source(options.data.data_root, data::Split::Test, {.max_bad = options.data.max_bad});
  feature_stages("pvt_v2_b0", options.recipe, options.trainer);
  const std::vector<RowEntry> every = make_rows(std::make_index_sequence<MOECOD_ABLATION_COUNT>());
  const std::vector<RowEntry> rows = chosen_rows(every, program.rows);
  options.build = io::checksum_text(io::checksum(io::MappedFile("/proc/self/exe").bytes()));
  fs::create_directories(output);
  lock(output);
  Json recorded{{"head-width", options.head_width}, {"device", program.device}};
  recorded.update(train::options_to_json(options.data));
  recorded.update(train::options_to_json(options.recipe));
  recorded.update(train::options_to_json(options.trainer));
  settle_options(output, recorded);
  write_rows(output, every);

  std::vector<Run> all, left;
  for (int64_t seed = options.trainer.seed; seed < options.trainer.seed + program.seeds; ++seed)
    for (const RowEntry& row : rows) all.push_back({&row, seed, output / row.key() / ("seed" + std::to_string(seed))});
  std::copy_if(all.begin(), all.end(), std::back_inserter(left),
               [](const Run& r) { return !fs::exists(r.folder / "result.json"); });
  // Threads follow from what may run side by side and not from what is left, so that a run has as many whenever it is
  // taken up: their number shows in the last bits.
  const int64_t at_once = runs_at_once(program);
  const auto threads = int(std::max<int64_t>(1, int64_t(std::thread::hardware_concurrency()) / at_once));
  std::cout << rows.size() << " rows, " << program.seeds << " seeds, " << all.size() - left.size() << " runs done, "
            << left.size() << " to go, " << at_once << " at once" << std::endl;

  std::vector<std::function<int()>> tasks;
  for (const Run& r : left) {
    fs::create_directories(r.folder);
    tasks.push_back([&] { return run_in_child(r, options, program.device, threads); });
  }
  int64_t done = 0, failed = 0;
  train::Progress progress("runs", int64_t(left.size()));
  run_in_processes(tasks, at_once, [&](std::size_t i, int status) {
    if (status != 0) {
      ++failed;
      std::cerr << "\nablation: a run failed with exit status " << status << ", its log: "
                << (left[i].folder / "log.txt").string() << std::endl;
    }
    progress.update(++done, left[i].row->key() + " seed " + std::to_string(left[i].seed));
  });
  if (!left.empty()) progress.finish(std::to_string(left.size() - std::size_t(failed)) + " succeeded");
  if (const int64_t others = write_results(output, options.build); others > 0)
    std::cerr << "ablation: " << others << " of the runs are of another build of this program; delete the folders of those "
              << "that it changed\n";
  return failed == 0 ? 0 : 1;
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
