// Augmentation of a batch on its device against data::augmented, which does it to one sample on the CPU.

#include <gtest/gtest.h>
#include <torch/cuda.h>
#include <torch/types.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "moecod/data/augment.hpp"
#include "moecod/data/loader.hpp"
#include "moecod/train/augment.hpp"
#include "moecod/train/batch.hpp"
#include "moecod/train/uploads.hpp"
#include "tests/error_of.hpp"

namespace {

using namespace moecod;
using data::Augment;
using data::AugmentDraw;
using data::Random;
using data::Sample;

/// Colours without any order, and a mask of discs.
Sample noisy(int64_t height, int64_t width, uint64_t seed) {
  Sample out{Image(height, width, 3), Image(height, width, 1), -1, "noisy"};
  Random random{seed};
  for (uint8_t& value : out.image.pixels) value = static_cast<uint8_t>(random.below(256));
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x) {
      const int64_t v = y % 13 - 5, u = x % 17 - 7;
      out.mask.at(y, x) = v * v + u * u < 19 ? 255 : 0;
    }
  return out;
}

/// Colours that change slowly, and one large object that no movement leaves as it is.
Sample smooth(int64_t height, int64_t width, uint64_t seed) {
  Sample out{Image(height, width, 3), Image(height, width, 1), -1, "smooth"};
  Random random{seed};
  const float phase = random.uniform(0, 6);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const float v = float(y) / float(height), u = float(x) / float(width);
      for (int64_t c = 0; c < 3; ++c)
        out.image.at(y, x, c) =
            static_cast<uint8_t>(127.5F + 90 * std::sin(phase + float(c) + (3 - float(c)) * v + 4 * u * u));
      out.mask.at(y, x) = (v - 0.4F) * (v - 0.4F) + 2 * (u - 0.6F) * (u - 0.6F) < 0.08F ? 255 : 0;
    }
  }
  return out;
}

struct Bytes {
  at::Tensor images, masks;  // [B, 3, H, W] and [B, 1, H, W], float32, 0..255
};

Bytes bytes_of(const std::vector<Sample>& samples, int64_t height, int64_t width) {
  data::Batch batch{.height = height, .width = width};
  for (const Sample& sample : samples) data::append(batch, sample, 0);
  return {train::upload(batch.images, {batch.size, height, width, 3}, at::kCPU).permute({0, 3, 1, 2}).to(at::kFloat),
          train::upload(batch.masks, {batch.size, 1, height, width}, at::kCPU).to(at::kFloat)};
}

/// Twelve samples of several sizes, augmented one by one and then resized, and resized and then augmented together.
struct Both {
  Bytes one_by_one, together;
  std::vector<AugmentDraw> draws;
};

Both both(const Augment& augment, const std::vector<Sample>& samples, int64_t height, int64_t width,
          at::Device device = at::kCPU) {
  Both out;
  std::vector<Sample> done;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    out.draws.push_back(augment.draw(samples[i], Random{5, i}));
    done.push_back(augment(samples[i], Random{5, i}));
  }
  out.one_by_one = bytes_of(done, height, width);
  const Bytes raw = bytes_of(samples, height, width);
  const auto [images, masks] = train::augmented(raw.images.to(device), raw.masks.to(device), out.draws);
  out.together = {images.to(at::kCPU), masks.to(at::kCPU)};
  return out;
}

std::vector<Sample> samples_of(Sample (*make)(int64_t, int64_t, uint64_t), int64_t height, int64_t width) {
  std::vector<Sample> out;
  for (uint64_t i = 0; i < 12; ++i) out.push_back(make(height, width, i));
  return out;
}

double largest(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }
double mean(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().mean().item<double>(); }
at::Tensor objects(const at::Tensor& masks) { return masks.ge(128); }

struct Step {
  std::string name;
  Augment augment;
  double tolerance;  // grey levels
};

