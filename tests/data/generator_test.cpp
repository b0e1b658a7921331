// The camouflage generator: reproducible, split by photograph, objects neither absent nor lost.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <ctime>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "moecod/data/dataset_split.hpp"
#include "moecod/data/fresh.hpp"
#include "moecod/data/generator.hpp"
#include "moecod/data/photograph_folder.hpp"
#include "moecod/data/procedural.hpp"
#include "moecod/data/random.hpp"
#include "moecod/data/records.hpp"
#include "moecod/data/split.hpp"
#include "moecod/data/write_dataset.hpp"
#include "moecod/data/write_packed_dataset.hpp"
#include "moecod/io/image_file.hpp"
#include "tests/data/scratch.hpp"

namespace {

using namespace moecod;
using namespace moecod::data;
namespace fs = std::filesystem;

const std::vector<Photograph>& photographs() {
  static const std::vector<Photograph> made = procedural_photographs(9, 7, 256);
  return made;
}

Generator generator(double difficulty = 0.3, int64_t size = 64, std::array<double, 4> regimes = {1, 1, 1, 1}) {
  return Generator(photographs(), {.size = size, .difficulty = difficulty, .regimes = regimes, .seed = 11});
}

double coverage(const Image& mask) {
  int64_t inside = 0;
  for (const uint8_t value : mask.pixels) inside += value != 0;
  return static_cast<double>(inside) / static_cast<double>(mask.pixels.size());
}

/// How far apart object and surroundings are: |difference of mean colour| over their joint deviation, worst channel.
double separation(const Camouflage& made) {
  double best = 0.0;
  for (int64_t c = 0; c < 3; ++c) {
    double sum[2] = {0, 0};
    double squares[2] = {0, 0};
    double count[2] = {0, 0};
    for (int64_t y = 0; y < made.image.height; ++y) {
      for (int64_t x = 0; x < made.image.width; ++x) {
        const int side = made.mask.at(y, x) != 0;
        const double v = made.image.at(y, x, c);
        sum[side] += v;
        squares[side] += v * v;
        count[side] += 1;
      }
    }
    double variance = 0.0;
    for (int side = 0; side < 2; ++side) {
      sum[side] /= count[side];
      variance += 0.5 * (squares[side] / count[side] - sum[side] * sum[side]);
    }
    best = std::max(best, std::fabs(sum[0] - sum[1]) / std::sqrt(variance + 1.0));
  }
  return best;
}

double mean_separation(const Generator& generator, int64_t count) {
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) total += separation(generator(static_cast<uint64_t>(i)));
  return total / static_cast<double>(count);
}

TEST(Random, IsUniformAndKeyed) {
  Random random{1, 2, 3};
  double sum = 0.0;
  double squares = 0.0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = random.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.01);
  EXPECT_NEAR(squares / kDraws, 1.0 / 3.0, 0.01);
  EXPECT_NE((Random{1, 2}.bits()), (Random{2, 1}.bits()));
  EXPECT_NE((Random{1}.bits()), (Random{1, 0}.bits()));
  const std::vector<int64_t> order = permutation(50, Random{4});
  EXPECT_EQ(std::set<int64_t>(order.begin(), order.end()).size(), 50U);
}

TEST(Generator, SameBytesInAnyOrderAndThread) {
  const Generator one = generator();
  const Generator two = generator();
  std::vector<Camouflage> serial;
  for (uint64_t i = 0; i < 12; ++i) serial.push_back(one(i));
  std::vector<Camouflage> parallel(12);
  {
    std::vector<std::jthread> threads;
    for (uint64_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        for (uint64_t i = 11 - t; i < 12; i -= 3) parallel[i] = two(i);
      });
    }
  }
  for (std::size_t i = 0; i < serial.size(); ++i) {
    EXPECT_EQ(serial[i].image, parallel[i].image) << i;
    EXPECT_EQ(serial[i].mask, parallel[i].mask) << i;
    EXPECT_EQ(serial[i].regime, parallel[i].regime) << i;
  }
  EXPECT_NE(serial[0].image, serial[1].image);
  Generator::Options other = one.options();
  other.seed = 12;
  EXPECT_NE(Generator(photographs(), other)(0).image, serial[0].image);
}

