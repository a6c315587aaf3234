// Errors that cross the boundary: each carries a code of the catalogue (src/common/errors.ts).
#pragma once

#include <stdexcept>
#include <string>

namespace pipelora {

class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}
  const char* code() const { return code_; }

 private:
  const char* code_;
};

inline constexpr const char* kOutOfMemory = "PL_OUT_OF_MEMORY";
inline constexpr const char* kLossNotFinite = "PL_LOSS_NOT_FINITE";
inline constexpr const char* kTensorMismatch = "PL_TENSOR_MISMATCH";
inline constexpr const char* kCheckpointInvalid = "PL_CHECKPOINT_INVALID";
inline constexpr const char* kQuantizationInvalid = "PL_QUANTIZATION_INVALID";
inline constexpr const char* kDeviceUnavailable = "PL_DEVICE_UNAVAILABLE";
inline constexpr const char* kEngineFailed = "PL_ENGINE_FAILED";
inline constexpr const char* kLinkFailed = "PL_LINK_FAILED";

}  // namespace pipelora
