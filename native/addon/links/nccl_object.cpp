#include "addon/links/nccl_object.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "addon/convert.h"
#include "addon/engine_object.h"
#include "pipelora/core/error.h"
#ifdef PIPELORA_CUDA
#include "ops/cuda/device/link_device.h"
#endif

namespace pipelora::addon {

namespace {

const comm::NcclLibrary& library() {
  const comm::NcclOpened& opened = comm::nccl_library();
  if (opened.library == nullptr) throw Error(kLinkFailed, "NCCL can't be used: " + opened.reason);
  return *opened.library;
}

std::unique_ptr<comm::LinkDevice> make_device(const std::string& name) {
  if (library().host_memory) return comm::host_link_device();
  int index = 0;
  const char* end = name.data() + name.size();
  if (!name.starts_with("cuda:") || std::from_chars(name.data() + 5, end, index).ptr != end)
    throw Error(kDeviceUnavailable, "NCCL moves a GPU's memory: expected a device cuda:N, got " + name);
#ifdef PIPELORA_CUDA
  return make_cuda_link_device(index);
#else
  throw Error(kDeviceUnavailable, "device " + name + ": this build has the CPU only");
#endif
}

std::size_t to_size(const Napi::Value& value, const char* what) {
  const std::int64_t number = to_int(value, what);
  if (number < 0) throw Error(kTensorMismatch, std::string(what) + ": expected no negative number, got " + std::to_string(number));
  return static_cast<std::size_t>(number);
}

comm::Transfer to_transfer(const Napi::Value& value) {
  if (!value.IsObject()) throw Error(kTensorMismatch, "expected a transfer");
  const Napi::Object from = value.As<Napi::Object>();
  comm::Transfer transfer;
  transfer.sends = to_bool(from.Get("sends"), "sends");
  transfer.peer = static_cast<int>(to_int(from.Get("peer"), "peer"));
  transfer.block = PlaceObject::unwrap(from.Get("place"));
  transfer.offset = to_size(from.Get("offset"), "offset");
  transfer.bytes = to_size(from.Get("bytes"), "bytes");
  if (transfer.offset > transfer.block->bytes() || transfer.bytes > transfer.block->bytes() - transfer.offset)
    throw Error(kTensorMismatch, "a transfer of " + std::to_string(transfer.bytes) + " bytes from " + std::to_string(transfer.offset) +
                                     " does not lie in " + std::to_string(transfer.block->bytes()));
  return transfer;
}

template <class Work>
Napi::Value guarded(Napi::Env env, Work work) {
  try {
    return work();
  } catch (...) {
    throw to_js_error(env, std::current_exception());
  }
}

}  // namespace

Napi::Function PlaceObject::define(Napi::Env env) {
  return DefineClass(env, "DevicePlace", {InstanceMethod<&PlaceObject::free>("free")});
}

namespace {
struct PlaceParts {
  std::shared_ptr<comm::LinkBlock> block;
  bool is_host;
};
}  // namespace

Napi::Value PlaceObject::wrap(Napi::Env env, std::shared_ptr<comm::LinkBlock> block, bool is_host) {
  PlaceParts parts{std::move(block), is_host};
  return env.GetInstanceData<Constructors>()->place.New({Napi::External<PlaceParts>::New(env, &parts)});
}

PlaceObject::PlaceObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<PlaceObject>(info) {
  const Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsExternal()) throw Napi::TypeError::New(env, "places are made by a communicator");
  const PlaceParts& parts = *info[0].As<Napi::External<PlaceParts>>().Data();
  block_ = parts.block;
  Napi::Object self = info.This().As<Napi::Object>();
  self.Set("bytes", Napi::Number::New(env, static_cast<double>(block_->bytes())));
  self.Set("memory", env.Null());
  if (!parts.is_host) return;
  auto* held = new std::shared_ptr(block_);
  self.Set("memory", Napi::ArrayBuffer::New(
                         env, block_->data(), block_->bytes(),
                         [](Napi::Env, void*, std::shared_ptr<comm::LinkBlock>* owner) { delete owner; }, held));
}

Napi::Value PlaceObject::free(const Napi::CallbackInfo& info) {
  block_.reset();
  return info.Env().Undefined();
}

std::shared_ptr<comm::LinkBlock> PlaceObject::unwrap(const Napi::Value& value) {
  const bool is_place =
      value.IsObject() && value.As<Napi::Object>().InstanceOf(value.Env().GetInstanceData<Constructors>()->place.Value());
  if (!is_place) throw Error(kTensorMismatch, "expected a communicator's place");
  const PlaceObject* object = PlaceObject::Unwrap(value.As<Napi::Object>());
  if (!object->block_) throw Error(kTensorMismatch, "the place was freed before");
  return object->block_;
}

Napi::Function CommunicatorObject::define(Napi::Env env) {
  using C = CommunicatorObject;
  return DefineClass(env, "Communicator",
                     {InstanceMethod<&C::place>("place"), InstanceMethod<&C::exchange>("exchange"), InstanceMethod<&C::close>("close")});
}

