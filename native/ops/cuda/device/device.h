// One GPU as the engine's thread uses it: a stream, device memory, pinned memory that transfers pass through.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <memory>

#include "pipelora/ops/ops.h"
#include "pipelora/core/parallel.h"

namespace pipelora::cuda {

/// Makes a GPU the calling thread's. Everything that sets one does it here: what a thread has is remembered.
void use_device(int index);

class Memory final : public DeviceMemory {
 public:
  /// Throws PL_OUT_OF_MEMORY with what is free.
  Memory(int device, const char* what, std::size_t bytes);
  ~Memory() override;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data() const override { return data_; }
  std::size_t bytes() const override { return bytes_; }

 private:
  int device_;
  void* data_ = nullptr;
  std::size_t bytes_;
};

/// Pinned memory of the host: kernels read it in place, transfers run beside kernels.
class HostMemory final : public DeviceMemory {
 public:
  /// Throws PL_OUT_OF_MEMORY.
  HostMemory(int device, const char* what, std::size_t bytes);
  ~HostMemory() override;
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  void* data() const override { return data_; }
  std::size_t bytes() const override { return bytes_; }
  bool on_host() const override { return true; }

 private:
  int device_;
  void* data_ = nullptr;
  std::size_t bytes_;
};

class Device {
 public:
  explicit Device(int index);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  int index() const { return index_; }
  /// Makes the GPU this thread's and gives the stream that everything runs on.
  cudaStream_t stream();

  std::unique_ptr<Memory> allocate(const char* what, std::size_t bytes);

  /// rows x row_bytes, dense on the host, `pitch` bytes from row to row on the device (or in pinned memory). The host's bytes
  /// are read before the call returns; the device's arrive in stream order.
  void upload(void* to, std::size_t pitch, const void* host, std::size_t row_bytes, std::size_t rows);
  /// Waits for the stream.
  void download(const void* from, std::size_t pitch, void* host, std::size_t row_bytes, std::size_t rows);
  void finish();

  DeviceUse use();
  void remember_free(std::size_t bytes) { free_before_ = bytes; }

 private:
  static constexpr std::size_t kSlots = 4, kSlotBytes = std::size_t{16} << 20;

  /// Up to `wanted` bytes of pinned memory that no transfer uses; what was handed out before stays untouched.
  char* reserve(std::size_t wanted, std::size_t& got);
  void fill(char* to, const char* from, std::size_t bytes);

  int index_;
  std::size_t free_before_ = 0;  // 0: unknown
  cudaStream_t stream_ = nullptr;
  char* pinned_ = nullptr;
  std::array<cudaEvent_t, kSlots> slot_done_{};
  std::size_t slot_ = 0, slot_used_ = 0;
  ThreadPool copiers_;
};

}  // namespace pipelora::cuda
