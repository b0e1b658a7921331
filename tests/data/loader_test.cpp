// Images, data set layouts, augmentation, and the loader that puts them together.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "moecod/data/augment.hpp"
#include "moecod/data/folder.hpp"
#include "moecod/data/fresh.hpp"
#include "moecod/data/generator.hpp"
#include "moecod/data/loader.hpp"
#include "moecod/data/procedural.hpp"
#include "moecod/data/records.hpp"
#include "moecod/data/sampler.hpp"
#include "moecod/io/image.hpp"
#include "moecod/io/image_file.hpp"
#include "tests/data/scratch.hpp"

namespace {

using namespace moecod;
using namespace moecod::data;
namespace fs = std::filesystem;

Image random_image(int64_t height, int64_t width, int64_t channels, uint64_t seed) {
  Image image(height, width, channels);
  Random random{seed};
  for (uint8_t& value : image.pixels) value = static_cast<uint8_t>(random.below(256));
  return image;
}

/// A picture whose mask can be computed back from it: object pixels have blue 200, others 40.
Sample marked_sample(int64_t height, int64_t width) {
  Sample sample{Image(height, width, 3, 100), Image(height, width, 1), 1, "marked"};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const bool object = y > height / 3 && x > width / 2 && x + y < (height + width) * 3 / 4;
      sample.image.at(y, x, 2) = object ? 200 : 40;
      sample.mask.at(y, x) = object ? 255 : 0;
    }
  }
  return sample;
}

// ------------------------------------------------------------------------------------------------ images

TEST(Image, ResizeKeepsConstantsAndMeans) {
  const Image flat(37, 53, 3, 201);
  EXPECT_EQ(resize(flat, 96, 17), Image(96, 17, 3, 201));
  const Image image = random_image(64, 48, 1, 1);
  // Shrinking by a whole factor is the mean of each cell.
  const Image half = resize(image, 32, 16);
  for (int64_t y = 0; y < 32; ++y) {
    for (int64_t x = 0; x < 16; ++x) {
      double sum = 0;
      for (int64_t i = 0; i < 2; ++i) {
        for (int64_t j = 0; j < 3; ++j) sum += image.at(2 * y + i, 3 * x + j);
      }
      ASSERT_NEAR(half.at(y, x), sum / 6.0, 1.0);
    }
  }
  // Growing is linear between pixel centres: 0, 100 -> 0, 25, 75, 100.
  Image two(1, 2, 1);
  two.at(0, 1) = 100;
  EXPECT_THAT(resize(two, 1, 4).pixels, testing::ElementsAre(0, 25, 75, 100));
  EXPECT_EQ(resize(image, 64, 48), image);
  EXPECT_THROW(resize(Image(), 4, 4), std::invalid_argument);
  EXPECT_THROW(resize(image, 0, 4), std::invalid_argument);
}

TEST(Image, FilesRoundTrip) {
  const Scratch scratch;
  const Image rgb = random_image(13, 7, 3, 2);
  const Image gray = random_image(5, 11, 1, 3);
  std::vector<std::pair<std::string, std::string>> lossless{{".ppm", ".pgm"}};
  if (io::is_image_path("a.png")) lossless.emplace_back(".png", ".png");
  for (const auto& [color, mono] : lossless) {
    io::write_image(scratch / ("rgb" + color), rgb);
    io::write_image(scratch / ("gray" + mono), gray);
    EXPECT_EQ(io::read_rgb(scratch / ("rgb" + color)), rgb);
    EXPECT_EQ(io::read_gray(scratch / ("gray" + mono)), gray);
    const Image repeated = io::read_rgb(scratch / ("gray" + mono));
    EXPECT_EQ(repeated.channels, 3);
    EXPECT_EQ(to_gray(repeated), gray);
    const Image luma = io::read_gray(scratch / ("rgb" + color));
    const Image expected = to_gray(rgb);
    for (std::size_t i = 0; i < luma.pixels.size(); ++i) ASSERT_NEAR(luma.pixels[i], expected.pixels[i], 1);
  }
  for (const auto& entry : fs::directory_iterator(scratch.path())) {
    EXPECT_EQ(entry.path().string().find(".tmp."), std::string::npos) << entry.path();
  }
}

