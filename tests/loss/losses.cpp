// The losses against plain float64 loops, at their extremes, and their gradients against finite differences.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "moecod/loss/adversarial.hpp"
#include "moecod/loss/bce.hpp"
#include "moecod/loss/deep_supervision.hpp"
#include "moecod/loss/dice.hpp"
#include "moecod/loss/edge.hpp"
#include "moecod/loss/iou.hpp"
#include "moecod/loss/structure.hpp"
#include "moecod/loss/uncertainty_aware.hpp"

namespace {

using namespace moecod;
using at::Tensor;

/// One image as rows of doubles, to be read by plain loops.
struct Picture {
  int64_t height, width;
  std::vector<double> values;

  explicit Picture(const Tensor& x) : height(x.size(-2)), width(x.size(-1)) {
    const Tensor flat = x.to(at::kDouble).contiguous();
    values.assign(flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel());
  }
  double at(int64_t i, int64_t j) const { return values[std::size_t(i * width + j)]; }
  bool inside(int64_t i, int64_t j) const { return i >= 0 && j >= 0 && i < height && j < width; }
};

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double bce_of(double x, double m) { return -m * std::log(sigmoid(x)) - (1 - m) * std::log(1 - sigmoid(x)); }

double mean_bce(const Picture& x, const Picture& m) {
  double sum = 0;
  for (std::size_t i = 0; i < x.values.size(); ++i) sum += bce_of(x.values[i], m.values[i]);
  return sum / double(x.values.size());
}

double structure_loss(const Picture& x, const Picture& m, loss::StructureForm form) {
  double weights = 0, weighted = 0, intersection = 0, both = 0;
  for (int64_t i = 0; i < m.height; ++i)
    for (int64_t j = 0; j < m.width; ++j) {
      double window = 0;
      for (int64_t di = -15; di <= 15; ++di)
        for (int64_t dj = -15; dj <= 15; ++dj)
          if (m.inside(i + di, j + dj)) window += m.at(i + di, j + dj);
      const double w = 1 + 5 * std::abs(window / (31.0 * 31.0) - m.at(i, j)), p = sigmoid(x.at(i, j));
      weights += w;
      weighted += w * bce_of(x.at(i, j), m.at(i, j));
      intersection += w * p * m.at(i, j);
      both += w * (p + m.at(i, j));
    }
  const double pixels = form == loss::StructureForm::mean_bce ? mean_bce(x, m) : weighted / weights;
  return pixels + 1 - (intersection + 1) / (both - intersection + 1);
}

Tensor soft_mask(int64_t n, int64_t h, int64_t w) { return at::rand({n, 1, h, w}, at::kDouble); }
Tensor hard_mask(int64_t n, int64_t h, int64_t w) { return (soft_mask(n, h, w) > 0.6).to(at::kDouble); }
Tensor random_logits(int64_t n, int64_t h, int64_t w) { return 2 * at::randn({n, 1, h, w}, at::kDouble); }

void expect_close(const Tensor& actual, const std::vector<double>& expected, double tolerance = 1e-12) {
  ASSERT_EQ(actual.dim(), 1);
  ASSERT_EQ(actual.numel(), int64_t(expected.size()));
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(actual[int64_t(i)].item<double>(), expected[i], tolerance) << "image " << i;
}

template <class F>
std::vector<double> each_image(const Tensor& x, const Tensor& m, F&& f) {
  std::vector<double> out;
  for (int64_t i = 0; i < x.size(0); ++i) out.push_back(f(Picture(x[i][0]), Picture(m[i][0])));
  return out;
}

/// The largest difference between the gradient of sum(f(x)) and central differences, at every `every`-th element.
double gradient_error(const std::function<Tensor(const Tensor&)>& f, const Tensor& at_x, int64_t every = 1) {
  const double step = 1e-5;
  const Tensor x = at_x.detach().clone().set_requires_grad(true);
  f(x).sum().backward();
  const Tensor analytic = x.grad().reshape({-1});
  double worst = 0;
  for (int64_t i = 0; i < analytic.numel(); i += every) {
    const auto moved = [&](double by) {
      Tensor y = at_x.detach().clone();
      y.view({-1})[i] += by;
      return f(y).sum().item<double>();
    };
    worst = std::max(worst, std::abs((moved(step) - moved(-step)) / (2 * step) - analytic[i].item<double>()));
  }
  return worst;
}

class Losses : public testing::Test {
 protected:
  void SetUp() override {
    torch::manual_seed(3);
    at::set_num_threads(1);  // threads cost more than they bring at these sizes
  }
};

TEST_F(Losses, BceIsTheMeanOverEachImage) {
  const Tensor x = random_logits(3, 5, 7), m = soft_mask(3, 5, 7);
  expect_close(loss::bce(x, m), each_image(x, m, mean_bce));
}

TEST_F(Losses, IouAndDiceFollowTheirFormulas) {
  const Tensor x = random_logits(3, 6, 4), m = soft_mask(3, 6, 4);
  expect_close(loss::iou(x, m), each_image(x, m, [](const Picture& a, const Picture& b) {
                 double i = 0, u = 0;
                 for (std::size_t k = 0; k < a.values.size(); ++k)
                   i += sigmoid(a.values[k]) * b.values[k], u += sigmoid(a.values[k]) + b.values[k];
                 return 1 - (i + 1) / (u - i + 1);
               }));
  expect_close(loss::dice(x, m, 2.0), each_image(x, m, [](const Picture& a, const Picture& b) {
                 double i = 0, s = 0;
                 for (std::size_t k = 0; k < a.values.size(); ++k) {
                   const double p = sigmoid(a.values[k]);
                   i += p * b.values[k], s += p * p + b.values[k] * b.values[k];
                 }
                 return 1 - (2 * i + 2) / (s + 2);
               }));
}

TEST_F(Losses, StructureInBothForms) {
  // 40 pixels exceed the window of 31, 9 do not.
  const Tensor x = random_logits(2, 40, 9), m = hard_mask(2, 40, 9);
  for (const auto form : {loss::StructureForm::weighted_bce, loss::StructureForm::mean_bce})
    expect_close(loss::structure(x, m, form), each_image(x, m, [&](const Picture& a, const Picture& b) {
                   return structure_loss(a, b, form);
                 }));
  EXPECT_GT((loss::structure(x, m) - loss::structure(x, m, loss::StructureForm::mean_bce)).abs().min().item<double>(),
            1e-4);
}

TEST_F(Losses, EachImageStandsAlone) {
  const Tensor x = random_logits(3, 20, 20), m = hard_mask(3, 20, 20);
  const auto alone = [&](int64_t i) { return loss::structure(x.narrow(0, i, 1), m.narrow(0, i, 1)); };
  EXPECT_TRUE(at::allclose(loss::structure(x, m), at::cat({alone(0), alone(1), alone(2)}), 1e-12, 1e-12));
}

TEST_F(Losses, UncertaintyAndItsSchedule) {
  const Tensor x = random_logits(2, 6, 6), m = hard_mask(2, 6, 6);
  const auto uncertainty = [](const Picture& a, const Picture&) {
    double sum = 0;
    for (const double v : a.values) sum += 1 - std::pow(std::abs(2 * sigmoid(v) - 1), 2);
    return sum / double(a.values.size());
  };
  expect_close(loss::uncertainty(x), each_image(x, m, uncertainty));
  for (const double progress : {0.0, 0.3, 0.5, 1.0})
    expect_close(loss::uncertainty_aware(x, m, progress), each_image(x, m, [&](const Picture& a, const Picture& b) {
                   return mean_bce(a, b) + (1 - std::cos(M_PI * progress)) / 2 * uncertainty(a, b);
                 }));
  EXPECT_DOUBLE_EQ(loss::uncertainty_weight(0), 0);
  EXPECT_DOUBLE_EQ(loss::uncertainty_weight(1), 1);
  EXPECT_THROW(loss::uncertainty_aware(x, m, 1.5), c10::Error);
}

TEST_F(Losses, EdgeTargetIsMaximumMinusMinimumOfTheNeighbourhood) {
  const Tensor m = hard_mask(2, 9, 11);
  for (const int64_t radius : {1, 2}) {
    const Tensor e = loss::edge_target(m, radius);
    for (int64_t n = 0; n < 2; ++n) {
      const Picture mask(m[n][0]), edge(e[n][0]);
      for (int64_t i = 0; i < mask.height; ++i)
        for (int64_t j = 0; j < mask.width; ++j) {
          double low = 1, high = 0;
          for (int64_t a = i - radius; a <= i + radius; ++a)
            for (int64_t b = j - radius; b <= j + radius; ++b)
              if (mask.inside(a, b)) low = std::min(low, mask.at(a, b)), high = std::max(high, mask.at(a, b));
          ASSERT_DOUBLE_EQ(edge.at(i, j), high - low);
        }
    }
  }
  EXPECT_EQ(loss::edge_target(at::ones({1, 1, 8, 8})).sum().item<double>(), 0);
}

TEST_F(Losses, EdgeAndDeepSupervisionAreSumsOverTheirMaps) {
  const Tensor m = hard_mask(2, 16, 16);
  const std::vector<Tensor> maps{random_logits(2, 4, 4), random_logits(2, 8, 8), random_logits(2, 16, 16)};
  const Tensor target = loss::edge_target(m);
  Tensor edges = at::zeros({2}, at::kDouble), sides = loss::bce(maps[2], m);
  for (std::size_t i = 0; i < 3; ++i)
    edges += std::vector<double>{0.125, 0.25, 0.5}[i] * loss::dice(layers::resize(maps[i], 16, 16), target);
  for (std::size_t i = 0; i < 2; ++i) sides += loss::bce(layers::resize(maps[i], 16, 16), m);
  EXPECT_TRUE(at::allclose(loss::edge(maps, m), edges, 1e-12, 1e-12));
  EXPECT_TRUE(at::allclose(loss::deep_supervision(maps[2], {maps[0], maps[1]}, m, loss::bce), sides, 1e-12, 1e-12));
  EXPECT_THROW(loss::edge(maps, m, {1.0}), c10::Error);
}

TEST_F(Losses, StayFiniteAtTheExtremes) {
  using Loss = std::function<Tensor(const Tensor&, const Tensor&)>;
  const std::vector<Loss> losses{
      [](const Tensor& x, const Tensor& m) { return loss::bce(x, m); },
      [](const Tensor& x, const Tensor& m) { return loss::iou(x, m); },
      [](const Tensor& x, const Tensor& m) { return loss::dice(x, m); },
      [](const Tensor& x, const Tensor& m) { return loss::structure(x, m); },
      [](const Tensor& x, const Tensor& m) { return loss::uncertainty_aware(x, m, 0.7); },
      [](const Tensor& x, const Tensor& m) { return loss::edge({x, x, x}, m); }};
  for (std::size_t k = 0; k < losses.size(); ++k)
    for (const double logit : {-1e4, -50.0, 0.0, 50.0, 1e4})
      for (const double mask : {0.0, 1.0}) {
        const Tensor x = at::full({2, 1, 12, 12}, logit, at::kFloat).set_requires_grad(true);
        const Tensor value = losses[k](x, at::full({2, 1, 12, 12}, mask, at::kFloat));
        value.sum().backward();
        EXPECT_TRUE(value.isfinite().all().item<bool>()) << "loss " << k << " at logit " << logit;
        EXPECT_TRUE(x.grad().isfinite().all().item<bool>()) << "loss " << k << " at logit " << logit;
        // Right and certain costs nothing.
        if (std::abs(logit) == 1e4 && (logit > 0) == (mask == 1.0) && k + 1 < losses.size()) {
          EXPECT_NEAR(value.abs().max().item<double>(), 0, 1e-6) << "loss " << k;
        }
      }
}

TEST_F(Losses, HalfPrecisionComputesInFloat) {
  const Tensor x = random_logits(2, 33, 33).to(at::kBFloat16), m = hard_mask(2, 33, 33).to(at::kFloat);
  for (const Tensor& value : {loss::structure(x, m), loss::uncertainty_aware(x, m, 0.5), loss::dice(x, m),
                              loss::deep_supervision(x, {x}, m, loss::bce)})
    EXPECT_EQ(value.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::allclose(loss::structure(x, m), loss::structure(x.to(at::kFloat), m)));
}

TEST_F(Losses, GradientsMatchFiniteDifferences) {
  const Tensor x = random_logits(2, 4, 5), m = soft_mask(2, 4, 5);
  EXPECT_LT(gradient_error([&](const Tensor& y) { return loss::bce(y, m); }, x), 1e-8);
  EXPECT_LT(gradient_error([&](const Tensor& y) { return loss::iou(y, m); }, x), 1e-8);
  EXPECT_LT(gradient_error([&](const Tensor& y) { return loss::dice(y, m); }, x), 1e-8);
  EXPECT_LT(gradient_error([&](const Tensor& y) { return loss::structure(y, m); }, x), 1e-8);
  EXPECT_LT(gradient_error([&](const Tensor& y) { return loss::uncertainty_aware(y, m, 0.4); }, x), 1e-8);
  EXPECT_LT(gradient_error([&](const Tensor& y) { return loss::edge({y, y, y}, m); }, x), 1e-8);
  const Tensor large = soft_mask(2, 8, 10);
  EXPECT_LT(gradient_error([&](const Tensor& y) { return loss::deep_supervision(y, {y}, large, loss::bce); }, x), 1e-8);
}

TEST_F(Losses, ErrorsNameTheArgumentAndItsShape) {
  const auto message = [](auto&& f) -> std::string {
    try {
      f();
    } catch (const c10::Error& e) {
      return e.what_without_backtrace();
    }
    return "no error";
  };
  EXPECT_THAT(message([] { loss::structure(at::zeros({2, 1, 4, 4}), at::zeros({2, 1, 4, 5})); }),
              testing::AllOf(testing::HasSubstr("structure"), testing::HasSubstr("target [2, 1, 4, 5]")));
  EXPECT_THAT(message([] { loss::bce(at::zeros({2, 3, 4, 4}), at::zeros({2, 3, 4, 4})); }),
              testing::AllOf(testing::HasSubstr("logits"), testing::HasSubstr("[2, 3, 4, 4]")));
  EXPECT_THAT(message([] { loss::dice(at::zeros({2, 1, 4, 4}), Tensor()); }), testing::HasSubstr("undefined"));
  EXPECT_THAT(message([] { loss::iou(at::zeros({2, 1, 4, 4}), at::zeros({2, 1, 4, 4}, at::kByte)); }),
              testing::HasSubstr("floating-point"));
}

class Adversarial : public Losses {
 protected:
  loss::ConfidenceDiscriminator judge{{.width = 8}};
  Tensor image = at::rand({2, 3, 24, 16}, at::kDouble), x = random_logits(2, 24, 16), m = hard_mask(2, 24, 16);
  void SetUp() override {
    Losses::SetUp();
    judge.to(at::kDouble);
  }
  bool judge_has_gradient() {
    for (const Tensor& p : judge.parameters())
      if (p.grad().defined()) return true;
    return false;
  }
};

TEST_F(Adversarial, DiscriminatorShapes) {
  EXPECT_EQ(judge.forward(image, m).sizes(), at::IntArrayRef({2, 1, 3, 2}));
  EXPECT_EQ(judge.parameters().size(), 10u);
  EXPECT_THROW(judge.forward(image, at::zeros({2, 1, 24, 8}, at::kDouble)), c10::Error);
}

TEST_F(Adversarial, DiscriminatorLossTrainsTheDiscriminatorOnly) {
  x.set_requires_grad(true);
  const Tensor value = loss::discriminator(judge, image, x, m);
  const Tensor fake = judge.forward(image, at::sigmoid(x)), real = judge.forward(image, m);
  const Tensor expected = 0.5 * (loss::bce(fake, at::zeros_like(fake)) + loss::bce(real, at::ones_like(real)));
  EXPECT_TRUE(at::allclose(value, expected));
  value.sum().backward();
  EXPECT_FALSE(x.grad().defined());
  for (const Tensor& p : judge.parameters()) {
    ASSERT_TRUE(p.grad().defined());
    EXPECT_GT(p.grad().abs().sum().item<double>(), 0);
  }
}

TEST_F(Adversarial, GeneratorTermReachesTheMapsOnly) {
  x.set_requires_grad(true);
  loss::generator(judge, image, x).sum().backward();
  ASSERT_TRUE(x.grad().defined());
  EXPECT_GT(x.grad().abs().sum().item<double>(), 0);
  EXPECT_FALSE(judge_has_gradient());
  for (const Tensor& p : judge.parameters()) EXPECT_TRUE(p.requires_grad());
  EXPECT_LT(gradient_error([&](const Tensor& y) { return loss::generator(judge, image, y); }, x, 41), 1e-8);
}

TEST_F(Adversarial, GeneratorLossFallsAlongItsGradient) {
  x.set_requires_grad(true);
  const Tensor before = loss::generator(judge, image, x).sum();
  before.backward();
  const Tensor after = loss::generator(judge, image, x.detach() - 0.1 * x.grad()).sum();
  EXPECT_LT(after.item<double>(), before.item<double>());
}

}  // namespace
