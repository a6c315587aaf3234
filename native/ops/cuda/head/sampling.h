// Drawing a token on the GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cuda/device/device.h"
#include "pipelora/ops/ops.h"

namespace pipelora::cuda {

/// Bytes of scratch that sample() needs for so many logits.
std::size_t sampling_bytes(std::int64_t vocab);
/// Ids of call.seen are at most as many as there are logits. Waits for the token.
std::int32_t sample(const Sampling& call, Device& device, void* scratch);

}  // namespace pipelora::cuda
