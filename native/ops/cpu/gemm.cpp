#include "ops/cpu/gemm.h"

#include "pipelora/core/error.h"

namespace pipelora {

namespace {
constexpr std::size_t kMostEntries = 1024;
}

Gemm::Gemm() : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {}

Gemm::Entry& Gemm::entry(const Shape& s) {
  const auto found = entries_.find(s);
  if (found != entries_.end()) return found->second;
  if (entries_.size() >= kMostEntries) entries_.clear();

  using dnnl::memory;
  const auto type = s.dtype == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::desc a({s.m, s.k}, type, memory::dims{s.lda, 1});
  const memory::desc b({s.k, s.n}, type, s.transposed ? memory::dims{1, s.ldb} : memory::dims{s.ldb, 1});
  const memory::desc c({s.m, s.n}, memory::data_type::f32, memory::dims{s.ldc, 1});
  dnnl::primitive_attr attributes;
  if (s.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  Entry made{dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), attributes, engine_)),
             memory(a, engine_, nullptr), memory(b, engine_, nullptr), memory(c, engine_, nullptr)};
  return entries_.emplace(s, std::move(made)).first->second;
}

void Gemm::multiply(const Tensor& a, const Tensor& b, bool transposed, const Tensor& c, bool accumulate) {
  try {
    Entry& e = entry({a.rows, c.cols, a.cols, a.stride, b.stride, c.stride, transposed, accumulate, a.dtype});
    e.a.set_data_handle(a.data);
    e.b.set_data_handle(b.data);
    e.c.set_data_handle(c.data);
    e.primitive.execute(stream_, {{DNNL_ARG_SRC, e.a}, {DNNL_ARG_WEIGHTS, e.b}, {DNNL_ARG_DST, e.c}});
    stream_.wait();
  } catch (const dnnl::error& error) {
    throw Error(kEngineFailed, "product " + shape_text(a.rows, a.cols) + " x " + shape_text(b.rows, b.cols) + " " +
                                   dtype_name(a.dtype) + ": " + error.message);
  }
}

}  // namespace pipelora
