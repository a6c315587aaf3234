// Drawing a token on the GPU (Sampling in pipelora/ops/ops.h): logits are sorted, weights summed, and the token looked up in the sums. The
// largest alone needs none of that.
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "ops/cuda/device/common.cuh"
#include "ops/cuda/head/sampling.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;

__global__ void penalise_kernel(float* logits, const std::int32_t* seen, int count, float penalty) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= count) return;
  float& logit = logits[seen[i]];
  logit = logit > 0 ? __fdiv_rn(logit, penalty) : logit * penalty;
}

__global__ void add_biases_kernel(float* logits, const std::int32_t* ids, const float* biases, int count) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < count) logits[ids[i]] += biases[i];
}

/// Ids to sort along; a NaN becomes one that is sorted before everything, where it is seen.
__global__ void prepare_kernel(float* logits, std::int32_t* ids, int vocab) {
  const int id = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (id >= vocab) return;
  ids[id] = id;
  if (isnan(logits[id])) logits[id] = __int_as_float(0x7FFFFFFF);
  if (logits[id] == 0.0f) logits[id] = 0.0f;  // -0 and 0 are equal
}

__global__ void weigh_kernel(const float* sorted, std::uint64_t* weights, int count, double temperature) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= count) return;
  weights[i] = static_cast<std::uint64_t>(exp((static_cast<double>(sorted[i]) - static_cast<double>(sorted[0])) / temperature) * kSamplingUnit);
}

/// First place in `sums` [count] that `reached` holds for, as it does for all behind.
template <class Reached>
__device__ int first_place(const std::uint64_t* sums, int count, Reached&& reached) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (reached(sums[middle]))
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

/// `weights` [count] and their sums; both of tokens by falling logit.
__global__ void pick_kernel(const float* sorted, const std::int32_t* ids, const std::uint64_t* weights, const std::uint64_t* sums, int count, double top_p,
                            double min_p, std::uint32_t draw, std::int32_t* token) {
  if (!isfinite(sorted[0])) {
    *token = -1;
    return;
  }
  int last = count - 1;
  if (top_p < 1) {
    const auto needed = static_cast<std::uint64_t>(ceil(top_p * static_cast<double>(sums[last])));
    last = min(last, first_place(sums, count, [&](std::uint64_t sum) { return sum >= needed; }));
  }
  if (min_p > 0) {
    const auto least = static_cast<std::uint64_t>(ceil(min_p * kSamplingUnit));
    last = max(0, min(last, first_place(weights, count, [&](std::uint64_t weight) { return weight < least; }) - 1));
  }
  const std::uint64_t left = sums[last];
  const std::uint64_t mark = __umul64hi(left, static_cast<std::uint64_t>(draw) << 32);
  *token = ids[first_place(sums, count, [&](std::uint64_t sum) { return sum > mark; })];
}

constexpr int kLargestThreads = 256, kLargestBlocks = 64;

/// The larger of all `best` of a block; for its first thread.
__device__ std::uint64_t largest_of_block(std::uint64_t best) {
  __shared__ std::uint64_t best_of[32];
  const auto over_warp = [&] {
    for (int d = 16; d > 0; d /= 2) best = max(best, static_cast<std::uint64_t>(__shfl_xor_sync(0xFFFFFFFFu, static_cast<unsigned long long>(best), d)));
  };
  over_warp();
  if (threadIdx.x % 32 == 0) best_of[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x >= 32) return 0;
  best = threadIdx.x < blockDim.x / 32 ? best_of[threadIdx.x] : 0;
  over_warp();
  return best;
}

/// The first largest logit, without a sort: a block's share of them each, then largest_of_all_kernel. A number is compared as an integer
/// in which floats keep their order, NaN above all.
__global__ void __launch_bounds__(kLargestThreads) largest_kernel(const float* logits, int vocab, std::uint64_t* largest) {
  std::uint64_t best = 0;
  for (int id = static_cast<int>(blockIdx.x * kLargestThreads + threadIdx.x); id < vocab; id += kLargestBlocks * kLargestThreads) {
    const float logit = logits[id] == 0.0f ? 0.0f : logits[id];  // -0 and 0 are equal
    const std::uint32_t bits = __float_as_uint(logit);
    const std::uint32_t order = isnan(logit) ? 0xFFFFFFFFu : bits >> 31 ? ~bits : bits | 0x80000000u;
    best = max(best, static_cast<std::uint64_t>(order) << 32 | ~static_cast<std::uint32_t>(id));  // of equals, the lowest id
  }
  best = largest_of_block(best);
  if (threadIdx.x == 0) largest[blockIdx.x] = best;
}

__global__ void __launch_bounds__(kLargestBlocks) largest_of_all_kernel(const float* logits, const std::uint64_t* largest, std::int32_t* token) {
  const std::uint64_t best = largest_of_block(largest[threadIdx.x]);
  if (threadIdx.x != 0) return;
  const auto id = static_cast<std::int32_t>(~static_cast<std::uint32_t>(best));
  *token = isfinite(logits[id]) ? id : -1;
}

