// expect: select::TopK<1> with a gate that renormalises gives every weight 1
#include "moecod/moe/select/top_k.hpp"
constexpr auto n = sizeof(moecod::select::TopK<1, moecod::gate::Sigmoid>);
