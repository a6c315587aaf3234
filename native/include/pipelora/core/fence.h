// A place in a device's queue of work, for whoever shares memory with it: links.
#pragma once

namespace pipelora {

class Fence {
 public:
  virtual ~Fence() = default;
  /// Whether the device has come past it; from any thread. Throws PL_ENGINE_FAILED if the device failed.
  virtual bool passed() const = 0;
};

}  // namespace pipelora
