#include "ops/cuda/device/device.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>

#include "ops/cuda/device/check.h"

namespace pipelora::cuda {

namespace {

thread_local int current_device = -1;

/// By device number.
std::array<std::atomic<std::size_t>, 64> allocated_bytes{};
std::atomic<std::size_t>& allocated_on(int device) { return allocated_bytes[static_cast<std::size_t>(device) % allocated_bytes.size()]; }

[[noreturn]] void no_host_room(const char* what, std::size_t bytes, const char* why) {
  throw Error(kOutOfMemory, std::string("the host has no room for ") + what + ": " + std::to_string(bytes) +
                                " bytes of pinned memory wanted, " + why);
}

int copier_threads() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 2, 1, 6); }

}  // namespace

void use_device(int index) {
  if (current_device == index) return;
  check(cudaSetDevice(index), "cudaSetDevice");
  current_device = index;
}

Memory::Memory(int device, const char* what, std::size_t bytes) : device_(device), bytes_(bytes) {
  use_device(device);
  if (bytes == 0) return;
  const cudaError_t status = cudaMalloc(&data_, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw Error(kOutOfMemory, std::string("cuda:") + std::to_string(device) + " has no room for " + what + ": " +
                                  std::to_string(bytes) + " bytes wanted, " + std::to_string(free) + " of " +
                                  std::to_string(total) + " free");
  }
  check(status, what);
  allocated_on(device) += bytes;
}

Memory::~Memory() {
  if (data_ == nullptr) return;
  allocated_on(device_) -= bytes_;
  cudaSetDevice(device_);
  current_device = device_;
  cudaFree(data_);
}

HostMemory::HostMemory(int device, const char* what, std::size_t bytes) : device_(device), bytes_(bytes) {
  use_device(device);
  if (bytes == 0) return;
  // Pages that are there already, and large, are pinned several times as fast.
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) no_host_room(what, bytes, "the system gives no address space");
  madvise(data, bytes, MADV_HUGEPAGE);
  constexpr std::size_t kPiece = std::size_t{64} << 20;
  ThreadPool threads(copier_threads());
  threads.run(static_cast<std::int64_t>((bytes + kPiece - 1) / kPiece), [&](std::int64_t task, int) {
    const std::size_t first = static_cast<std::size_t>(task) * kPiece;
    std::memset(static_cast<char*>(data) + first, 0, std::min(kPiece, bytes - first));
  });
  if (const cudaError_t status = cudaHostRegister(data, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable); status != cudaSuccess) {
    cudaGetLastError();
    munmap(data, bytes);
    no_host_room(what, bytes, cudaGetErrorString(status));
  }
  data_ = data;
}

HostMemory::~HostMemory() {
  if (data_ == nullptr) return;
  cudaSetDevice(device_);
  current_device = device_;
  cudaHostUnregister(data_);
  munmap(data_, bytes_);
}

Device::Device(int index) : index_(index), copiers_(copier_threads()) {
  use_device(index);
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest), "cudaStreamCreate");
  check(cudaHostAlloc(reinterpret_cast<void**>(&pinned_), kSlots * kSlotBytes, cudaHostAllocDefault), "pinned memory for transfers");
  for (cudaEvent_t& event : slot_done_) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
}

