// An expert of your own. Written over `Layers`, the same source makes one expert or many stacked ones, which
// dispatch::Grouped runs together.
// (The library's own expert::SwiGlu is this one with kernels for its activation.)
#include <moecod/layers/linear.hpp>
#include <moecod/moe/balance/none.hpp>
#include <moecod/moe/dispatch/batched.hpp>
#include <moecod/moe/dispatch/grouped.hpp>
#include <moecod/moe/experts/replicated.hpp>
#include <moecod/moe/mixture.hpp>
#include <moecod/moe/router/position.hpp>
#include <moecod/moe/select/top_k.hpp>
#include <moecod/moe/swap.hpp>
#include <torch/torch.h>

#include <cstdio>

using namespace moecod;

struct SwiGluOptions {    // outside the template, so that it is one type for every Layers
  int64_t channels = 64;  // set by models that know it
  int64_t hidden = 128;
};

/// y = W3 (silu(W1 x) * W2 x), at every position on its own.
template <class Layers = layers::Single>
class SwiGlu : public torch::nn::Module {
 public:
  using rows = rows::Positions;            // what it takes: positions, or rows::Images for whole maps
  template <class L>
  using rebind = SwiGlu<L>;                // how to make it for other Layers
  using Options = SwiGluOptions;

  explicit SwiGlu(const Options& o = {}, Layers layers = {}) {
    gate_ = register_module("gate", std::make_shared<layers::Linear<Layers>>(o.channels, o.hidden, false, layers));
    up_ = register_module("up", std::make_shared<layers::Linear<Layers>>(o.channels, o.hidden, false, layers));
    down_ = register_module("down", std::make_shared<layers::Linear<Layers>>(o.hidden, o.channels, false, layers));
  }

  // The group says which rows are whose; pass it on to every layer.
  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    return down_->forward(at::silu(gate_->forward(x, group)) * up_->forward(x, group), group);
  }

 private:
  std::shared_ptr<layers::Linear<Layers>> gate_, up_, down_;
};

using Block = Mixture<router::Position, Replicated<SwiGlu<>, 8>, select::TopK<2>, balance::None, dispatch::Grouped>;

template <class Model>
at::Tensor answer(const at::Tensor& x) {
  torch::manual_seed(1);
  typename Model::Options options;
  options.router.channels = options.experts.channels = 32;
  Model model(options);
  return model.forward(x).y;
}

int main() {
  torch::manual_seed(0);
  const at::Tensor x = torch::randn({4, 32, 8, 8});           // maps: every position is a row
  const at::Tensor grouped = answer<Block>(x);
  const at::Tensor batched = answer<swap_t<Block, dispatch::Batched>>(x);
  std::printf("in %lld x %lld x %lld x %lld, out the same: %s\n", static_cast<long long>(x.size(0)),
              static_cast<long long>(x.size(1)), static_cast<long long>(x.size(2)), static_cast<long long>(x.size(3)),
              grouped.sizes() == x.sizes() ? "yes" : "no");
  std::printf("Grouped and Batched agree: %s\n", at::allclose(grouped, batched, 1e-4, 1e-5) ? "yes" : "no");
}
