#include "ops/cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/sampling.h"
#include "pipelora/ops/cpu.h"
#include "pipelora/core/e4m3.h"
#include "pipelora/core/error.h"

namespace pipelora {

namespace {
constexpr std::int64_t kRowsATask = 16;
constexpr std::int64_t kElementsATask = 1 << 15;

std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

char* row_pointer(const Tensor& t, std::int64_t row) {
  return static_cast<char*>(t.data) + static_cast<std::size_t>(row * t.stride) * dtype_bytes(t.dtype);
}
}  // namespace

CpuOps::CpuOps(DType compute, int threads) : compute_(compute), kernels_(kernels()), pool_(threads) {
  for (int i = 0; i < pool_.threads(); ++i) threads_.push_back(std::make_unique<CpuThread>());
}

template <class Body>
void CpuOps::over_rows(std::int64_t rows, Body&& body) {
  pool_.run(pieces(rows, kRowsATask), [&](std::int64_t task, int) {
    const std::int64_t first = task * kRowsATask;
    body(first, std::min(kRowsATask, rows - first));
  });
}

void CpuOps::upload(const Tensor& to, const void* host) {
  const std::size_t bytes = static_cast<std::size_t>(to.cols) * dtype_bytes(to.dtype);
  for (std::int64_t r = 0; r < to.rows; ++r)
    std::memcpy(row_pointer(to, r), static_cast<const char*>(host) + static_cast<std::size_t>(r) * bytes, bytes);
}

void CpuOps::download(const Tensor& from, void* host) {
  const std::size_t bytes = static_cast<std::size_t>(from.cols) * dtype_bytes(from.dtype);
  for (std::int64_t r = 0; r < from.rows; ++r)
    std::memcpy(static_cast<char*>(host) + static_cast<std::size_t>(r) * bytes, row_pointer(from, r), bytes);
}

void CpuOps::upload(Indices& indices) {
  indices.device = Tensor(indices.host.data(), DType::i32, 1, indices.size());
}

void CpuOps::copy(const Tensor& from, const Tensor& to) {
  const bool same = from.dtype == to.dtype;  // of any dtype, then
  const std::size_t bytes = static_cast<std::size_t>(from.cols) * dtype_bytes(from.dtype);
  over_rows(from.rows, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t r = first; r < first + count; ++r) {
      if (same)
        std::memmove(row_pointer(to, r), row_pointer(from, r), bytes);
      else
        kernels_.convert_row(row_pointer(from, r), from.dtype, row_pointer(to, r), to.dtype, 1.0f, from.cols);
    }
  });
}

void CpuOps::zero(const Tensor& tensor) {
  for (std::int64_t r = 0; r < tensor.rows; ++r)
    std::memset(row_pointer(tensor, r), 0, static_cast<std::size_t>(tensor.cols) * dtype_bytes(tensor.dtype));
}

void CpuOps::add_scaled(const Tensor& from, float factor, const Tensor& to) {
  over_rows(from.rows, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t r = first; r < first + count; ++r)
      kernels_.add_scaled(reinterpret_cast<const float*>(row_pointer(from, r)), factor,
                          reinterpret_cast<float*>(row_pointer(to, r)), from.cols);
  });
}

void CpuOps::gather_rows(const Tensor& from, const Indices& rows, const Tensor& to) {
  over_rows(to.rows, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t r = first; r < first + count; ++r)
      kernels_.convert_row(row_pointer(from, rows.host[static_cast<std::size_t>(r)]), from.dtype, row_pointer(to, r),
                           to.dtype, 1.0f, to.cols);
  });
}

void CpuOps::scatter_rows(const Tensor& from, const Indices& rows, float factor, const Tensor& to) {
  over_rows(from.rows, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t r = first; r < first + count; ++r)
      kernels_.convert_row(row_pointer(from, r), from.dtype, row_pointer(to, rows.host[static_cast<std::size_t>(r)]),
                           to.dtype, factor, from.cols);
  });
}

void CpuOps::encode_rows(const Tensor& from, const Tensor& to) {
  pool_.run(from.rows, [&](std::int64_t r, int thread) {
    const float* x = as_floats(from, r, threads_[static_cast<std::size_t>(thread)]->scratch.floats(2, static_cast<std::size_t>(from.cols)));
    encode_row(x, from.cols, reinterpret_cast<std::uint8_t*>(row_pointer(to, r)));
  });
}

void CpuOps::decode_rows(const Tensor& from, const Tensor& to) {
  pool_.run(to.rows, [&](std::int64_t r, int thread) {
    float* x = threads_[static_cast<std::size_t>(thread)]->scratch.floats(2, static_cast<std::size_t>(to.cols));
    decode_row(reinterpret_cast<const std::uint8_t*>(row_pointer(from, r)), to.cols, largest_of(to.dtype), x);
    kernels_.convert_row(x, DType::f32, row_pointer(to, r), to.dtype, 1.0f, to.cols);
  });
}

