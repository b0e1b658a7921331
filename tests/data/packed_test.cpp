// Packed data sets: what is written comes back, what is damaged or foreign is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moecod/data/open_source.hpp"
#include "moecod/data/pack.hpp"
#include "moecod/data/packed.hpp"
#include "tests/data/scratch.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;
using test::error_of;
using testing::ElementsAre;
using testing::HasSubstr;

/// Pictures of 20 x 30 whose bytes follow from their index; those in `broken` cannot be read.
struct Made {
  int64_t count = 5;
  std::vector<int64_t> broken;

  int64_t size() const { return count; }
  data::Sample sample(int64_t, int64_t index) const {
    for (const int64_t b : broken)
      if (b == index) throw data::bad_sample("made" + std::to_string(index) + ": broken");
    data::Sample out{Image(20, 30, 3), Image(20, 30, 1), index % 3 - 1, "made" + std::to_string(index)};
    for (std::size_t i = 0; i < out.image.pixels.size(); ++i) out.image.pixels[i] = uint8_t(7 * i + 31 * index);
    for (std::size_t i = 0; i < out.mask.pixels.size(); ++i) out.mask.pixels[i] = (i / 30 + i % 30) % 11 < 4 ? 255 : 0;
    return out;
  }
};
static_assert(data::source<Made>);

std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void replace(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

TEST(Packed, GivesBackWhatWasPacked) {
  const Scratch scratch;
  const Made source;
  EXPECT_TRUE(data::write_packed(scratch / "a", source, {.height = 20, .width = 30}).empty());
  const data::Packed packed(scratch / "a");
  EXPECT_EQ(packed.size(), 5);
  EXPECT_EQ(packed.height(), 20);
  EXPECT_EQ(packed.width(), 30);
  for (int64_t i = 0; i < 5; ++i) {
    const data::Sample expected = source.sample(0, i), found = packed.sample(3, i);
    EXPECT_EQ(found.image.pixels, expected.image.pixels);
    EXPECT_EQ(found.mask.pixels, expected.mask.pixels);
    EXPECT_EQ(found.regime, expected.regime);
    EXPECT_EQ(found.name, expected.name);
  }
  EXPECT_THROW(packed.sample(0, 5), std::out_of_range);
  EXPECT_THROW(packed.sample(0, -1), std::out_of_range);
}

TEST(Packed, PicturesAreResizedOnceAndMasksStaySharp) {
  const Scratch scratch;
  const Made source;
  data::write_packed(scratch / "a", source, {.height = 10, .width = 16});
  const data::Sample found = data::Packed(scratch / "a").sample(0, 2);
  EXPECT_EQ(found.image.pixels, resize(source.sample(0, 2).image, 10, 16).pixels);
  EXPECT_EQ(found.mask.pixels, binarize(resize(source.sample(0, 2).mask, 10, 16)).pixels);
}

TEST(Packed, TheFileIsTheSameForAnyNumberOfThreads) {
  const Scratch scratch;
  data::write_packed(scratch / "a", Made{.count = 150}, {.height = 8, .width = 8, .threads = 1});
  data::write_packed(scratch / "b", Made{.count = 150}, {.height = 8, .width = 8, .threads = 5});
  EXPECT_EQ(bytes_of(scratch / "a"), bytes_of(scratch / "b"));
}

TEST(Packed, UnreadablePicturesAreLeftOutAndTold) {
  const Scratch scratch;
  std::vector<std::pair<int64_t, int64_t>> told;
  const auto progress = [&](int64_t done, int64_t total) { told.emplace_back(done, total); };
  const auto problems =
      data::write_packed(scratch / "a", Made{.broken = {1, 4}}, {.height = 8, .width = 8, .progress = progress});
  EXPECT_THAT(told, ElementsAre(std::pair(5, 10), std::pair(8, 8))) << "two are not read again";
  EXPECT_THAT(problems, ElementsAre("made1: broken", "made4: broken"));
  const data::Packed packed(scratch / "a");
  EXPECT_EQ(packed.size(), 3);
  EXPECT_EQ(packed.sample(0, 1).name, "made2");
  EXPECT_THAT(error_of([&] { data::write_packed(scratch / "b", Made{.count = 1, .broken = {0}}); }),
              HasSubstr("no picture can be read"));
  EXPECT_FALSE(std::filesystem::exists(scratch / "b"));
  EXPECT_THROW(data::write_packed(scratch / "b", Made(), {.height = 0}), std::invalid_argument);
}

/// Reads differently every time, as a file that is written to.
struct Unsteady : Made {
  data::Sample sample(int64_t epoch, int64_t index) const {
    static std::atomic<int> calls = 0;  // several threads pack
    data::Sample out = Made::sample(epoch, index);
    out.image.pixels[0] = uint8_t(calls++);
    return out;
  }
};

TEST(Packed, ASourceThatChangesLeavesTheOldFile) {
  const Scratch scratch;
  data::write_packed(scratch / "a", Made(), {.height = 20, .width = 30});
  const std::string before = bytes_of(scratch / "a");
  EXPECT_THAT(error_of([&] { data::write_packed(scratch / "a", Unsteady(), {.height = 20, .width = 30}); }),
              HasSubstr("changed while it was packed"));
  EXPECT_EQ(bytes_of(scratch / "a"), before);
}

TEST(Packed, DamageIsFoundInThePictureThatHasIt) {
  const Scratch scratch;
  data::write_packed(scratch / "a", Made(), {.height = 20, .width = 30});
  std::string bytes = bytes_of(scratch / "a");
  bytes[bytes.size() - 7] ^= 1;  // in the last picture
  replace(scratch / "a", bytes);
  const data::Packed packed(scratch / "a");
  EXPECT_NO_THROW(packed.sample(0, 3));
  EXPECT_THAT(error_of([&] { packed.sample(0, 4); }), HasSubstr("made4: its checksum differs"));
}

TEST(Packed, EveryCutIsRefused) {
  const Scratch scratch;
  data::write_packed(scratch / "a", Made{.count = 2}, {.height = 4, .width = 4});
  const std::string bytes = bytes_of(scratch / "a");
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    replace(scratch / "cut", bytes.substr(0, size));
    EXPECT_THROW(data::Packed(scratch / "cut"), std::runtime_error) << size;
  }
}