/// Pieces of one allocation, each from a multiple of 256 on.
struct Room {
  float* sorted;
  std::int32_t *ids, *sorted_ids, *seen, *token;
  float* biases;
  std::uint64_t *weights, *sums, *largest;
  void* temporary;
  std::size_t temporary_bytes, bytes;

  Room(void* base, int vocab) {
    const auto count = static_cast<std::size_t>(vocab);
    std::size_t sort_bytes = 0, scan_bytes = 0;
    check(cub::DeviceRadixSort::SortPairsDescending(nullptr, sort_bytes, static_cast<const float*>(nullptr), static_cast<float*>(nullptr),
                                                    static_cast<const std::int32_t*>(nullptr), static_cast<std::int32_t*>(nullptr), vocab),
          "sorting logits");
    check(cub::DeviceScan::InclusiveSum(nullptr, scan_bytes, static_cast<const std::uint64_t*>(nullptr), static_cast<std::uint64_t*>(nullptr), vocab),
          "summing weights");
    temporary_bytes = std::max(sort_bytes, scan_bytes);
    bytes = 0;
    const auto place = [&](auto*& piece, std::size_t size) {
      piece = reinterpret_cast<std::remove_reference_t<decltype(piece)>>(static_cast<char*>(base) + bytes);
      bytes += (size + 255) / 256 * 256;
    };
    place(sorted, count * sizeof(float));
    place(ids, count * sizeof(std::int32_t));
    place(sorted_ids, count * sizeof(std::int32_t));
    place(seen, count * sizeof(std::int32_t));
    place(token, sizeof(std::int32_t));
    place(biases, count * sizeof(float));
    place(weights, count * sizeof(std::uint64_t));
    place(sums, count * sizeof(std::uint64_t));
    place(largest, kLargestBlocks * sizeof(std::uint64_t));
    temporary = static_cast<char*>(base) + bytes;
    bytes += temporary_bytes;
  }
};

}  // namespace

std::size_t sampling_bytes(std::int64_t vocab) { return Room(nullptr, static_cast<int>(vocab)).bytes; }

std::int32_t sample(const Sampling& call, Device& device, void* scratch) {
  const cudaStream_t stream = device.stream();
  const int vocab = static_cast<int>(call.logits.cols), kept = static_cast<int>(call.top_k > 0 ? std::min<std::int64_t>(call.top_k, vocab) : vocab);
  Room room(scratch, vocab);
  auto* logits = call.logits.as<float>();
  if (call.repetition_penalty != 1 && !call.seen.empty()) {
    const std::size_t size = call.seen.size_bytes();
    device.upload(room.seen, size, call.seen.data(), size, 1);
    const int count = static_cast<int>(call.seen.size());
    penalise_kernel<<<blocks_for(count, kThreads), kThreads, 0, stream>>>(logits, room.seen, count, call.repetition_penalty);
  }
  if (!call.biased.empty()) {
    device.upload(room.seen, call.biased.size_bytes(), call.biased.data(), call.biased.size_bytes(), 1);
    device.upload(room.biases, call.biases.size_bytes(), call.biases.data(), call.biases.size_bytes(), 1);
    const int count = static_cast<int>(call.biased.size());
    add_biases_kernel<<<blocks_for(count, kThreads), kThreads, 0, stream>>>(logits, room.seen, room.biases, count);
  }
  if (kept == 1) {
    largest_kernel<<<kLargestBlocks, kLargestThreads, 0, stream>>>(logits, vocab, room.largest);
    largest_of_all_kernel<<<1, kLargestBlocks, 0, stream>>>(logits, room.largest, room.token);
  } else {
    prepare_kernel<<<blocks_for(vocab, kThreads), kThreads, 0, stream>>>(logits, room.ids, vocab);
    check(cub::DeviceRadixSort::SortPairsDescending(room.temporary, room.temporary_bytes, logits, room.sorted, room.ids, room.sorted_ids, vocab, 0, 32, stream),
          "sorting logits");
    weigh_kernel<<<blocks_for(kept, kThreads), kThreads, 0, stream>>>(room.sorted, room.weights, kept, call.temperature);
    check(cub::DeviceScan::InclusiveSum(room.temporary, room.temporary_bytes, room.weights, room.sums, kept, stream), "summing weights");
    pick_kernel<<<1, 1, 0, stream>>>(room.sorted, room.sorted_ids, room.weights, room.sums, kept, call.top_p, call.min_p, call.draw, room.token);
  }
  check_launch("sampling");
  std::int32_t token = -1;
  device.download(room.token, sizeof token, &token, sizeof token, 1);
  if (token < 0) throw Error(kEngineFailed, "the largest logit is not a finite number: no token can be drawn");
  return token;
}

}  // namespace pipelora::cuda
