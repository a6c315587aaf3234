#include "ops/cuda/base/cublaslt.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "ops/cuda/base/cublaslt_abi.h"
#include "pipelora/core/error.h"

namespace pipelora::cuda {

namespace {

using namespace lt;

struct Library {
  void* handle = nullptr;
  Status (*create)(Handle*) = nullptr;
  Status (*destroy)(Handle) = nullptr;
  std::size_t (*version)() = nullptr;
  Status (*desc_create)(MatmulDesc*, std::int32_t, cudaDataType_t) = nullptr;
  Status (*desc_destroy)(MatmulDesc) = nullptr;
  Status (*desc_set)(MatmulDesc, std::int32_t, const void*, std::size_t) = nullptr;
  Status (*layout_create)(MatrixLayout*, cudaDataType_t, std::uint64_t, std::uint64_t, std::int64_t) = nullptr;
  Status (*layout_destroy)(MatrixLayout) = nullptr;
  Status (*preference_create)(Preference*) = nullptr;
  Status (*preference_destroy)(Preference) = nullptr;
  Status (*preference_set)(Preference, std::int32_t, const void*, std::size_t) = nullptr;
  Status (*heuristic)(Handle, MatmulDesc, MatrixLayout, MatrixLayout, MatrixLayout, MatrixLayout, Preference, int,
                      HeuristicResult*, int*) = nullptr;
  Status (*algo_get)(const Algo*, std::int32_t, void*, std::size_t, std::size_t*) = nullptr;
  Status (*matmul)(Handle, MatmulDesc, const void*, const void*, MatrixLayout, const void*, MatrixLayout, const void*,
                   const void*, MatrixLayout, void*, MatrixLayout, const Algo*, void*, std::size_t, cudaStream_t) = nullptr;
};

template <class F>
void resolve(void* handle, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(handle, name));
  if (function == nullptr) throw Error(kDeviceUnavailable, std::string("libcublasLt lacks ") + name);
}

const Library& library() {
  static const Library loaded = [] {
    Library lib;
    std::string why;
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
      lib.handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (lib.handle != nullptr) break;
      why = dlerror();
    }
    if (lib.handle == nullptr) throw Error(kDeviceUnavailable, "libcublasLt.so.13 could not be opened: " + why);
    resolve(lib.handle, "cublasLtCreate", lib.create);
    resolve(lib.handle, "cublasLtDestroy", lib.destroy);
    resolve(lib.handle, "cublasLtGetVersion", lib.version);
    resolve(lib.handle, "cublasLtMatmulDescCreate", lib.desc_create);
    resolve(lib.handle, "cublasLtMatmulDescDestroy", lib.desc_destroy);
    resolve(lib.handle, "cublasLtMatmulDescSetAttribute", lib.desc_set);
    resolve(lib.handle, "cublasLtMatrixLayoutCreate", lib.layout_create);
    resolve(lib.handle, "cublasLtMatrixLayoutDestroy", lib.layout_destroy);
    resolve(lib.handle, "cublasLtMatmulPreferenceCreate", lib.preference_create);
    resolve(lib.handle, "cublasLtMatmulPreferenceDestroy", lib.preference_destroy);
    resolve(lib.handle, "cublasLtMatmulPreferenceSetAttribute", lib.preference_set);
    resolve(lib.handle, "cublasLtMatmulAlgoGetHeuristic", lib.heuristic);
    resolve(lib.handle, "cublasLtMatmulAlgoConfigGetAttribute", lib.algo_get);
    resolve(lib.handle, "cublasLtMatmul", lib.matmul);
    return lib;
  }();
  return loaded;
}

void require(Status status, const char* what) {
  if (status == 0) return;
  throw Error(status == 3 ? kOutOfMemory : kEngineFailed,
              std::string("cuBLASLt: ") + what + " failed with status " + std::to_string(status));
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return CUDA_R_32F;
    case DType::bf16: return CUDA_R_16BF;
    case DType::f16: return CUDA_R_16F;
    case DType::i8: return CUDA_R_8I;
    case DType::i32: return CUDA_R_32I;
    case DType::f8: return CUDA_R_8F_E4M3;
    default: throw Error(kTensorMismatch, std::string("no product of ") + dtype_name(dtype));
  }
}

