// Where the library's own header is present: the declared part of its interface agrees with it.
#include <cublasLt.h>

#include "ops/cuda/base/cublaslt_abi.h"

namespace lt = pipelora::cuda::lt;

static_assert(sizeof(lt::Algo) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(lt::HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(lt::HeuristicResult, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(lt::kCompute32F == CUBLAS_COMPUTE_32F && lt::kCompute32I == CUBLAS_COMPUTE_32I);
static_assert(lt::kNotTransposed == CUBLAS_OP_N && lt::kTransposed == CUBLAS_OP_T);
static_assert(lt::kDescTransA == CUBLASLT_MATMUL_DESC_TRANSA && lt::kDescTransB == CUBLASLT_MATMUL_DESC_TRANSB);
static_assert(lt::kDescEpilogue == CUBLASLT_MATMUL_DESC_EPILOGUE && lt::kDescBiasPointer == CUBLASLT_MATMUL_DESC_BIAS_POINTER);
static_assert(lt::kDescBiasType == CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE && lt::kEpilogueBias == CUBLASLT_EPILOGUE_BIAS);
static_assert(lt::kDescScaleA == CUBLASLT_MATMUL_DESC_A_SCALE_POINTER && lt::kDescScaleB == CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
static_assert(lt::kDescScaleModeA == CUBLASLT_MATMUL_DESC_A_SCALE_MODE && lt::kDescScaleModeB == CUBLASLT_MATMUL_DESC_B_SCALE_MODE);
static_assert(lt::kScaleRows == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F && lt::kDescFastSums == CUBLASLT_MATMUL_DESC_FAST_ACCUM);
static_assert(lt::kAlgoTile == CUBLASLT_ALGO_CONFIG_TILE_ID);
static_assert(lt::kTile128x256 == CUBLASLT_MATMUL_TILE_128x256 && lt::kTile256x128 == CUBLASLT_MATMUL_TILE_256x128);
static_assert(lt::kPreferWorkspace == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(lt::kPreferAlignA == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES && lt::kPreferAlignB == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
static_assert(lt::kPreferAlignC == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES && lt::kPreferAlignD == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
