// expect: swap_t<Model, Policy>: the model has no slot of the policy's kind
#include "moecod/moe/swap.hpp"

#include "moecod/moe/select/top_k.hpp"
template <class... Slots>
struct Model {};
using Swapped = moecod::swap_t<Model<int, Model<double>>, moecod::select::TopK<2>>;
constexpr auto n = sizeof(Swapped);