TEST(Image, FileErrorsNameTheFile) {
  const Scratch scratch;
  const auto message = [](const auto& action) {
    try {
      action();
    } catch (const std::exception& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(message([&] { io::read_rgb(scratch / "none.ppm"); }), testing::HasSubstr("none.ppm"));
  EXPECT_THAT(message([&] { io::read_rgb(scratch.path()); }), testing::HasSubstr(scratch.path().string()));
  std::ofstream(scratch / "empty.ppm").close();
  EXPECT_THAT(message([&] { io::read_gray(scratch / "empty.ppm"); }), testing::HasSubstr("empty.ppm"));
  std::ofstream(scratch / "text.png") << "not a picture";
  EXPECT_THAT(message([&] { io::read_gray(scratch / "text.png"); }), testing::HasSubstr("text.png"));
  EXPECT_THAT(message([&] { io::write_image(scratch / "a.xyz", Image(2, 2, 3)); }), testing::HasSubstr("a.xyz"));
  EXPECT_THAT(message([&] { io::write_image(scratch / "no" / "a.ppm", Image(2, 2, 3)); }), testing::HasSubstr("a.ppm"));
  EXPECT_THROW(io::write_image(scratch / "a.ppm", Image()), std::invalid_argument);
}

// ------------------------------------------------------------------------------------------------ layouts

void write_pair(const fs::path& image, const fs::path& mask, uint64_t seed = 1) {
  fs::create_directories(image.parent_path());
  fs::create_directories(mask.parent_path());
  const Sample sample = marked_sample(24, 32);
  Image picture = sample.image;
  picture.at(0, 0) = static_cast<uint8_t>(seed);
  io::write_image(image, picture);
  io::write_image(mask, sample.mask);
}

std::vector<std::string> names(const Records& found) {
  std::vector<std::string> out;
  for (const Record& record : found.records) out.push_back(record.name);
  return out;
}

TEST(Records, Cod10k) {
  const Scratch root;
  const auto add = [&root](const std::string& part, const std::string& name) {
    write_pair(root / part / "Image" / (name + ".ppm"), root / part / "GT_Object" / (name + ".pgm"));
  };
  for (const char* name : {"COD10K-CAM-1-Aquatic-1-Fish-1", "COD10K-CAM-2-Clear-1-Aqua-2", "COD10K-NonCAM-5-A-1-B-3",
                           "COD10K-CAM-1-Aquatic-1-Fish-4"}) {
    add("Train", name);
  }
  for (const char* name : {"COD10K-CAM-1-Aquatic-3-Crab-32", "COD10K-CAM-1-Aquatic-1-Fish-9"}) add("Test", name);
  // Without lists the names decide.
  EXPECT_THAT(names(open(root.path(), Split::Train)),
              testing::ElementsAre("COD10K-CAM-1-Aquatic-1-Fish-1", "COD10K-CAM-1-Aquatic-1-Fish-4",
                                   "COD10K-CAM-2-Clear-1-Aqua-2"));
  EXPECT_THROW(open(root.path(), Split::Validation), std::runtime_error);
  fs::create_directories(root / "Info");
  std::ofstream(root / "Info" / "CAM_train.txt") << "COD10K-CAM-1-Aquatic-1-Fish-1.jpg\r\n"
                                                    "COD10K-CAM-2-Clear-1-Aqua-2 x\n\n"
                                                    "COD10K-CAM-1-Gone-1-Gone-7\n";
  std::ofstream(root / "Info" / "CAM_val.txt") << "COD10K-CAM-1-Aquatic-1-Fish-4\n";
  const Records train = open(root.path(), Split::Train);
  EXPECT_EQ(train.layout, "COD10K");
  EXPECT_THAT(names(train), testing::ElementsAre("COD10K-CAM-1-Aquatic-1-Fish-1", "COD10K-CAM-2-Clear-1-Aqua-2"));
  EXPECT_EQ(train.records[0].regime, -1);
  EXPECT_EQ(train.records[1].regime, static_cast<int64_t>(Regime::Clear));
  EXPECT_THAT(train.problems, testing::ElementsAre("COD10K-CAM-1-Gone-1-Gone-7: image missing"));
  EXPECT_THAT(names(open(root.path(), Split::Validation)), testing::ElementsAre("COD10K-CAM-1-Aquatic-1-Fish-4"));
  EXPECT_EQ(open(root.path(), Split::Test).records.size(), 2U);
  EXPECT_THAT(names(open(root.path(), Split::Test, {.exclude_overlaps = true})),
              testing::ElementsAre("COD10K-CAM-1-Aquatic-1-Fish-9"));
  EXPECT_EQ(open(root.path(), Split::Train, {.non_camouflaged = true}).records.size(), 3U);
}

TEST(Records, OtherLayouts) {
  const Scratch scratch;
  const fs::path camo = scratch / "CAMO";
  for (const char* name : {"camourflage_1", "camourflage_2"}) {
    write_pair(camo / "Images" / "Train" / (std::string(name) + ".ppm"), camo / "GT" / (std::string(name) + ".pgm"));
  }
  write_pair(camo / "Images" / "Test" / "camourflage_3.ppm", camo / "GT" / "camourflage_3.pgm");
  EXPECT_EQ(open(camo, Split::Train).layout, "CAMO");
  EXPECT_EQ(open(camo, Split::Train).records.size(), 2U);
  EXPECT_THAT(names(open(camo, Split::Test)), testing::ElementsAre("camourflage_3"));

  const fs::path nc4k = scratch / "NC4K";
  write_pair(nc4k / "Imgs" / "1.ppm", nc4k / "GT" / "1.pgm");
  io::write_image(nc4k / "Imgs" / "2.ppm", Image(4, 4, 3));
  const Records plain = open(nc4k, Split::Test);
  EXPECT_THAT(names(plain), testing::ElementsAre("1"));
  EXPECT_THAT(plain.problems, testing::ElementsAre("2: mask missing"));

  const fs::path packed = scratch / "packed";
  write_pair(packed / "TrainDataset" / "Imgs" / "a.ppm", packed / "TrainDataset" / "GT" / "a.pgm");
  write_pair(packed / "TestDataset" / "CAMO" / "Imgs" / "b.ppm", packed / "TestDataset" / "CAMO" / "GT" / "b.pgm");
  write_pair(packed / "TestDataset" / "NC4K" / "Imgs" / "c.ppm", packed / "TestDataset" / "NC4K" / "GT" / "c.pgm");
  EXPECT_THAT(names(open(packed, Split::Train)), testing::ElementsAre("a"));
  EXPECT_THAT(names(open(packed, Split::Test)), testing::ElementsAre("b", "c"));
  EXPECT_THAT(names(open(packed / "TestDataset" / "NC4K", Split::Test)), testing::ElementsAre("c"));

  fs::create_directories(scratch / "empty" / "Imgs");
  fs::create_directories(scratch / "empty" / "GT");
  EXPECT_THROW(open(scratch / "empty", Split::Test), std::runtime_error);
  EXPECT_THROW(open(scratch / "nowhere", Split::Train), std::runtime_error);
}

class FolderOfPairs : public testing::Test {
 protected:
  FolderOfPairs() {
    for (int i = 0; i < 10; ++i) {
      const std::string name(1, static_cast<char>('a' + i));
      write_pair(scratch_ / "Imgs" / (name + ".ppm"), scratch_ / "GT" / (name + ".pgm"), static_cast<uint64_t>(i));
    }
  }
  void break_pair(const std::string& name) { std::ofstream(scratch_ / "Imgs" / (name + ".ppm")) << "P6 broken"; }
  Folder folder(int64_t max_bad = 10) {
    return Folder(open(scratch_.path(), Split::Test),
                  {.max_bad = max_bad, .report = [this](const std::string& problem) { told_.push_back(problem); }});
  }

  Scratch scratch_;
  std::vector<std::string> told_;
};

TEST_F(FolderOfPairs, ReportsAndCountsProblems) {
  break_pair("c");
  io::write_image(scratch_ / "GT" / "d.pgm", resize(marked_sample(24, 32).mask, 48, 64));
  Image ones = marked_sample(24, 32).mask;
  for (uint8_t& value : ones.pixels) value = value != 0;
  io::write_image(scratch_ / "GT" / "e.pgm", ones);
  const Folder source = folder();
  EXPECT_THROW(source.sample(0, 2), bad_sample);
  EXPECT_THROW(source.sample(1, 2), bad_sample);
  const Sample resized = source.sample(0, 3);
  EXPECT_EQ(resized.mask.height, 24);
  EXPECT_EQ(resized.mask.width, 32);
  EXPECT_EQ(source.sample(0, 4).mask, marked_sample(24, 32).mask);  // a mask of 0 and 1
  EXPECT_EQ(source.bad(), 1);
  EXPECT_EQ(source.resized(), 1);
  EXPECT_THAT(told_, testing::ElementsAre(testing::StartsWith("c: "),
                                          "d: mask of 48 x 64 resized to the image's 24 x 32"));
  EXPECT_THROW(source.sample(0, 10), std::out_of_range);
}

TEST_F(FolderOfPairs, EndsPastTheLimit) {
  break_pair("a");
  break_pair("b");
  const Folder source = folder(1);
  EXPECT_THROW(source.sample(0, 0), bad_sample);
  try {
    source.sample(0, 1);
    FAIL();
  } catch (const bad_sample&) {
    FAIL() << "past the limit the error must not be one that the loader forgives";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("max_bad"));
  }
}

// ------------------------------------------------------------------------------------------------ augmentation

TEST(Augment, MaskStaysAlignedWithTheImage) {
  Augment geometry = Augment::strong();
  geometry.brightness = geometry.contrast = geometry.saturation = geometry.hue_shift = geometry.mix_channels = 0.0F;
  geometry.crop = 9;
  geometry.rotate = 0.5F;
  geometry.degrees = 90.0F;
  std::set<std::vector<uint8_t>> masks;
  for (const bool replicate : {false, true}) {
    geometry.replicate = replicate;
    for (uint64_t i = 0; i < 40; ++i) {
      const Sample out = geometry(marked_sample(40, 56), Random{9, i});
      ASSERT_EQ(out.image.height, out.mask.height);
      ASSERT_EQ(out.image.width, out.mask.width);
      int64_t wrong = 0;
      for (int64_t y = 0; y < out.mask.height; ++y) {
        for (int64_t x = 0; x < out.mask.width; ++x) {
          wrong += (out.image.at(y, x, 2) >= 120) != (out.mask.at(y, x) != 0);
        }
      }
      EXPECT_LE(wrong, out.mask.height) << i;  // pixels on a rotated outline
      masks.insert(out.mask.pixels);
    }
  }
  EXPECT_GT(masks.size(), 40U);
}

TEST(Augment, PresetsAreKeyedAndBounded) {
  for (const char* name : {"none", "sinet_v2", "zoomnext", "strong"}) {
    const Augment augment = Augment::preset(name);
    std::set<std::vector<uint8_t>> seen;
    for (uint64_t i = 0; i < 20; ++i) {
      Sample sample{random_image(50, 60, 3, i), marked_sample(50, 60).mask, 2, "x"};
      const Sample a = augment(sample, Random{1, 0, i});
      const Sample b = augment(sample, Random{1, 0, i});
      EXPECT_EQ(a.image, b.image);
      EXPECT_EQ(a.mask, b.mask);
      EXPECT_EQ(a.regime, 2);
      for (const uint8_t value : a.mask.pixels) ASSERT_TRUE(value == 0 || value == 255);
      EXPECT_EQ(a.image == sample.image, std::string(name) == "none");
      seen.insert(augment(sample, Random{1, 1, i}).image.pixels);
    }
    EXPECT_EQ(seen.size(), 20U);
  }
  EXPECT_THROW(Augment::preset("other"), std::invalid_argument);
  EXPECT_THROW(Augment::strong()({Image(4, 4, 3), Image(4, 5, 1), -1, "x"}, Random{1}), std::invalid_argument);
  const AugmentDraw drawn = Augment::strong().draw({Image(4, 4, 3), Image(4, 4, 1), -1, "x"}, Random{1});
  EXPECT_THROW(augmented({Image(4, 6, 3), Image(4, 6, 1), -1, "x"}, drawn), std::invalid_argument);
}

TEST(Augment, Identities) {
  const Image image = random_image(9, 14, 3, 4);
  EXPECT_EQ(mirrored(mirrored(image)), image);
  EXPECT_EQ(flipped(flipped(image)), image);
  EXPECT_EQ(quarter_turned(quarter_turned(image)), mirrored(flipped(image)));
  EXPECT_EQ(rotated(image, 0.0F, false), image);
  const Image square = random_image(11, 11, 3, 5);
  EXPECT_EQ(rotated(square, 90.0F, true), quarter_turned(square));
  Image same = image;
  adjust_brightness(same, 1.0F);
  adjust_contrast(same, 1.0F);
  adjust_saturation(same, 1.0F);
  adjust_sharpness(same, 1.0F);
  EXPECT_EQ(same, image);
  shift_hsv(same, 0.0F, 0.0F, 0.0F);
  for (std::size_t i = 0; i < same.pixels.size(); ++i) ASSERT_NEAR(same.pixels[i], image.pixels[i], 1);
  Image red(1, 1, 3);
  red.at(0, 0, 0) = 200;
  shift_hsv(red, 120.0F, 0.0F, 0.0F);
  EXPECT_THAT(red.pixels, testing::ElementsAre(0, 200, 0));
  Image gray = image;
  adjust_saturation(gray, 0.0F);
  EXPECT_EQ(gray.at(3, 3, 0), gray.at(3, 3, 2));
}

// ------------------------------------------------------------------------------------------------ sampler, loader

TEST(Sampler, RanksShareAnEpochWithoutOverlap) {
  for (const int64_t world : {1, 3}) {
    std::multiset<int64_t> seen;
    std::multiset<int64_t> evaluated;
    for (int64_t rank = 0; rank < world; ++rank) {
      Sampler sampler{.size = 50, .batch = 4, .rank = rank, .world = world, .train = true, .seed = 5};
      const auto indices = sampler.indices(2);
      EXPECT_EQ(indices.size() % 4, 0U);
      EXPECT_EQ(indices, sampler.indices(2));
      EXPECT_NE(indices, sampler.indices(3));
      seen.insert(indices.begin(), indices.end());
      sampler.train = false;
      const auto all = sampler.indices(0);
      evaluated.insert(all.begin(), all.end());
    }
    EXPECT_EQ(seen.size(), static_cast<std::size_t>(50 / (4 * world) * 4 * world));
    EXPECT_EQ(std::set<int64_t>(seen.begin(), seen.end()).size(), seen.size());
    EXPECT_EQ(evaluated.size(), 50U);
    EXPECT_EQ(std::set<int64_t>(evaluated.begin(), evaluated.end()).size(), 50U);
  }
  // The samples of a step do not depend on how many ranks share them.
  Sampler one{.size = 40, .batch = 8, .train = true, .seed = 5};
  Sampler two{.size = 40, .batch = 4, .rank = 1, .world = 2, .train = true, .seed = 5};
  const auto whole = one.indices(0);
  const auto part = two.indices(0);
  EXPECT_TRUE(std::equal(part.begin(), part.begin() + 4, whole.begin() + 4));
  EXPECT_THROW((Sampler{.size = 7, .batch = 4, .world = 2}.indices(0)), std::invalid_argument);
  EXPECT_THROW((Sampler{.size = 7, .batch = 0}.indices(0)), std::invalid_argument);
}

Fresh fresh_pictures(int64_t size = 22) {
  return Fresh(Generator(procedural_photographs(4, 3, 128), {.size = 40, .seed = 2}), size);
}

LoaderOptions small_batches(int64_t workers) {
  return {.batch = 4, .height = 32, .width = 36, .augment = Augment::strong(), .workers = workers, .ahead = 2,
          .seed = 8};
}

template <class Source>
std::vector<Batch> epoch_of(Loader<Source>& loader, int64_t epoch, int64_t position = 0) {
  std::vector<Batch> out;
  loader.start(epoch, position);
  while (auto batch = loader.next()) out.push_back(std::move(*batch));
  return out;
}

void expect_same(const std::vector<Batch>& a, const std::vector<Batch>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].images, b[i].images);
    EXPECT_EQ(a[i].masks, b[i].masks);
    EXPECT_EQ(a[i].indices, b[i].indices);
    EXPECT_EQ(a[i].names, b[i].names);
    EXPECT_EQ(a[i].regimes, b[i].regimes);
    EXPECT_EQ(a[i].position, b[i].position);
  }
}

