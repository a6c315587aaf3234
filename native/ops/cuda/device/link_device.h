#pragma once

#include <memory>

#include "comm/link_device.h"

namespace pipelora {

/// A stream of its own on GPU `device`, and memory from the driver's pool. Throws PL_DEVICE_UNAVAILABLE.
std::unique_ptr<comm::LinkDevice> make_cuda_link_device(int device);

}  // namespace pipelora