TEST(Generator, RegimesKeepTheirShares) {
  const Generator mixed = generator(0.3, 64, {1, 2, 0, 1});
  std::array<int, 4> counts{};
  for (uint64_t i = 1000; i < 1400; ++i) ++counts[static_cast<std::size_t>(mixed.regime(i))];
  EXPECT_NEAR(counts[0], 100, 3);
  EXPECT_NEAR(counts[1], 200, 3);
  EXPECT_EQ(counts[2], 0);
  EXPECT_NEAR(counts[3], 100, 3);
  for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(mixed(i).regime, mixed.regime(i));
}

TEST(Generator, MasksCoverWhatTheRegimeSays) {
  for (std::size_t r = 0; r < 4; ++r) {
    std::array<double, 4> regimes{};
    regimes[r] = 1;
    const Generator made = generator(0.3, 96, regimes);
    const bool scales = r == static_cast<std::size_t>(Regime::MultiScale);
    double least = 1.0;
    double most = 0.0;
    for (uint64_t i = 0; i < 60; ++i) {
      const Camouflage picture = made(i);
      for (const uint8_t value : picture.mask.pixels) ASSERT_TRUE(value == 0 || value == 255);
      const double covered = coverage(picture.mask);
      ASSERT_GT(covered, scales ? 0.002 : 0.02) << kRegimeNames[r] << i;
      ASSERT_LT(covered, scales ? 0.65 : 0.4) << kRegimeNames[r] << i;
      least = std::min(least, covered);
      most = std::max(most, covered);
    }
    EXPECT_GT(most / least, scales ? 15.0 : 3.0) << kRegimeNames[r];
  }
}

TEST(Generator, DifficultyHidesTheObject) {
  const double easy = mean_separation(generator(0.0), 80);
  const double middle = mean_separation(generator(0.3), 80);
  const double hard = mean_separation(generator(1.0), 80);
  std::cout << "separation at difficulty 0, 0.3, 1: " << easy << ' ' << middle << ' ' << hard << '\n';
  EXPECT_GT(easy, middle);
  EXPECT_GT(middle, hard);
  EXPECT_GT(middle, 0.3);  // not lost
  EXPECT_LT(middle, 2.0);  // not given away by its mean colour
  const double clear = mean_separation(generator(0.3, 64, {0, 1, 0, 0}), 60);
  const double cluttered = mean_separation(generator(0.3, 64, {1, 0, 0, 0}), 60);
  EXPECT_GT(clear, 1.3 * cluttered);
}

TEST(Generator, AmbiguousBoundariesAreSofter) {
  // Mean step of the grey value across the mask's horizontal boundary pairs, over the mean step elsewhere.
  const auto boundary_step = [](const Generator& made) {
    double edge = 0.0;
    double edges = 0.0;
    double other = 0.0;
    double others = 0.0;
    for (uint64_t i = 0; i < 40; ++i) {
      const Camouflage picture = made(i);
      const Image gray = to_gray(picture.image);
      for (int64_t y = 0; y < gray.height; ++y) {
        for (int64_t x = 1; x < gray.width; ++x) {
          const double step = std::abs(gray.at(y, x) - gray.at(y, x - 1));
          const bool at_edge = picture.mask.at(y, x) != picture.mask.at(y, x - 1);
          (at_edge ? edge : other) += step;
          (at_edge ? edges : others) += 1.0;
        }
      }
    }
    return (edge / edges) / (other / others);
  };
  const double soft = boundary_step(generator(0.3, 96, {0, 0, 0, 1}));
  const double sharp = boundary_step(generator(0.3, 96, {0, 1, 0, 0}));
  std::cout << "boundary step, ambiguous and clear: " << soft << ' ' << sharp << '\n';
  EXPECT_LT(soft, 0.75 * sharp);
}