TEST(Loader, SameBatchesForAnyNumberOfWorkers) {
  Loader alone(fresh_pictures(), small_batches(0));
  const auto expected = epoch_of(alone, 1);
  ASSERT_EQ(expected.size(), 5U);
  EXPECT_EQ(alone.batches(), 5);
  EXPECT_EQ(expected[0].images.size(), 4U * 3 * 32 * 36);
  EXPECT_EQ(expected[0].masks.size(), 4U * 32 * 36);
  EXPECT_GT(std::count_if(expected[0].masks.begin(), expected[0].masks.end(), [](uint8_t v) { return v >= 128; }), 0);
  for (const int64_t workers : {1, 3}) {
    Loader pool(fresh_pictures(), small_batches(workers));
    expect_same(expected, epoch_of(pool, 1));
    EXPECT_FALSE(pool.next().has_value());
    EXPECT_NE(epoch_of(pool, 2)[0].images, expected[0].images);
    expect_same(expected, epoch_of(pool, 1));
  }
}

TEST(Loader, ResumesInsideAnEpoch) {
  Loader whole(fresh_pictures(), small_batches(2));
  const auto expected = epoch_of(whole, 4);
  whole.start(4);
  ASSERT_TRUE(whole.next().has_value());
  ASSERT_TRUE(whole.next().has_value());
  EXPECT_EQ(whole.epoch(), 4);
  EXPECT_EQ(whole.position(), 2);
  Loader resumed(fresh_pictures(), small_batches(1));
  expect_same({expected.begin() + 2, expected.end()}, epoch_of(resumed, whole.epoch(), whole.position()));
  EXPECT_TRUE(epoch_of(resumed, 4, 5).empty());
  EXPECT_THROW(resumed.start(0, 6), std::invalid_argument);
  EXPECT_THROW(Loader(fresh_pictures(), small_batches(1)).next(), std::logic_error);
}

