#include <doctest/doctest.h>

#include "comm/nccl_library.h"

using pipelora::comm::nccl_version_text;
using pipelora::comm::open_nccl;

TEST_CASE("versions of both ways to number them") {
  CHECK(nccl_version_text(22703) == "2.27.3");
  CHECK(nccl_version_text(21400) == "2.14.0");
  CHECK(nccl_version_text(2804) == "2.8.4");
}

TEST_CASE("a library is opened whole or not at all, and why not is said") {
  CHECK(open_nccl(NCCL_NONE).reason.find("has no ncclGetVersion") != std::string::npos);
  CHECK(open_nccl(NCCL_2804).reason == "NCCL 2.8.4 is too old: 2.14 or newer is needed");
  CHECK(open_nccl(NCCL_22703).reason.find("has no ncclGetUniqueId, ncclCommInitRankConfig") != std::string::npos);
  CHECK(open_nccl(NCCL_22703).library == nullptr);
  CHECK(open_nccl("libnccl-not-there.so.2").reason.find("libnccl-not-there.so.2") != std::string::npos);
  REQUIRE(open_nccl(NCCL_HOST).library != nullptr);
  CHECK(open_nccl(NCCL_HOST).library->host_memory);
  CHECK(open_nccl(NCCL_HOST).library->version == "2.28.0");
}
