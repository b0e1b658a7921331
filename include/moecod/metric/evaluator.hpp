#pragma once

#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <vector>

#include <moecod/metric/accumulator.hpp>
#include <moecod/metric/ber.hpp>
#include <moecod/metric/context_measure.hpp>
#include <moecod/metric/dice.hpp>
#include <moecod/metric/e_measure.hpp>
#include <moecod/metric/f_measure.hpp>
#include <moecod/metric/fpr.hpp>
#include <moecod/metric/human_correction_effort.hpp>
#include <moecod/metric/image_statistics.hpp>
#include <moecod/metric/iou.hpp>
#include <moecod/metric/kappa.hpp>
#include <moecod/metric/mae.hpp>
#include <moecod/metric/map_pair.hpp>
#include <moecod/metric/multi_scale_iou.hpp>
#include <moecod/metric/overall_accuracy.hpp>
#include <moecod/metric/precision.hpp>
#include <moecod/metric/recall.hpp>
#include <moecod/metric/s_measure.hpp>
#include <moecod/metric/si_mae.hpp>
#include <moecod/metric/size_invariant.hpp>
#include <moecod/metric/specificity.hpp>
#include <moecod/metric/weighted_f_measure.hpp>

namespace moecod::metric {

/// Several metrics over a data set; the work they share is done once per image.
///
///   BasicEvaluator<Average<SMeasure>, Thresholded<Iou>> evaluator;
///   for (...) evaluator.add({prediction, truth, height, width});
///   for (const auto& [name, value] : evaluator.results()) ...
///
/// Threads: give each its own evaluator and merge them at the end; the results are the same to the bit for any number
/// of threads, any split and any order (see ExactMean). results() come in the order of the template arguments.
/// Errors: std::invalid_argument for a bad pair, and then nothing was counted; std::logic_error for results() of
/// no image.
template <accumulator... Accumulators>
class BasicEvaluator {
 public:
  void add(const MapPair& pair) { add(ImageStatistics(pair)); }

  void add(const ImageStatistics& image) {
    (std::get<Accumulators>(accumulators_).add(image), ...);
    ++images_;
  }

  void merge(const BasicEvaluator& other) {
    (std::get<Accumulators>(accumulators_).merge(std::get<Accumulators>(other.accumulators_)), ...);
    images_ += other.images_;
  }

  int64_t images() const { return images_; }

  std::vector<NamedValue> results() const {
    if (images_ == 0) {
      throw std::logic_error("Evaluator::results: no image was added");
    }
    std::vector<NamedValue> out;
    (std::get<Accumulators>(accumulators_).results(out), ...);
    return out;
  }

  /// One accumulator by its type, for example to read the curve of Thresholded<FMeasure>.
  template <class Accumulator>
  const Accumulator& get() const {
    return std::get<Accumulator>(accumulators_);
  }

 private:
  std::tuple<Accumulators...> accumulators_;
  int64_t images_ = 0;
};

/// The metrics that papers on camouflaged objects report, as PySODMetrics 1.6.2 computes them.
using Evaluator = BasicEvaluator<Average<SMeasure>,         //
                                 Thresholded<EMeasure>,     //
                                 Thresholded<FMeasure>,     //
                                 Average<WeightedFMeasure>, //
                                 Average<Mae>,              //
                                 Thresholded<Iou>,          //
                                 Thresholded<Dice>,         //
                                 Thresholded<Ber>>;

/// Its other functions of the counts, and all of them over the counts of a whole data set.
using CountsEvaluator = BasicEvaluator<Binary<FMeasure>,             //
                                       Thresholded<Precision>,       //
                                       Thresholded<Recall>,          //
                                       Thresholded<Specificity>,     //
                                       Thresholded<Fpr>,             //
                                       Thresholded<OverallAccuracy>, //
                                       Thresholded<Kappa>,           //
                                       Overall<FMeasure, Iou, Dice, Ber, Precision, Recall, Specificity, Fpr,
                                               OverallAccuracy, Kappa>>;

/// Its size-invariant variants.
using SizeInvariantEvaluator = BasicEvaluator<Average<SiMae>,  //
                                              SizeInvariant<FMeasure, Iou, Dice, Ber, Precision, Recall, Specificity,
                                                            Fpr, OverallAccuracy, Kappa>>;

/// Its scores of outlines and of neighbourhoods. CamouflageContextMeasure stands alone: it reads the image too.
using MultiScaleIouEvaluator = BasicEvaluator<MultiScaleIou>;
using HumanCorrectionEffortEvaluator = BasicEvaluator<Average<HumanCorrectionEffort>>;
using ContextEvaluator = BasicEvaluator<Average<ContextMeasure>>;

}  // namespace moecod::metric
