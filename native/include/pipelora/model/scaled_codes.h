// Weights that a checkpoint stores in e4m3 with scales beside them.
#pragma once

#include <string>
#include <vector>

#include "pipelora/core/half.h"
#include "pipelora/core/mapped_file.h"
#include "pipelora/model/spec.h"

namespace pipelora {

/// The matrix that `source`, whose codes are in `file`, stands for: code times scale, rounded once. Throws PL_CHECKPOINT_INVALID where a file
/// is too short, PL_QUANTIZATION_INVALID where the scales are not as many as there are blocks; both name `name`.
std::vector<bf16> expand_codes(const std::string& name, const MappedFile& file, const TensorSource& source);

}  // namespace pipelora
