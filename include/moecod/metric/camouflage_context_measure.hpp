#pragma once

#include <cstdint>
#include <stdexcept>

#include <moecod/metric/camouflage_degree.hpp>
#include <moecod/metric/context_measure.hpp>

namespace moecod::metric {

/// Camouflage context measure: the context measure with b = 1.2 and c the degree of camouflage of each pixel (see
/// camouflage_degree.hpp), so that the well hidden parts of an object weigh up to twice as much.
///
/// rgb: the image, [height, width, 3], RGB, of the maps' size. Range [0, 1], 1 is best.
/// Errors: std::invalid_argument for a null image.
/// Source: Wang et al. 2025, Context-measure, arXiv 2512.07076; PySODMetrics, CamouflageContextMeasure.
struct CamouflageContextMeasure {
  static constexpr const char* name = "ccm";

  static double of(const ImageStatistics& image, const uint8_t* rgb) {
    if (rgb == nullptr) {
      throw std::invalid_argument("CamouflageContextMeasure.rgb: expected an image, got a null pointer");
    }
    return ContextMeasure::of(image, 1.2, CamouflageDegree::of(image.pair(), rgb));
  }
};

}  // namespace moecod::metric
