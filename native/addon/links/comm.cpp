#include "addon/links/comm.h"

#include <malloc.h>

#include "addon/convert.h"
#include "addon/links/nccl_object.h"
#include "addon/links/shared_link_object.h"
#include "comm/crc32c.h"

namespace pipelora::addon {

namespace {

Napi::Value crc32c(const Napi::CallbackInfo& info) {
  try {
    Napi::Uint8Array bytes = to_bytes(info[0], "bytes");
    return Napi::Number::New(info.Env(), comm::crc32c(bytes.Data(), bytes.ByteLength()));
  } catch (...) {
    throw to_js_error(info.Env(), std::current_exception());
  }
}

/// By default glibc gives a freed megabyte back to the system, and the next one costs its page faults again.
Napi::Value keep_freed_memory(const Napi::CallbackInfo& info) {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most it takes
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  mallopt(M_TOP_PAD, 16 << 20);
  return info.Env().Undefined();
}

}  // namespace

void define_comm(Napi::Env env, Napi::Object exports) {
  exports.Set("crc32c", Napi::Function::New<crc32c>(env, "crc32c"));
  exports.Set("SharedSender", SharedSenderObject::define(env));
  exports.Set("SharedReceiver", SharedReceiverObject::define(env));
  exports.Set("Communicator", CommunicatorObject::define(env));
  exports.Set("ncclUniqueId", Napi::Function::New<nccl_unique_id>(env, "ncclUniqueId"));
  exports.Set("keepFreedMemory", Napi::Function::New<keep_freed_memory>(env, "keepFreedMemory"));
}

}  // namespace pipelora::addon
