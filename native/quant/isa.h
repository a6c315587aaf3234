// Which vector instructions the kernels use: the best that this processor has, unless lowered by a test, a
// benchmark or PIPELORA_CPU_ISA=avx2.
#pragma once

namespace pipelora::quant {

enum class Isa { scalar, avx2, avx512, avx512_vnni };

/// Best level of this processor: avx2 means AVX2, FMA and F16C, avx512 means F, BW, VL and DQ, avx512_vnni adds VNNI.
Isa detected_isa();

/// Level in use. Results do not depend on it.
Isa current_isa();

/// Lowers the level in use (raising it above the detected one has no effect). Not for use while kernels run.
void limit_isa(Isa highest);

}  // namespace pipelora::quant