void CpuOps::load_matrix(const HostTensor& from, DType hold, const Tensor& to) {
  const std::size_t row_bytes = static_cast<std::size_t>(from.cols) * dtype_bytes(from.dtype);
  pool_.run(pieces(from.rows, kRowsATask), [&](std::int64_t task, int thread) {
    float* held = threads_[static_cast<std::size_t>(thread)]->scratch.floats(2, static_cast<std::size_t>(from.cols));
    for (std::int64_t r = task * kRowsATask; r < std::min(from.rows, (task + 1) * kRowsATask); ++r) {
      const char* source = static_cast<const char*>(from.data) + static_cast<std::size_t>(r) * row_bytes;
      if (from.dtype == hold) {
        kernels_.convert_row(source, from.dtype, row_pointer(to, r), to.dtype, 1.0f, from.cols);
      } else {
        kernels_.convert_row(source, from.dtype, held, hold, 1.0f, from.cols);
        kernels_.convert_row(held, hold, row_pointer(to, r), to.dtype, 1.0f, from.cols);
      }
    }
  });
}

void CpuOps::add(const Tensor& a, const Tensor& b, float factor, const Tensor& out) {
  over_rows(out.rows, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t r = first; r < first + count; ++r)
      kernels_.add_rows(a ? row_pointer(a, r) : nullptr, row_pointer(b, r), factor, row_pointer(out, r), out.dtype, out.cols);
  });
}

void CpuOps::shape_logits(const Tensor& logits, float factor, float cap) {
  pool_.run(logits.rows, [&](std::int64_t r, int) {
    kernels_.shape_logits(reinterpret_cast<float*>(row_pointer(logits, r)), factor, cap, logits.cols);
  });
}

void CpuOps::rmsnorm_forward(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& y) {
  over_rows(x.rows, [&](std::int64_t first, std::int64_t count) {
    kernels_.rmsnorm_forward(x.row_range(first, count), weight.as<float>(), rule, y.row_range(first, count));
  });
}

void CpuOps::rmsnorm_backward(const RmsNormBackward& call) {
  over_rows(call.x.rows, [&](std::int64_t first, std::int64_t count) {
    RmsNormBackward part = call;
    for (Tensor* t : {&part.x, &part.dy, &part.residual, &part.dx, &part.y})
      if (*t) *t = t->row_range(first, count);
    kernels_.rmsnorm_backward(part);
  });
}

namespace {
/// For the tokens from `first` on.
template <class Call>
RopeHeads heads_of(const Call& call, std::int64_t first) {
  return {call.rule,
          call.rope,
          call.rope ? call.rope_row->host.data() + first : nullptr,
          call.q_scale ? call.q_scale.template as<float>() + first : nullptr,
          call.head_dim,
          call.interleaved};
}
}  // namespace

void CpuOps::qk_rope_forward(const QkRope& call) {
  over_rows(call.q.rows, [&](std::int64_t first, std::int64_t count) {
    RopeHeads heads = heads_of(call, first);
    kernels_.norm_rope_forward(call.q.row_range(first, count), call.q_out.row_range(first, count), call.q_norm.as<float>(), heads);
    heads.q_scale = nullptr;
    kernels_.norm_rope_forward(call.k.row_range(first, count), call.k_out.row_range(first, count), call.k_norm.as<float>(), heads);
  });
}

void CpuOps::qk_rope_backward(const QkRopeBackward& call) {
  over_rows(call.dq.rows, [&](std::int64_t first, std::int64_t count) {
    const auto part = [&](const Tensor& t) { return t ? t.row_range(first, count) : t; };
    RopeHeads heads = heads_of(call, first);
    kernels_.norm_rope_backward(part(call.dq), part(call.q), call.q_norm.as<float>(), heads);
    heads.q_scale = nullptr;
    kernels_.norm_rope_backward(part(call.dk), part(call.k), call.k_norm.as<float>(), heads);
  });
}

void CpuOps::attention_forward(const AttentionForward& call) {
  const std::int64_t heads = call.q.cols / call.head_dim;
  pool_.run(call.sequences->count() * heads, [&](std::int64_t task, int thread) {
    kernels_.attention_forward(call, task / heads, task % heads, threads_[static_cast<std::size_t>(thread)]->scratch);
  });
}