TEST(Packed, OtherFilesAreRefusedByName) {
  const Scratch scratch;
  const std::vector<std::byte> data(4 * 4 * 4);
  const auto write = [&](const io::Metadata& about, const std::vector<int64_t>& shape, const std::string& dtype) {
    std::vector<io::TensorRecord> tensors{{"pictures", dtype, shape, {}}, {"regimes", "I64", {1}, {}},
                                          {"checksums", "U64", {1}, {}}};
    io::SafetensorsWriter file(scratch / "a", tensors, about);
    for (const auto& tensor : tensors)
      file.write(std::span(data).subspan(0, io::safetensors::tensor_bytes(tensor.dtype, tensor.shape)));
    file.commit();
  };
  const auto error = [&] { return error_of([&] { data::Packed packed(scratch / "a"); }); };
  write({{"format", "pt"}}, {1, 4, 4, 4}, "U8");
  EXPECT_THAT(error(), HasSubstr("is not a packed data set"));
  write({{data::packed_key, "2"}, {"names", "[\"x\"]"}}, {1, 4, 4, 4}, "U8");
  EXPECT_THAT(error(), HasSubstr("of version 2, expected 1"));
  write({{data::packed_key, "1"}, {"names", "[\"x\"]"}}, {1, 4, 4, 3}, "U8");
  EXPECT_THAT(error(), HasSubstr("another shape than [N, H, W, 4]"));
  write({{data::packed_key, "1"}, {"names", "[\"x\"]"}}, {1, 4, 4, 4}, "I8");
  EXPECT_THAT(error(), HasSubstr("'pictures' of another type or shape"));
  write({{data::packed_key, "1"}, {"names", "[\"x\", \"y\"]"}}, {1, 4, 4, 4}, "U8");
  EXPECT_THAT(error(), HasSubstr("not one name a picture"));
  write({{data::packed_key, "1"}, {"names", "[3]"}}, {1, 4, 4, 4}, "U8");
  EXPECT_THAT(error(), HasSubstr("a name that is no text"));
}

TEST(OpenSource, TakesAPackedFolderForADataSet) {
  const Scratch scratch;
  EXPECT_FALSE(data::is_packed(scratch.path()));
  data::write_packed(data::packed_file(scratch.path(), data::Split::Train), Made(), {.height = 8, .width = 8});
  data::write_packed(data::packed_file(scratch.path(), data::Split::Test), Made{.count = 2}, {.height = 8, .width = 8});
  EXPECT_TRUE(data::is_packed(scratch.path()));
  EXPECT_EQ(data::open_source(scratch.path(), data::Split::Train).size(), 5);
  EXPECT_EQ(data::open_source(scratch.path(), data::Split::Test).size(), 2);
  EXPECT_THAT(error_of([&] { data::open_source(scratch.path(), data::Split::Validation); }), HasSubstr("validation.safetensors"));
}

}  // namespace
