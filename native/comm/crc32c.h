// CRC-32C (Castagnoli), the checksum of iSCSI (RFC 3720, appendix B.4) and of the frames between two ranks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pipelora::comm {

/// Of `bytes` bytes; `crc` is the checksum of what came before them.
std::uint32_t crc32c(const void* data, std::size_t bytes, std::uint32_t crc = 0);

}  // namespace pipelora::comm
