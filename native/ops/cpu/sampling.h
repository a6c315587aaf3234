// Drawing a token on the host (Sampling in pipelora/ops/ops.h).
#pragma once

#include <cstdint>

#include "pipelora/ops/ops.h"

namespace pipelora::cpu {

std::int32_t sample(const Sampling& call);

}  // namespace pipelora::cpu
