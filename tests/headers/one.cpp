// The first of two objects that include every public header: a function that is not inline would be defined twice.
#include "everything.hpp"

const void* seen_by_one() { return &moecod::recomputing(); }
double (*function_of_one())(const std::vector<int64_t>&) { return &moecod::max_violation; }