const std::vector<Step>& exact_steps() {
  static const std::vector<Step> steps{
      {"flip", {.flip = 0.5F}, 0},
      {"flip_vertical", {.flip_vertical = 0.5F}, 0},
      {"quarter_turns", {.quarter_turns = true}, 0},
      {"all of these", {.flip = 0.5F, .flip_vertical = 0.5F, .quarter_turns = true}, 0},
      {"mask_noise", {.mask_noise = 0.02F}, 0},
      {"flip and mask_noise", {.flip = 0.5F, .mask_noise = 0.02F}, 0},
      // Where a product is half a grey level from the next, as it is for some values, either may be taken.
      {"brightness", {.brightness = 0.5F}, 1},
      {"contrast", {.contrast = 0.5F}, 1},
      {"saturation", {.saturation = 1.0F}, 1},
      {"sharpness", {.sharpness = 3.0F}, 1},
      {"hue_shift", {.hue_shift = 180.0F}, 1},
      {"saturation_shift", {.saturation_shift = 60.0F}, 1},
      {"value_shift", {.value_shift = 60.0F}, 1},
      {"mix_channels", {.mix_channels = 0.5F}, 1},
      {"rotate", {.rotate = 0.7F, .degrees = 180.0F}, 1},
      {"rotate, replicate", {.rotate = 0.7F, .degrees = 180.0F, .replicate = true}, 1},
      {"crop", {.crop = 20}, 1},
  };
  return steps;
}

void expect_steps_agree(at::Device device) {
  for (const Step& step : exact_steps()) {
    const Both made = both(step.augment, samples_of(noisy, 48, 48), 48, 48, device);
    const double difference = largest(made.together.images, made.one_by_one.images);
    EXPECT_LE(difference, step.tolerance) << step.name;
    // One level in a few pixels, not everywhere.
    EXPECT_LT(mean(made.together.images, made.one_by_one.images), 0.01) << step.name;
    const at::Tensor wrong = objects(made.together.masks).ne(objects(made.one_by_one.masks));
    EXPECT_LE(wrong.to(at::kDouble).mean().item<double>(), step.tolerance == 0 ? 0 : 1e-3) << step.name;
    EXPECT_TRUE(at::equal(made.together.images, made.together.images.floor())) << step.name;
    // The step does something.
    const Bytes raw = bytes_of(samples_of(noisy, 48, 48), 48, 48);
    EXPECT_FALSE(at::equal(made.together.images, raw.images) && at::equal(made.together.masks, raw.masks)) << step.name;
  }
}

TEST(AugmentedBatch, EachStepIsThatOfTheSample) { expect_steps_agree(at::kCPU); }

TEST(AugmentedBatch, EachStepIsThatOfTheSample_CUDA) {
  if (!torch::cuda::is_available()) GTEST_SKIP() << "needs a CUDA device";
  expect_steps_agree(at::kCUDA);
}

// Samples at another size than the batch's, with other sides: the loader resizes before or behind the augmentation.
TEST(AugmentedBatch, PresetsAgreeWithSamplesOfAnySize) {
  for (const char* name : {"none", "sinet_v2", "zoomnext", "strong"}) {
    for (const auto& [height, width] : {std::pair<int64_t, int64_t>{64, 64}, {96, 60}, {50, 130}, {200, 200}}) {
      Augment augment = Augment::preset(name);
      augment.mask_noise = 0;  // is drawn for the size
      const Both made = both(augment, samples_of(smooth, height, width), 64, 64);
      const std::string what = std::string(name) + " " + std::to_string(height) + " x " + std::to_string(width);
      EXPECT_LT(mean(made.together.images, made.one_by_one.images), 1.5) << what;
      const at::Tensor a = objects(made.together.masks), b = objects(made.one_by_one.masks);
      const double both_of = a.logical_and(b).sum().item<double>(), any = a.logical_or(b).sum().item<double>();
      EXPECT_GT(both_of / any, 0.97) << what;
      if (std::string(name) == "none") {
        EXPECT_TRUE(at::equal(made.together.images, made.one_by_one.images)) << what;
        EXPECT_TRUE(at::equal(made.together.masks, made.one_by_one.masks)) << what;
      }
    }
  }
}

TEST(AugmentedBatch, ARotationShowsTheCentreThatACropLeft) {
  // Without replicate the corners of a turned square are black and no object; with it there is nothing black.
  for (const bool replicate : {false, true}) {
    Augment augment{.crop = 12, .rotate = 1.0F, .degrees = 60.0F, .replicate = replicate};
    std::vector<Sample> samples;
    for (int i = 0; i < 6; ++i) samples.push_back({Image(40, 40, 3, 200), Image(40, 40, 1, 255), -1, "flat"});
    const Both made = both(augment, samples, 40, 40);
    const double black = made.together.images.lt(100).to(at::kDouble).mean().item<double>();
    const double expected = made.one_by_one.images.lt(100).to(at::kDouble).mean().item<double>();
    EXPECT_NEAR(black, expected, 0.005);
    EXPECT_EQ(black > 0.02, !replicate);
    EXPECT_TRUE(at::equal(made.together.images.narrow(1, 0, 1).eq(0), made.together.masks.eq(0)));
  }
}

