#include "pipelora/model/frozen_layers.h"

namespace pipelora {

std::string layer_name(const LayerSpec& spec) {
  if (const auto* block = std::get_if<BlockSpec>(&spec)) return "block " + std::to_string(block->index);
  if (std::holds_alternative<EmbeddingSpec>(spec)) return "embedding";
  return std::holds_alternative<NormSpec>(spec) ? "norm" : "head";
}

void FrozenLayers::keep(const std::map<std::string, Wanted>& wanted) {
  std::erase_if(layers, [&](const auto& entry) { return !wanted.contains(entry.first); });
  // What is given back makes room for what is added.
  for (const bool expanded : {false, true})
    for (auto& [name, weights] : layers)
      if (wanted.at(name).expanded == expanded) weights.keep_expanded(expanded);
}

std::size_t FrozenLayers::bytes() const {
  std::size_t sum = 0;
  for (const auto& [name, weights] : layers) sum += weights.bytes();
  return sum;
}

}  // namespace pipelora