std::uint32_t alignment(const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  return static_cast<std::uint32_t>(std::min<std::uintptr_t>(256, address & (~address + 1)));
}

constexpr std::int64_t kLongRows = 4096;
constexpr int kSuggestions = 8;

/// On a card at its power limit, as training holds it, long products are up to 5 % faster with the tiles that read least from
/// shared memory for each product than with the library's first choice, which is the fastest on a cool one.
int preferred(const std::vector<HeuristicResult>& results, int found) {
  for (int i = 0; i < found; ++i) {
    std::int32_t tile = 0;
    std::size_t written = 0;
    if (library().algo_get(&results[static_cast<std::size_t>(i)].algo, kAlgoTile, &tile, sizeof tile, &written) != 0) return 0;
    if (tile == kTile128x256 || tile == kTile256x128) return i;
  }
  return 0;
}

struct Plan {
  MatmulDesc desc = nullptr;
  MatrixLayout a = nullptr, b = nullptr, c = nullptr, d = nullptr;
  Algo algo{};
  bool exists = true;
};

std::int64_t inner_dimension(const Product& p) { return p.a_transposed ? p.a.rows : p.a.cols; }

using Key = std::array<std::int64_t, 16>;

}  // namespace

struct Products::State {
  Handle handle = nullptr;
  std::map<Key, Plan> plans;

  Plan make(const Product& p, bool with_c, int choice);
};

Products::Products() : state_(std::make_unique<State>()) { require(library().create(&state_->handle), "cublasLtCreate"); }

Products::~Products() {
  const Library& lib = library();
  for (auto& [key, plan] : state_->plans) {
    for (MatrixLayout layout : {plan.a, plan.b, plan.c, plan.d}) lib.layout_destroy(layout);
    lib.desc_destroy(plan.desc);
  }
  lib.destroy(state_->handle);
}

std::size_t Products::version() const { return library().version(); }