TEST(AugmentedBatch, ASampleDoesNotDependOnItsBatch) {
  for (const char* name : {"sinet_v2", "zoomnext", "strong"}) {
    const auto samples = samples_of(noisy, 40, 56);
    const Both made = both(Augment::preset(name), samples, 32, 48);
    const Bytes raw = bytes_of(samples, 32, 48);
    for (int64_t i = 0; i < 12; ++i) {
      const auto [image, mask] = train::augmented(raw.images.narrow(0, i, 1), raw.masks.narrow(0, i, 1),
                                                  {made.draws[static_cast<std::size_t>(i)]});
      EXPECT_TRUE(at::equal(image, made.together.images.narrow(0, i, 1))) << name << " " << i;
      EXPECT_TRUE(at::equal(mask, made.together.masks.narrow(0, i, 1))) << name << " " << i;
    }
  }
  // Nor does one for which nothing was drawn change among others.
  const auto samples = samples_of(noisy, 40, 40);
  std::vector<AugmentDraw> draws = both(Augment::strong(), samples, 40, 40).draws;
  draws[3] = Augment{}.draw(samples[3], Random{1});
  const Bytes raw = bytes_of(samples, 40, 40);
  const auto [images, masks] = train::augmented(raw.images, raw.masks, draws);
  EXPECT_TRUE(at::equal(images[3], raw.images[3]));
  EXPECT_TRUE(at::equal(masks[3], raw.masks[3]));
}

TEST(AugmentedBatch, LeavesWhatItIsGivenAndRefusesOtherShapes) {
  const auto samples = samples_of(noisy, 32, 32);
  const Bytes raw = bytes_of(samples, 32, 32);
  const Bytes kept{raw.images.clone(), raw.masks.clone()};
  const std::vector<AugmentDraw> draws = both(Augment::sinet_v2(), samples, 32, 32).draws;
  (void)train::augmented(raw.images, raw.masks, draws);
  EXPECT_TRUE(at::equal(raw.images, kept.images));
  EXPECT_TRUE(at::equal(raw.masks, kept.masks));
  const auto error = [&](const at::Tensor& images, const at::Tensor& masks) {
    return test::error_of([&] { (void)train::augmented(images, masks, draws); });
  };
  EXPECT_NE(error(raw.images.narrow(0, 0, 3), raw.masks).find("images must be [B, 3, H, W] with B = 12"),
            std::string::npos);
  EXPECT_NE(error(raw.images, raw.masks.narrow(2, 0, 3)).find("masks must be"), std::string::npos);
}

// --------------------------------------------------------------------------------------------- from the loader on

struct Pictures {
  int64_t size() const { return 12; }
  Sample sample(int64_t, int64_t index) const { return smooth(32, 32, static_cast<uint64_t>(index)); }
};

data::LoaderOptions options(bool later) {
  return {.batch = 4, .height = 32, .width = 32, .augment = Augment::preset("strong"), .augment_later = later,
          .workers = 1, .seed = 3};
}

void expect_device_batches(at::Device device) {
  data::Loader now(Pictures{}, options(false)), later(Pictures{}, options(true));
  now.start(2);
  later.start(2, 1);  // resumed: behind the first batch
  (void)now.next();
  train::Uploads uploads(later, device);
  int64_t batches = 0;
  while (auto batch = uploads.next()) {
    const train::DeviceBatch expected = train::to_device(std::move(now.next().value()), at::kCPU);
    EXPECT_EQ(batch->images.device().type(), device.type());
    EXPECT_TRUE(batch->images.is_contiguous());
    EXPECT_EQ(batch->indices, expected.indices);
    // One grey level is about 0.017 of the normalised values, and steps that follow make more of it.
    EXPECT_LE(largest(batch->images.to(at::kCPU), expected.images), 0.06);
    EXPECT_LT(mean(batch->images.to(at::kCPU), expected.images), 1e-3);
    EXPECT_TRUE(at::equal(batch->masks.to(at::kCPU), expected.masks));
    ++batches;
  }
  EXPECT_EQ(batches, 2);
}

TEST(AugmentedBatch, ComesFromALoaderThatLeftItToTheDevice) { expect_device_batches(at::kCPU); }

TEST(AugmentedBatch, ComesFromALoaderThatLeftItToTheDevice_CUDA) {
  if (!torch::cuda::is_available()) GTEST_SKIP() << "needs a CUDA device";
  expect_device_batches(at::kCUDA);
}

}  // namespace
