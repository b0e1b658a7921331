// Routing every position of a map on its own: through position experts in one go, or through spatial experts whose
// maps are weighted position by position.
#include <moecod/expert/mlp.hpp>
#include <moecod/expert/texture.hpp>
#include <moecod/model/mac_counter.hpp>
#include <moecod/moe/balance/loss_free.hpp>
#include <moecod/moe/dispatch/grouped.hpp>
#include <moecod/moe/dispatch/masked.hpp>
#include <moecod/moe/experts/replicated.hpp>
#include <moecod/moe/mixture.hpp>
#include <moecod/moe/router/position.hpp>
#include <moecod/moe/select/top_k.hpp>
#include <torch/torch.h>

#include <cstdio>

using namespace moecod;

// Experts that look at one position: each position runs through its two experts only.
using Pointwise = Mixture<router::Position, Replicated<expert::Mlp<>, 4>, select::TopK<2>, balance::LossFree,
                          dispatch::Grouped>;
// Experts that look around: every expert runs on every map, the gate picks at each position. Other dispatchers for this
// pair are compile errors, since an expert cannot convolve single positions.
using Spatial = Mixture<router::Position, Replicated<expert::Texture<>, 4>, select::TopK<2>, balance::LossFree,
                        dispatch::Masked>;

template <class Block>
void show(const char* name) {
  torch::manual_seed(0);
  typename Block::Options options;
  options.router.channels = options.experts.channels = 16;
  Block block(options);
  block.eval();
  torch::NoGradGuard no_grad;
  const MacCounter counter;
  const auto out = block.forward(torch::randn({2, 16, 6, 6}));
  const at::Tensor first = out.routing.first_choice().view({2, 6, 6});     // which expert says most, where
  std::printf("%s: %lld positions, %lld assignments, %lld multiply-adds, a map of experts of %lld x %lld\n", name,
              static_cast<long long>(out.routing.rows()), static_cast<long long>(out.routing.assignments),
              static_cast<long long>(counter.total()), static_cast<long long>(first.size(1)),
              static_cast<long long>(first.size(2)));
}

int main() {
  show<Pointwise>("pointwise");
  show<Spatial>("spatial");
}
