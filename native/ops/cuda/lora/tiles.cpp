// The rows that a product's LoRA pairs bring, eight at a time.
#include <algorithm>

#include "ops/cuda/lora/lora.h"
#include "pipelora/core/rng.h"

namespace pipelora::cuda {

std::vector<LoraTile> forward_tiles(const LoraSet& lora, std::int64_t in) {
  std::vector<LoraTile> tiles;
  for (const LoraView& pair : lora.pairs) {
    const bool drops = lora.dropout != nullptr && pair.dropout > 0;
    for (std::int64_t r = 0; r < pair.a.rows; r += 8) {
      LoraTile tile;
      tile.rows = pair.a.as<float>() + r * pair.a.stride;
      tile.stride = pair.a.stride;
      tile.columns = in;
      tile.rank = static_cast<int>(std::min<std::int64_t>(8, pair.a.rows - r));
      tile.inner_column = static_cast<int>(pair.first_inner + r);
      tile.factor = drops ? 1.0f / (1.0f - pair.dropout) : 1.0f;
      tile.tail_factor = pair.scale;
      tile.module = pair.module_id;
      tile.threshold = dropout_threshold(pair.dropout);
      tile.masked = drops;
      tile.same_mask = r > 0;
      tile.rounded = pair.a.rows > 8;
      tiles.push_back(tile);
    }
  }
  return tiles;
}

std::vector<LoraTile> backward_tiles(const LoraSet& lora) {
  std::vector<LoraTile> tiles;
  for (const LoraView& pair : lora.pairs) {
    for (std::int64_t r = 0; r < pair.bt.rows; r += 8) {
      LoraTile tile;
      tile.rows = pair.bt.as<float>() + r * pair.bt.stride;
      tile.stride = pair.bt.stride;
      tile.first_column = pair.first_column;
      tile.columns = pair.bt.cols;
      tile.rank = static_cast<int>(std::min<std::int64_t>(8, pair.bt.rows - r));
      tile.inner_column = static_cast<int>(pair.first_inner + r);
      tile.factor = pair.scale;
      tile.same_mask = false;
      tiles.push_back(tile);
    }
  }
  return tiles;
}

}  // namespace pipelora::cuda
