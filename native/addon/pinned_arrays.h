// JavaScript's arrays while another thread reads or writes them.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "pipelora/ops/ops.h"

namespace pipelora::addon {

/// Holds every array by itself: the list that they came in may change, or be gone. Made, asked and dropped on JavaScript's thread.
class PinnedArrays {
 public:
  /// Of an array of Uint8Arrays.
  static std::shared_ptr<PinnedArrays> of(const Napi::Value& list, const char* what);

  const std::vector<HostSpan>& spans() const { return spans_; }
  /// Throws PL_TENSOR_MISMATCH if an array's memory was transferred away or resized: its bytes can't be trusted then.
  void expect_in_place() const;

 private:
  const char* what_ = "";
  std::vector<HostSpan> spans_;
  std::vector<Napi::Reference<Napi::Uint8Array>> arrays_;
};

}  // namespace pipelora::addon
