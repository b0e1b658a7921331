// A mixture of four small perceptrons learns a function that is a different line in each quarter of its range.
#include <moecod/expert/mlp.hpp>
#include <moecod/moe/balance/loss_free.hpp>
#include <moecod/moe/dispatch/grouped.hpp>
#include <moecod/moe/experts/replicated.hpp>
#include <moecod/moe/mixture.hpp>
#include <moecod/moe/router/position.hpp>
#include <moecod/moe/select/top_k.hpp>
#include <torch/torch.h>

#include <cstdio>

using namespace moecod;

// Router, experts, selection, balancing, dispatch: the five policies of the block.
using Block = Mixture<router::Position, Replicated<expert::Mlp<>, 4>, select::TopK<2>, balance::LossFree,
                      dispatch::Grouped>;

int main() {
  torch::manual_seed(0);
  Block::Options options;
  options.router.channels = 1;
  options.router.reduction = 1;
  options.experts.channels = 1;
  options.experts.hidden = 16;
  Block block(options);
  torch::optim::Adam optimizer(block.parameters(), 0.02);

  double first_loss = 0, last_loss = 0, largest_share = 0;
  for (int step = 0; step <= 600; ++step) {
    const at::Tensor x = 4 * torch::rand({256, 1});          // N rows of one feature
    const at::Tensor y = (x - x.floor()) * (1 - 2 * x.floor().remainder(2));
    const auto out = block.forward(x);                        // route, run, combine
    const at::Tensor loss = (out.y - y).square().mean();
    optimizer.zero_grad();
    loss.backward();
    balance::commit(block);                                   // the bias follows the load, once per optimizer step
    optimizer.step();
    if (step % 200 == 0) {
      const at::Tensor share = out.routing.counts.to(torch::kFloat) / double(out.routing.assignments);
      last_loss = loss.item<double>();
      if (step == 0) first_loss = last_loss;
      largest_share = share.max().item<double>();
      std::printf("step %d: loss %.3f, largest share of an expert %.2f\n", step, last_loss, largest_share);
    }
  }
  std::printf("the loss fell to less than a fifth: %s\n", last_loss < first_loss / 5 ? "yes" : "no");
  std::printf("no expert has more than a third of the work: %s\n", largest_share < 1.0 / 3 ? "yes" : "no");
}
