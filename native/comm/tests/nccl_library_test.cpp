#include <doctest/doctest.h>

#include "comm/nccl_library.h"

using pipelora::comm::nccl_info;

TEST_CASE("NCCL's version is told where the library is, else why it can't be used") {
  CHECK(nccl_info(NCCL_22703).version == "2.27.3");
  CHECK(nccl_info(NCCL_22703).reason.empty());
  CHECK(nccl_info(NCCL_2804).version == "2.8.4");
  CHECK(nccl_info(NCCL_NONE).version.empty());
  CHECK(nccl_info(NCCL_NONE).reason.find("has no ncclGetVersion") != std::string::npos);
  CHECK(nccl_info("libnccl-not-there.so.2").version.empty());
  CHECK(nccl_info("libnccl-not-there.so.2").reason.find("libnccl-not-there.so.2") != std::string::npos);
}