TEST(Generator, RefusesBadOptions) {
  EXPECT_THROW(Generator({}, {}), std::invalid_argument);
  EXPECT_THROW(generator(1.5), std::invalid_argument);
  EXPECT_THROW(generator(std::nan("")), std::invalid_argument);
  EXPECT_THROW(generator(0.3, 16), std::invalid_argument);
  EXPECT_THROW(generator(0.3, 64, {0, 0, 0, 0}), std::invalid_argument);
  EXPECT_THROW(generator(0.3, 64, {1, -1, 1, 1}), std::invalid_argument);
}

TEST(Generator, IsFastEnough) {
  for (const auto& [size, least] : {std::pair<int64_t, double>{96, 200.0}, {224, 50.0}}) {
    const Generator made = generator(0.3, size);
    constexpr int kCount = 60;
    const std::clock_t start = std::clock();
    for (uint64_t i = 0; i < kCount; ++i) ASSERT_FALSE(made(i).image.empty());
    const double rate = kCount * static_cast<double>(CLOCKS_PER_SEC) / static_cast<double>(std::clock() - start);
    std::cout << size << " px: " << rate << " pictures a second and core\n";
    // Unoptimised and sanitised builds are slower by a constant.
    EXPECT_GT(rate, least / 20.0);
  }
}

TEST(Fresh, NeverRepeats) {
  const Fresh fresh(generator(0.3, 32), 5);
  std::set<std::string> names;
  std::set<std::vector<uint8_t>> pictures;
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    for (int64_t i = 0; i < fresh.size(); ++i) {
      const Sample sample = fresh.sample(epoch, i);
      names.insert(sample.name);
      pictures.insert(sample.image.pixels);
      EXPECT_GE(sample.regime, 0);
    }
  }
  EXPECT_EQ(names.size(), 20U);
  EXPECT_EQ(pictures.size(), 20U);
  EXPECT_EQ(fresh.sample(2, 3).image, fresh.sample(2, 3).image);
  EXPECT_THROW(fresh.sample(0, 5), std::out_of_range);
  EXPECT_THROW(Fresh(generator(), 0), std::invalid_argument);
}

TEST(Split, SharesNoPhotograph) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const PhotographSplit split = split_photographs(photographs(), {.seed = seed});
    std::set<std::string> names;
    for (const auto* part : {&split.train, &split.validation, &split.test}) {
      for (const Photograph& photograph : *part) names.insert(photograph.name());
    }
    EXPECT_EQ(split.test.size(), 3U);
    EXPECT_EQ(split.validation.size(), 2U);
    EXPECT_EQ(split.train.size(), 4U);
    EXPECT_EQ(names.size(), photographs().size());
  }
  // The order in which photographs are given does not matter.
  std::vector<Photograph> reversed(photographs().rbegin(), photographs().rend());
  const PhotographSplit a = split_photographs(photographs(), {.seed = 3});
  const PhotographSplit b = split_photographs(reversed, {.seed = 3});
  for (std::size_t i = 0; i < a.test.size(); ++i) EXPECT_EQ(a.test[i].name(), b.test[i].name());
}

TEST(Split, RefusesTooFewAndDoubled) {
  const std::vector<Photograph> few(photographs().begin(), photographs().begin() + 6);
  EXPECT_THROW(split_photographs(few), std::invalid_argument);
  EXPECT_THROW(split_photographs(photographs(), {.validation = 1}), std::invalid_argument);
  EXPECT_THROW(split_photographs(photographs(), {.test = 2}), std::invalid_argument);
  std::vector<Photograph> doubled = photographs();
  doubled.push_back(doubled.front());
  EXPECT_THROW(split_photographs(doubled), std::invalid_argument);
}

