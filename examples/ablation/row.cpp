// One row of the ablation; compiled once for every row, with MOECOD_ABLATION_ROW set to its index.

#include "examples/ablation/row.hpp"

#include <iterator>

#include "examples/ablation/rows.hpp"
#include "examples/ablation/settings.hpp"

namespace moecod::examples::ablation {

template <class Model>
std::unique_ptr<AnyFeatureModel> make_model(int64_t head_width) {
  typename Model::Options options;
  options.head.width = head_width;
  settle(options.mixture.balance);
  return std::make_unique<ErasedFeatureModel<Model>>(options);
}

template <std::size_t I>
RowEntry make_row() {
  using Row = row_t<I>;
  const std::vector<std::string> others = hana::unpack(base, [](auto... choice) {
    return std::vector<std::string>{std::string(decltype(choice)::type::name)...};
  });
  return {std::string(Row::table::name), {std::begin(Row::names), std::end(Row::names)}, others,
          &make_model<typename Row::model>};
}

template RowEntry make_row<MOECOD_ABLATION_ROW>();

}  // namespace moecod::examples::ablation