TEST(Loader, LeavesTheAugmentationToOthers) {
  LoaderOptions options = small_batches(0);
  options.augment = {};
  Loader plain(fresh_pictures(), options);
  const auto expected = epoch_of(plain, 1);
  EXPECT_TRUE(expected[0].draws.empty());
  for (const int64_t workers : {0, 3}) {
    options = small_batches(workers);
    options.augment_later = true;
    Loader later(fresh_pictures(), options);
    const auto batches = epoch_of(later, 1);
    expect_same(expected, batches);
    for (const Batch& batch : batches) {
      ASSERT_EQ(batch.draws.size(), 4U);
      for (std::size_t i = 0; i < 4; ++i) {
        const Sample sample = later.source().sample(1, batch.indices[i]);
        const Random random{options.seed, 1, static_cast<uint64_t>(batch.indices[i]), 0xA06};
        EXPECT_EQ(batch.draws[i], options.augment.draw(sample, random));
        EXPECT_NE(augmented(sample, batch.draws[i]).image, sample.image);
      }
    }
    // Behind a position as from the start.
    EXPECT_EQ(epoch_of(later, 1, 3)[0].draws, batches[3].draws);
  }
  // In evaluation nothing is augmented.
  options.train = false;
  Loader evaluation(fresh_pictures(), options);
  EXPECT_TRUE(epoch_of(evaluation, 1)[0].draws.empty());
}

