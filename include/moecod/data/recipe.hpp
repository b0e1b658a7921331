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
/// radius, for which it gets a little more contrast. The contrast falls with the cube of what is shown, so that the
/// lower third of the scale is for small networks and short training.
inline Recipe recipe_for(Regime regime, float difficulty, int64_t size, float radius) {
  const float shown = 1.0F - difficulty;
  const float vivid = shown * shown * shown;
  const float sharp = 0.7F * static_cast<float>(size) / 96.0F;
  switch (regime) {
    case Regime::Clear: return {0.4F * difficulty, 25.0F + 60.0F * vivid, 0.3F * shown, sharp, 1.0F};
    case Regime::Ambiguous: return {difficulty, 78.0F * vivid, 0.3F * shown, sharp + 0.18F * radius, 0.9F};
    default: return {difficulty, 60.0F * vivid, 0.26F * shown, sharp, 1.0F};
  }
}

}  // namespace moecod::data
