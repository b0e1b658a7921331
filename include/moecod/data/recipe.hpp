#pragma once

#include <cstdint>

#include "moecod/data/sample.hpp"

namespace moecod::data {

/// How strongly the object of a generated picture is hidden, and by what it can be found.
struct Recipe {
  float match;     // colours moved towards the surroundings, 0..1
  float contrast;  // least difference of mean brightness from the surroundings, grey levels
  float shading;   // amplitude of the body's shading, 0..1
  float edge;      // half width of the blended boundary, pixels
  float opacity;   // of the object's inside, 0..1
};

/// The recipe of a regime at a difficulty in 0..1, for an object of `radius` pixels in a picture of `size` pixels.
///
/// At difficulty 0 nothing is matched; at 1 everything is, and neither contrast nor shading is left. A clear object is
/// matched less and keeps some contrast at any difficulty; an ambiguous one has a boundary as wide as a third of its
/// radius, for which it gets a little more contrast.
inline Recipe recipe_for(Regime regime, float difficulty, int64_t size, float radius) {
  const float shown = 1.0F - difficulty;
  const float sharp = 0.7F * static_cast<float>(size) / 96.0F;
  switch (regime) {
    case Regime::Clear: return {0.4F * difficulty, 55.0F * (1.0F - 0.6F * difficulty), 0.3F * shown, sharp, 1.0F};
    case Regime::Ambiguous: return {difficulty, 40.0F * shown, 0.3F * shown, sharp + 0.18F * radius, 0.9F};
    default: return {difficulty, 26.0F * shown, 0.26F * shown, sharp, 1.0F};
  }
}

}  // namespace moecod::data
