// Frozen weights of layers that outlive the engine that loaded them, on the device where they are.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "pipelora/model/base_weights.h"
#include "pipelora/model/spec.h"

namespace pipelora {

/// Names a layer of a model: "embedding", "block 3", "norm", "head".
std::string layer_name(const LayerSpec& spec);

/// The frozen weights of whole layers, by layer_name().
using HeldLayers = std::map<std::string, BaseWeights>;

/// What Engine::release() leaves. Freed with this.
struct FrozenLayers {
  std::unique_ptr<Ops> ops;  // their device; they end before it
  HeldLayers layers;

  /// Frees all but these; `expanded`: whether products' form is kept beside the layer's quantised weights.
  struct Wanted {
    bool expanded = false;
  };
  void keep(const std::map<std::string, Wanted>& wanted);
  std::size_t bytes() const;
};

}  // namespace pipelora