TEST_F(FolderOfPairs, LoaderReplacesBadInTrainingAndLeavesThemOutInEvaluation) {
  break_pair("c");
  LoaderOptions options{.batch = 3, .height = 24, .width = 32, .train = false, .workers = 2, .full_masks = true};
  Loader evaluation(folder(), options);
  std::vector<std::string> seen;
  for (const Batch& batch : epoch_of(evaluation, 0)) {
    seen.insert(seen.end(), batch.names.begin(), batch.names.end());
    EXPECT_EQ(batch.full_masks.size(), static_cast<std::size_t>(batch.size));
    EXPECT_EQ(batch.full_masks[0].width, 32);
    EXPECT_EQ(batch.masks.size(), static_cast<std::size_t>(batch.size * 24 * 32));
  }
  EXPECT_THAT(seen, testing::ElementsAre("a", "b", "d", "e", "f", "g", "h", "i", "j"));

  options.train = true;
  options.batch = 5;
  Loader training(folder(), options);
  seen.clear();
  for (const Batch& batch : epoch_of(training, 0)) {
    EXPECT_EQ(batch.size, 5);
    seen.insert(seen.end(), batch.names.begin(), batch.names.end());
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), "d"), 2);
  EXPECT_EQ(std::count(seen.begin(), seen.end(), "c"), 0);

  Loader strict(folder(0), options);
  strict.start(0);
  EXPECT_THROW(while (strict.next()) {}, std::runtime_error);
}