Device::~Device() {
  cudaSetDevice(index_);
  current_device = index_;
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (cudaEvent_t event : slot_done_)
    if (event != nullptr) cudaEventDestroy(event);
  if (pinned_ != nullptr) cudaFreeHost(pinned_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

cudaStream_t Device::stream() {
  use_device(index_);
  return stream_;
}

std::unique_ptr<Memory> Device::allocate(const char* what, std::size_t bytes) {
  return std::make_unique<Memory>(index_, what, bytes);
}

char* Device::reserve(std::size_t wanted, std::size_t& got) {
  constexpr std::size_t kAlign = 256;
  const std::size_t left = kSlotBytes - slot_used_;
  if (left < std::min(wanted, kSlotBytes)) {
    check(cudaEventRecord(slot_done_[slot_], stream()), "cudaEventRecord");
    slot_ = (slot_ + 1) % kSlots;
    slot_used_ = 0;
    check(cudaEventSynchronize(slot_done_[slot_]), "waiting for a transfer");
  }
  got = std::min(wanted, kSlotBytes - slot_used_);
  char* at = pinned_ + slot_ * kSlotBytes + slot_used_;
  slot_used_ = std::min(kSlotBytes, slot_used_ + (got + kAlign - 1) / kAlign * kAlign);
  return at;
}

void Device::fill(char* to, const char* from, std::size_t bytes) {
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  if (bytes < 4 * kPiece || copiers_.threads() == 1) {
    std::memcpy(to, from, bytes);
    return;
  }
  copiers_.run(static_cast<std::int64_t>((bytes + kPiece - 1) / kPiece), [&](std::int64_t task, int) {
    const std::size_t first = static_cast<std::size_t>(task) * kPiece;
    std::memcpy(to + first, from + first, std::min(kPiece, bytes - first));
  });
}

void Device::upload(void* to, std::size_t pitch, const void* host, std::size_t row_bytes, std::size_t rows) {
  if (rows == 0 || row_bytes == 0) return;
  cudaStream_t on = stream();
  if (pitch == row_bytes) {
    row_bytes *= rows;
    pitch = row_bytes;
    rows = 1;
  }
  const char* from = static_cast<const char*>(host);
  char* target = static_cast<char*>(to);
  if (rows == 1) {
    for (std::size_t done = 0; done < row_bytes;) {
      std::size_t got = 0;
      char* at = reserve(row_bytes - done, got);
      fill(at, from + done, got);
      check(cudaMemcpyAsync(target + done, at, got, cudaMemcpyDefault, on), "upload");
      done += got;
    }
    return;
  }
  if (row_bytes > kSlotBytes) {
    for (std::size_t r = 0; r < rows; ++r) upload(target + r * pitch, row_bytes, from + r * row_bytes, row_bytes, 1);
    return;
  }
  for (std::size_t done = 0; done < rows;) {
    const std::size_t count = std::min(rows - done, std::max<std::size_t>(1, kSlotBytes / row_bytes));
    std::size_t got = 0;
    char* at = reserve(count * row_bytes, got);
    const std::size_t whole = got / row_bytes;
    fill(at, from + done * row_bytes, whole * row_bytes);
    check(cudaMemcpy2DAsync(target + done * pitch, pitch, at, row_bytes, row_bytes, whole, cudaMemcpyDefault, on), "upload");
    done += whole;
  }
}

void Device::download(const void* from, std::size_t pitch, void* host, std::size_t row_bytes, std::size_t rows) {
  if (rows == 0 || row_bytes == 0) return;
  cudaStream_t on = stream();
  if (pitch == row_bytes) {
    row_bytes *= rows;
    pitch = row_bytes;
    rows = 1;
  }
  const char* source = static_cast<const char*>(from);
  char* to = static_cast<char*>(host);
  for (std::size_t r = 0; r < rows;) {
    const std::size_t count = rows == 1 ? 1 : std::clamp<std::size_t>(kSlotBytes / row_bytes, 1, rows - r);
    for (std::size_t done = 0; done < count * row_bytes;) {
      std::size_t got = 0;
      char* at = reserve(count * row_bytes - done, got);
      if (count > 1) {
        check(cudaMemcpy2DAsync(at, row_bytes, source + r * pitch, pitch, row_bytes, count, cudaMemcpyDeviceToHost, on), "download");
      } else {
        check(cudaMemcpyAsync(at, source + r * pitch + done, got, cudaMemcpyDeviceToHost, on), "download");
      }
      check(cudaStreamSynchronize(on), "waiting for a download");
      std::memcpy(to + r * row_bytes + done, at, got);
      done += got;
    }
    r += count;
  }
}

DeviceUse Device::use() {
  stream();
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return {allocated_on(index_), free_before_ > free ? free_before_ - free : 0};
}

void Device::finish() { check(cudaStreamSynchronize(stream()), "waiting for the GPU"); }

}  // namespace pipelora::cuda