TEST(Procedural, SameForAnyCount) {
  const std::vector<Photograph> two = procedural_photographs(2, 7, 256);
  EXPECT_EQ(two[1].image(), photographs()[1].image());
  EXPECT_EQ(two[1].name(), photographs()[1].name());
  EXPECT_NE(procedural_photographs(1, 8, 256)[0].image(), two[0].image());
  EXPECT_THROW(procedural_photographs(1, 0, 32), std::invalid_argument);
}

TEST(PhotographFolder, LeavesOutWhatIsNoPhotograph) {
  const Scratch scratch;
  fs::create_directories(scratch / "deep");
  const Image& texture = photographs()[0].image();
  io::write_image(scratch / "b.ppm", texture);
  io::write_image(scratch / "b_512x512.ppm", resize(texture, 512, 512));
  io::write_image(scratch / "deep" / "a.ppm", resize(texture, 300, 2000));
  io::write_image(scratch / "flat.ppm", Image(300, 300, 3, 90));
  io::write_image(scratch / "small.ppm", resize(texture, 300, 200));
  std::ofstream(scratch / "broken.ppm") << "P6\n300 300\n255\nxx";
  const PhotographFolder found = read_photographs({scratch.path()});
  ASSERT_EQ(found.photographs.size(), 2U);
  EXPECT_EQ(found.photographs[0].name(), "b.ppm");
  EXPECT_EQ(found.photographs[1].name(), "deep/a.ppm");
  EXPECT_EQ(found.photographs[1].width(), 1024);
  EXPECT_THAT(found.skipped, testing::UnorderedElementsAre(testing::StartsWith("b_512x512.ppm: another size"),
                                                           testing::StartsWith("broken.ppm: "),
                                                           testing::StartsWith("flat.ppm: mostly flat"),
                                                           testing::StartsWith("small.ppm: smaller")));
  EXPECT_THROW(read_photographs({scratch / "none"}), std::runtime_error);
}

TEST(PhotographFolder, ReadsPackedOnes) {
  const Scratch scratch;
  io::write_image(scratch / "a.ppm", resize(photographs()[0].image(), 300, 400));
  io::write_image(scratch / "b.ppm", resize(photographs()[1].image(), 320, 320));
  const PhotographFolder files = read_photographs({scratch.path()});
  write_packed(scratch / "packed.safetensors", PhotographsToPack(files.photographs), {.height = 320, .width = 320, .progress = {}});
  const PhotographFolder packed = read_photographs({scratch / "packed.safetensors"});
  ASSERT_EQ(packed.photographs.size(), 2U);
  EXPECT_EQ(packed.photographs[0].name(), "a.ppm");
  EXPECT_EQ(packed.photographs[0].image(), resize(centre_cropped(files.photographs[0].image(), 300, 300), 320, 320));
  EXPECT_EQ(packed.photographs[1].image(), files.photographs[1].image());
}

TEST(PackedDataset, HoldsThePicturesOfTheGenerator) {
  const Scratch scratch;
  const PhotographSplit split = split_photographs(photographs(), {.seed = 3});
  DatasetOptions options{.train = 3, .validation = 2, .test = 2, .picture = {.size = 64, .seed = 5}, .threads = 2, .progress = {}};
  EXPECT_TRUE(write_packed_dataset(scratch / "packed", split, options));
  options.threads = 1;
  EXPECT_TRUE(write_packed_dataset(scratch / "again", split, options));
  for (const Split part : {Split::Train, Split::Validation, Split::Test}) {
    const Packed packed(packed_file(scratch / "packed", part)), again(packed_file(scratch / "again", part));
    ASSERT_EQ(packed.size(), part == Split::Train ? 3 : 2);
    for (int64_t i = 0; i < packed.size(); ++i) EXPECT_EQ(packed.sample(0, i).image, again.sample(0, i).image);
  }
  const Packed test(packed_file(scratch / "packed", Split::Test));
  const Camouflage made = data::detail::part_generator(split.test, options.picture, 2)(1);
  EXPECT_EQ(test.sample(0, 1).image, made.image);
  EXPECT_EQ(test.sample(0, 1).mask, made.mask);
  EXPECT_EQ(test.sample(0, 1).regime, static_cast<int64_t>(made.regime));
  // It is there; another is not written over it; and it says what it was made from.
  EXPECT_FALSE(write_packed_dataset(scratch / "packed", split, options));
  options.picture.seed = 6;
  EXPECT_THROW(write_packed_dataset(scratch / "packed", split, options), std::runtime_error);
  EXPECT_THROW(write_dataset(scratch / "packed", split, options), std::runtime_error);
  const PhotographSplit found = split_of_dataset(scratch / "packed", photographs());
  ASSERT_EQ(found.train.size(), split.train.size());
  for (std::size_t i = 0; i < found.train.size(); ++i) EXPECT_EQ(found.train[i].name(), split.train[i].name());
  EXPECT_FALSE(fs::exists(scratch / "packed.partial"));
}

