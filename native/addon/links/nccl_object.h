// NCCL communicators and the device memory that their messages lie in, in JavaScript.
#pragma once

#include <napi.h>

#include <memory>

#include "addon/settler.h"
#include "comm/nccl_communicator.h"

namespace pipelora::addon {

/// Device memory of a communicator: what an engine copies a tensor into, or out of.
class PlaceObject : public Napi::ObjectWrap<PlaceObject> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Value wrap(Napi::Env env, std::shared_ptr<comm::LinkBlock> block, bool is_host);
  /// Throws PL_TENSOR_MISMATCH for anything else, and for one that was freed.
  static std::shared_ptr<comm::LinkBlock> unwrap(const Napi::Value& value);

  explicit PlaceObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value free(const Napi::CallbackInfo& info);

  std::shared_ptr<comm::LinkBlock> block_;
};

/// new Communicator({device, id, rank, ranks, timeoutMs}, onFailed)
class CommunicatorObject : public Napi::ObjectWrap<CommunicatorObject> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit CommunicatorObject(const Napi::CallbackInfo& info);
  ~CommunicatorObject() override;

 private:
  Napi::Value place(const Napi::CallbackInfo& info);
  Napi::Value exchange(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  /// One way back for all: a failure is heard before what it ends.
  std::shared_ptr<Settler> settler_;
  /// Promises not settled: they keep the process alive. Of JavaScript's thread alone.
  const std::shared_ptr<int> pending_ = std::make_shared<int>(0);
  std::unique_ptr<comm::NcclCommunicator> communicator_;
};

Napi::Value nccl_unique_id(const Napi::CallbackInfo& info);
/// {version, reason, hostMemory}
Napi::Value nccl_capabilities(Napi::Env env);

}  // namespace pipelora::addon