// Row-major d = a bᵀ is column-major dᵀ = b aᵀ: the library's A is our b, its B our a.
Plan Products::State::make(const Product& p, bool with_c, int choice) {
  const Library& lib = library();
  Plan plan;
  const bool integer = p.a.dtype == DType::i8;
  const std::int32_t compute = integer ? kCompute32I : kCompute32F;
  require(lib.desc_create(&plan.desc, compute, integer ? CUDA_R_32I : CUDA_R_32F), "cublasLtMatmulDescCreate");
  const auto set = [&](std::int32_t attribute, const auto& value) {
    require(lib.desc_set(plan.desc, attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  };
  set(kDescTransA, p.b_transposed ? kTransposed : kNotTransposed);
  set(kDescTransB, p.a_transposed ? kTransposed : kNotTransposed);
  if (p.bias != nullptr) {
    set(kDescEpilogue, kEpilogueBias);
    set(kDescBiasPointer, p.bias);
    set(kDescBiasType, static_cast<std::int32_t>(data_type(p.d.dtype)));
  }
  const bool eight_bit = p.a.dtype == DType::f8;
  if (eight_bit) set(kDescFastSums, static_cast<std::int8_t>(p.fast_sums));
  if (p.a_scales != nullptr) {
    set(kDescScaleModeA, kScaleRows);
    set(kDescScaleModeB, kScaleRows);
    set(kDescScaleA, p.b_scales);
    set(kDescScaleB, p.a_scales);
  }
  const std::int64_t m = p.d.rows, n = p.d.cols, k = inner_dimension(p);
  const auto layout = [&](MatrixLayout& out, const Tensor& tensor, std::int64_t rows, std::int64_t cols) {
    require(lib.layout_create(&out, data_type(tensor.dtype), static_cast<std::uint64_t>(rows),
                              static_cast<std::uint64_t>(cols), tensor.stride),
            "cublasLtMatrixLayoutCreate");
  };
  if (p.b_transposed)
    layout(plan.a, p.b, k, n);
  else
    layout(plan.a, p.b, n, k);
  if (p.a_transposed)
    layout(plan.b, p.a, m, k);
  else
    layout(plan.b, p.a, k, m);
  layout(plan.c, with_c ? p.c : p.d, n, m);
  layout(plan.d, p.d, n, m);

  Preference preference = nullptr;
  require(lib.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  const auto prefer = [&](std::int32_t attribute, const auto& value) {
    require(lib.preference_set(preference, attribute, &value, sizeof value), "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(kPreferWorkspace, std::uint64_t{Products::kWorkspaceBytes});
  prefer(kPreferAlignA, alignment(p.b.data));
  prefer(kPreferAlignB, alignment(p.a.data));
  prefer(kPreferAlignC, alignment(with_c ? p.c.data : p.d.data));
  prefer(kPreferAlignD, alignment(p.d.data));
  const bool chooses = choice == 0 && m >= kLongRows && !integer && !eight_bit;
  const int asked = chooses ? kSuggestions : choice + 1;
  std::vector<HeuristicResult> results(static_cast<std::size_t>(asked));
  int found = 0;
  const Status status = lib.heuristic(handle, plan.desc, plan.a, plan.b, plan.c, plan.d, preference, asked, results.data(), &found);
  lib.preference_destroy(preference);
  if (status != 0 || found == 0) {
    throw Error(kEngineFailed, "cuBLASLt has no algorithm for a product " + shape_text(m, k) + " by " + shape_text(n, k) +
                                   " of " + dtype_name(p.a.dtype) + " into " + dtype_name(p.d.dtype) + ": status " +
                                   std::to_string(status));
  }
  plan.exists = found > choice;
  if (chooses) choice = preferred(results, found);
  plan.algo = results[static_cast<std::size_t>(std::min(choice, found - 1))].algo;
  return plan;
}

bool Products::run(const Product& p, void* workspace, cudaStream_t stream, int choice) {
  const Library& lib = library();
  const bool with_c = static_cast<bool>(p.c);
  const Key key{p.d.rows,
                p.d.cols,
                inner_dimension(p),
                p.a.stride,
                p.b.stride,
                with_c ? p.c.stride : -1,
                p.d.stride,
                static_cast<std::int64_t>(p.a.dtype),
                static_cast<std::int64_t>(p.d.dtype),
                with_c ? static_cast<std::int64_t>(p.c.dtype) : -1,
                p.b_transposed + 2 * p.a_transposed + 4 * p.fast_sums + 8 * (p.a_scales != nullptr),
                p.bias != nullptr,
                alignment(p.a.data),
                alignment(p.b.data),
                static_cast<std::int64_t>(alignment(p.d.data)) * 512 + (with_c ? alignment(p.c.data) : 0),
                choice};
  auto found = state_->plans.find(key);
  if (found == state_->plans.end()) found = state_->plans.emplace(key, state_->make(p, with_c, choice)).first;
  const Plan& plan = found->second;
  if (!plan.exists) return false;
  if (p.bias != nullptr) {
    require(lib.desc_set(plan.desc, kDescBiasPointer, &p.bias, sizeof p.bias), "cublasLtMatmulDescSetAttribute");
  }
  if (p.a_scales != nullptr) {
    require(lib.desc_set(plan.desc, kDescScaleA, &p.b_scales, sizeof p.b_scales), "cublasLtMatmulDescSetAttribute");
    require(lib.desc_set(plan.desc, kDescScaleB, &p.a_scales, sizeof p.a_scales), "cublasLtMatmulDescSetAttribute");
  }
  const float beta = with_c ? 1.0f : 0.0f;
  const std::int32_t one_i = 1, beta_i = with_c ? 1 : 0;
  const bool integer = p.a.dtype == DType::i8;
  require(lib.matmul(state_->handle, plan.desc, integer ? static_cast<const void*>(&one_i) : &p.alpha, p.b.data, plan.a,
                     p.a.data, plan.b, integer ? static_cast<const void*>(&beta_i) : &beta,
                     with_c ? p.c.data : p.d.data, plan.c, p.d.data, plan.d, &plan.algo, workspace, kWorkspaceBytes,
                     stream),
          "cublasLtMatmul");
  return true;
}

}  // namespace pipelora::cuda
