// An ablation: the same block under three balancing policies, each a line.
#include <moecod/expert/mlp.hpp>
#include <moecod/moe/balance/loss_free.hpp>
#include <moecod/moe/balance/none.hpp>
#include <moecod/moe/balance/switch.hpp>
#include <moecod/moe/dispatch/grouped.hpp>
#include <moecod/moe/experts/replicated.hpp>
#include <moecod/moe/mixture.hpp>
#include <moecod/moe/monitor.hpp>
#include <moecod/moe/router/position.hpp>
#include <moecod/moe/select/top_k.hpp>
#include <moecod/moe/swap.hpp>
#include <torch/torch.h>

#include <cstdio>

using namespace moecod;

using Block = Mixture<router::Position, Replicated<expert::Mlp<>, 8>, select::TopK<2>, balance::LossFree,
                      dispatch::Grouped>;

template <class Model>
void train(const char* name) {
  torch::manual_seed(0);
  typename Model::Options options;
  options.router.channels = options.experts.channels = 16;
  if constexpr (requires { options.balance.rate = 0.01; }) options.balance.rate = 0.01;      // of a bias
  if constexpr (requires { options.balance.weight = 0.3; }) options.balance.weight = 0.3;    // of an auxiliary loss
  Model block(options);
  torch::optim::Adam optimizer(block.parameters(), 3e-3);
  Monitor monitor;
  for (int step = 0; step < 400; ++step) {
    const at::Tensor x = torch::randn({256, 16}) + 0.7;                // off centre, so that the router prefers some
    const auto out = block.forward(x);
    at::Tensor loss = (out.y - x.roll(1, 1).relu()).square().mean();
    if constexpr (requires { out.auxiliary_loss; }) loss = loss + out.auxiliary_loss;   // if the policy has one
    optimizer.zero_grad();
    loss.backward();
    balance::commit(block);                                            // nothing to do for a policy that does not count
    optimizer.step();
    if (step >= 350) monitor.observe(out.routing);
  }
  const Monitor::Report report = monitor.report();
  std::printf("%-9s MaxVio %.1f (chance: %.1f), experts without rows: %zu\n", name, report.max_violation,
              report.noise_floor, report.dead.size());
}

int main() {
  train<swap_t<Block, balance::None>>("None");
  train<swap_t<Block, balance::Switch>>("Switch");
  train<Block>("LossFree");
}