TEST_F(FolderOfPairs, LoaderKeepsTheBytesOfAPicture) {
  Loader loader(folder(), {.batch = 1, .height = 24, .width = 32, .train = false, .workers = 0});
  loader.start(0);
  const Batch batch = loader.next().value();
  const Sample sample = marked_sample(24, 32);
  for (int64_t c = 0; c < 3; ++c)
    EXPECT_EQ(batch.images[static_cast<std::size_t>((20 * 32 + 20) * 3 + c)], sample.image.at(20, 20, c));
  EXPECT_EQ(batch.masks, sample.mask.pixels);
}

/// A source that is slow, and fails at one index.
struct Stubborn {
  int64_t fail_at = -1;
  int64_t size() const { return 64; }
  Sample sample(int64_t, int64_t index) const {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    if (index == fail_at) throw std::domain_error("sample " + std::to_string(index));
    return {Image(4, 4, 3), Image(4, 4, 1), -1, std::to_string(index)};
  }
};

TEST(Loader, WorkersExceptionsReachTheConsumerInTheirPlace) {
  for (const int64_t workers : {0, 3}) {
    Loader loader(Stubborn{.fail_at = 9}, {.batch = 4, .height = 4, .width = 4, .train = false, .workers = workers});
    loader.start(0);
    EXPECT_EQ(loader.next()->position, 0);
    EXPECT_EQ(loader.next()->position, 1);
    EXPECT_THROW(loader.next(), std::domain_error);
    EXPECT_EQ(loader.next()->position, 3);
  }
}

TEST(Loader, DestructionDoesNotHang) {
  for (int taken = 0; taken < 6; ++taken) {
    Loader loader(Stubborn{}, {.batch = 8, .height = 4, .width = 4, .workers = 3, .ahead = 2});
    loader.start(0);
    for (int i = 0; i < taken; ++i) ASSERT_TRUE(loader.next().has_value());
    if (taken % 2 == 1) loader.start(1);
  }
  LoaderOptions bad;
  bad.batch = 0;
  EXPECT_THROW(Loader(Stubborn{}, bad), std::invalid_argument);
}

TEST(Loader, Speed) {
  const Fresh source(Generator(procedural_photographs(4, 3, 256), {.size = 96}), 200);
  Loader loader(source, {.batch = 8, .augment = Augment::strong(), .workers = 1});
  const auto start = std::chrono::steady_clock::now();
  int64_t count = 0;
  loader.start(0);
  while (auto batch = loader.next()) count += batch->size;
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  std::cout << "fresh, augmented, batched at 96 px: " << static_cast<double>(count) / time.count()
            << " pictures a second and worker\n";
  EXPECT_EQ(count, 200);
}

}  // namespace