void CpuOps::attention_backward(const AttentionBackward& call) {
  // dq gathers one contribution a key block: in float32 throughout.
  Buffer sum;
  if (call.dq.dtype != DType::f32) sum = arena_->workspace("attention's query gradient", DType::f32, call.dq.rows, call.dq.cols);
  const Tensor dq_sum = sum ? sum.tensor() : call.dq;
  const std::int64_t kv_heads = call.k.cols / call.head_dim;
  pool_.run(call.sequences->count() * kv_heads, [&](std::int64_t task, int thread) {
    kernels_.attention_backward(call, dq_sum, task / kv_heads, task % kv_heads,
                                threads_[static_cast<std::size_t>(thread)]->scratch);
  });
  if (sum) copy(dq_sum, call.dq);
  if (call.rope) qk_rope_backward({call.dq, call.dk, {}, {}, {}, {}, {}, call.rope, call.rope_row, call.head_dim});
}

void CpuOps::swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& act, Activation activation) {
  over_rows(gate.rows, [&](std::int64_t first, std::int64_t count) {
    kernels_.swiglu_forward(gate.row_range(first, count), up.row_range(first, count), act.row_range(first, count), activation);
  });
}

void CpuOps::swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dact, const Tensor& dgate,
                             const Tensor& dup, const Tensor& act, Activation activation) {
  over_rows(gate.rows, [&](std::int64_t first, std::int64_t count) {
    kernels_.swiglu_backward(gate.row_range(first, count), up.row_range(first, count), dact.row_range(first, count),
                             dgate.row_range(first, count), dup.row_range(first, count),
                             act ? act.row_range(first, count) : act, activation);
  });
}

void CpuOps::cross_entropy(const CrossEntropy& call) {
  pool_.run(call.logits.rows, [&](std::int64_t r, int) { kernels_.cross_entropy_row(call, r); });
}

void CpuOps::add_noise(const EmbeddingNoise& call) {
  const Sequences& sequences = *call.sequences;
  std::vector<float> magnitudes;
  for (const std::int32_t length : sequences.key_length.host)
    magnitudes.insert(magnitudes.end(), static_cast<std::size_t>(length),
                      call.alpha / std::sqrt(static_cast<float>(length) * static_cast<float>(call.x.cols)));
  pool_.run(call.x.rows, [&](std::int64_t t, int) {
    const auto at = static_cast<std::size_t>(t);
    const auto first = static_cast<std::uint64_t>(sequences.position.host[at]) * static_cast<std::uint64_t>(call.x.cols);
    kernels_.add_noise(row_pointer(call.x, t), call.x.dtype, call.x.cols, call.key, static_cast<std::uint32_t>(sequences.row.host[at]), first,
                       magnitudes[at]);
  });
}

std::int32_t CpuOps::sample(const Sampling& call) { return cpu::sample(call); }

void CpuOps::adamw(std::span<const AdamTarget> targets, const AdamSettings& settings) {
  struct Piece {
    const AdamTarget* target;
    std::int64_t first, count;
  };
  std::vector<Piece> work;
  for (const AdamTarget& target : targets)
    for (std::int64_t i = 0; i < target.weight.size(); i += kElementsATask)
      work.push_back({&target, i, std::min(kElementsATask, target.weight.size() - i)});
  pool_.run(static_cast<std::int64_t>(work.size()), [&](std::int64_t task, int) {
    const auto [target, first, count] = work[static_cast<std::size_t>(task)];
    kernels_.adamw(target->weight.as<float>() + first, target->grad.as<float>() + first, target->exp_avg.as<float>() + first,
                   target->exp_avg_sq.as<float>() + first, count, settings);
  });
}

std::vector<double> CpuOps::squared_norms(std::span<const Tensor> tensors) {
  struct Piece {
    std::size_t tensor;
    std::int64_t first, count;
  };
  std::vector<Piece> work;
  for (std::size_t i = 0; i < tensors.size(); ++i)
    for (std::int64_t at = 0; at < tensors[i].size(); at += kElementsATask)
      work.push_back({i, at, std::min(kElementsATask, tensors[i].size() - at)});
  std::vector<double> partial(work.size()), total(tensors.size(), 0.0);
  pool_.run(static_cast<std::int64_t>(work.size()), [&](std::int64_t task, int) {
    const auto [tensor, first, count] = work[static_cast<std::size_t>(task)];
    partial[static_cast<std::size_t>(task)] = kernels_.sum_squares(tensors[tensor].as<float>() + first, count);
  });
  for (std::size_t i = 0; i < work.size(); ++i) total[work[i].tensor] += partial[i];
  return total;
}

std::unique_ptr<Ops> make_cpu_ops(DType compute, int threads) {
  if (compute != DType::f32 && compute != DType::bf16)
    throw Error(kDeviceUnavailable, std::string("the CPU computes in float32 or bfloat16, not in ") + dtype_name(compute));
  return std::make_unique<CpuOps>(compute, threads);
}

}  // namespace pipelora
