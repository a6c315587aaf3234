// The GPU's operations of a mixture of experts against float64.
#include "tests/cuda_fixture.h"
#include "tests/experts_reference.h"

using namespace pipelora;
using namespace pipelora::test;

/// usage: cuda_experts [small] [DTYPE …]
int main(int argc, char** argv) {
  const Asked asked(argc, argv);
  for (const DType dtype : asked.dtypes) {
    Gpu gpu(dtype, std::size_t{256} << 20);
    const std::string in = std::string(dtype_name(dtype)) + " ";
    try_experts(
        gpu, dtype, asked.small,
        [&](const std::string& what, const Values& got, const Values& expected, bool rounds) {
          compare(in + what, got, expected, rounds ? limit_of(dtype) : 1e-5);
        },
        [&](const std::string& what, bool good) { require(in + what, good); },
        [&](std::int64_t count, double scale, unsigned seed) { return random_values(count, scale, dtype, seed); });
  }
  return finish();
}