std::map<std::string, std::string> files_below(const fs::path& root) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream file(entry.path(), std::ios::binary);
    out[fs::relative(entry.path(), root).string()] = {std::istreambuf_iterator<char>(file), {}};
  }
  return out;
}

TEST(WriteDataset, SameBytesReadableAndGuarded) {
  const Scratch scratch;
  const PhotographSplit split = split_photographs(photographs());
  DatasetOptions options{.train = 9, .validation = 4, .test = 6, .picture = {.size = 48}, .threads = 1, .progress = {}};
  int64_t told = 0;
  options.progress = [&told](int64_t done, int64_t total) {
    EXPECT_EQ(done, ++told);
    EXPECT_EQ(total, 19);
  };
  EXPECT_TRUE(write_dataset(scratch / "one/", split, options));
  EXPECT_EQ(told, 19);
  options.progress = {};
  options.threads = 3;
  EXPECT_TRUE(write_dataset(scratch / "three", split, options));
  EXPECT_EQ(files_below(scratch / "one"), files_below(scratch / "three"));
  EXPECT_FALSE(fs::exists(scratch / "one.partial"));

  EXPECT_FALSE(write_dataset(scratch / "one", split, options));
  options.picture.difficulty = 0.5;
  EXPECT_THROW(write_dataset(scratch / "one", split, options), std::runtime_error);
  fs::create_directories(scratch / "other" / "things");
  EXPECT_THROW(write_dataset(scratch / "other", split, options), std::runtime_error);

  std::set<std::string> names;
  std::map<Split, std::set<std::string>> sources;
  for (const auto& [part, count] : {std::pair{Split::Train, 9}, {Split::Validation, 4}, {Split::Test, 6}}) {
    const Records found = open(scratch / "one", part);
    EXPECT_EQ(found.layout, "COD10K");
    EXPECT_EQ(found.records.size(), static_cast<std::size_t>(count));
    EXPECT_THAT(found.problems, testing::IsEmpty());
    for (const Record& record : found.records) {
      names.insert(record.name);
      EXPECT_GE(record.regime, 0);
      // COD10K-CAM-<regime>-<Regime>-<photograph>-...
      const std::string tail = record.name.substr(record.name.find('-', 13) + 1);
      sources[part].insert(tail.substr(0, tail.find('-')));
    }
  }
  EXPECT_EQ(names.size(), 19U);
  for (const std::string& source : sources[Split::Test]) {
    EXPECT_FALSE(sources[Split::Train].contains(source));
    EXPECT_FALSE(sources[Split::Validation].contains(source));
  }

  const PhotographSplit again = split_of_dataset(scratch / "one", photographs());
  ASSERT_EQ(again.test.size(), split.test.size());
  for (std::size_t i = 0; i < split.test.size(); ++i) EXPECT_EQ(again.test[i].name(), split.test[i].name());
  EXPECT_EQ(again.train.size(), split.train.size());
  EXPECT_THROW(split_of_dataset(scratch / "one", procedural_photographs(9, 8, 256)), std::runtime_error);
  EXPECT_THROW(split_of_dataset(scratch / "other", photographs()), std::runtime_error);
}

}  // namespace