CommunicatorObject::CommunicatorObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CommunicatorObject>(info) {
  const Napi::Env env = info.Env();
  guarded(env, [&] {
    if (!info[0].IsObject()) throw Error(kTensorMismatch, "expected the communicator's options");
    if (!info[1].IsFunction()) throw Error(kTensorMismatch, "expected a function for onFailed");
    const Napi::Object from = info[0].As<Napi::Object>();
    comm::CommunicatorOptions options;
    const Napi::Uint8Array id = to_bytes(from.Get("id"), "id");
    if (id.ByteLength() != sizeof options.id.internal)
      throw Error(kTensorMismatch, "id: expected 128 bytes, got " + std::to_string(id.ByteLength()));
    std::memcpy(options.id.internal, id.Data(), sizeof options.id.internal);
    options.rank = static_cast<int>(to_int(from.Get("rank"), "rank"));
    options.ranks = static_cast<int>(to_int(from.Get("ranks"), "ranks"));
    options.timeout = std::chrono::milliseconds(std::max<std::int64_t>(1, to_int(from.Get("timeoutMs"), "timeoutMs")));
    auto memory = std::make_shared<comm::LinkMemory>(make_device(to_text(from.Get("device"), "device")));
    settler_ = Settler::make(env, info[1].As<Napi::Function>(), "pipelora communicator");
    communicator_ = std::make_unique<comm::NcclCommunicator>(
        library(), std::move(memory), options, [settler = settler_](const std::string& reason) {
          settler->post([reason](Napi::Env now, Napi::Function callback) { callback.Call({Napi::String::New(now, reason)}); });
        });
    return env.Undefined();
  });
}

CommunicatorObject::~CommunicatorObject() {
  communicator_.reset();
  if (settler_ && settler_->alive) settler_->function.Release();
}

Napi::Value CommunicatorObject::place(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    comm::LinkMemory& memory = *communicator_->memory();
    return PlaceObject::wrap(info.Env(), memory.take(to_size(info[0], "bytes")), memory.device().is_host());
  });
}

Napi::Value CommunicatorObject::exchange(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto deferred = Napi::Promise::Deferred::New(env);
  try {
    if (!info[0].IsArray()) throw Error(kTensorMismatch, "expected an array of transfers");
    const Napi::Array list = info[0].As<Napi::Array>();
    std::vector<comm::Transfer> group;
    for (std::uint32_t i = 0; i < list.Length(); ++i) group.push_back(to_transfer(list.Get(i)));
    std::function<void()> ready;
    // Let go of on JavaScript's thread alone, when the group is done.
    const auto announce = std::make_shared<Napi::FunctionReference>();
    announce->SuppressDestruct();
    if (info[1].IsFunction()) {
      *announce = Napi::Persistent(info[1].As<Napi::Function>());
      announce->SuppressDestruct();
      ready = [settler = settler_, announce] {
        settler->post([announce](Napi::Env, Napi::Function) { announce->Value().Call({}); });
      };
    }
    if ((*pending_)++ == 0) settler_->function.Ref(env);
    communicator_->exchange(std::move(group), std::move(ready), [settler = settler_, pending = pending_, deferred,
                                                                 announce](const std::string& reason) {
      settler->post([settler = settler.get(), pending, deferred, announce, reason](Napi::Env now, Napi::Function) {
        announce->Reset();
        if (--*pending == 0) settler->function.Unref(now);
        if (reason.empty())
          deferred.Resolve(now.Undefined());
        else
          deferred.Reject(to_js_error(now, std::make_exception_ptr(Error(kLinkFailed, reason))).Value());
      });
    });
  } catch (...) {
    deferred.Reject(to_js_error(env, std::current_exception()).Value());
  }
  return deferred.Promise();
}

Napi::Value CommunicatorObject::close(const Napi::CallbackInfo& info) {
  communicator_->close();
  return info.Env().Undefined();
}

Napi::Value nccl_unique_id(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    comm::NcclUniqueId id;
    if (const int status = library().get_unique_id(&id); status != comm::kNcclSuccess)
      throw Error(kLinkFailed, std::string("ncclGetUniqueId: ") + library().get_error_string(status));
    return Napi::Buffer<char>::Copy(info.Env(), id.internal, sizeof id.internal);
  });
}

Napi::Value nccl_capabilities(Napi::Env env) {
  const comm::NcclOpened& opened = comm::nccl_library();
  const bool usable = opened.library != nullptr;
  Napi::Object nccl = Napi::Object::New(env);
  nccl.Set("version", usable ? Napi::String::New(env, opened.library->version).As<Napi::Value>() : env.Null());
  nccl.Set("reason", usable ? env.Null() : Napi::String::New(env, opened.reason).As<Napi::Value>());
  nccl.Set("hostMemory", Napi::Boolean::New(env, usable && opened.library->host_memory));
  return nccl;
}

}  // namespace pipelora::addon
