// The second object; both must see one and the same of every inline variable and function.
#include "everything.hpp"

const void* seen_by_one();
double (*function_of_one())(const std::vector<int64_t>&);

int main() {
  const bool one_variable = seen_by_one() == &moecod::recomputing();
  const bool one_function = function_of_one() == &moecod::max_violation;
  return one_variable && one_function ? 0 : 1;
}
