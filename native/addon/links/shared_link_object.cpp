#include "addon/links/shared_link_object.h"

#include <charconv>

#include "addon/convert.h"
#include "pipelora/core/error.h"

namespace pipelora::addon {

namespace {

/// Runs `work` and turns what it throws into a JavaScript exception.
template <class Work>
auto guarded(Napi::Env env, Work work) {
  try {
    return work();
  } catch (const comm::LinkError& error) {
    throw to_js_error(env, std::make_exception_ptr(Error(kLinkFailed, error.what())));
  } catch (...) {
    throw to_js_error(env, std::current_exception());
  }
}

Napi::Function to_function(const Napi::Value& value, const char* what) {
  if (!value.IsFunction()) throw Error(kTensorMismatch, std::string("expected a function for ") + what);
  return value.As<Napi::Function>();
}

/// The link's memory; the mapping lives as long as the array does.
Napi::Value view_of(Napi::Env env, const std::shared_ptr<comm::SharedMemory>& memory) {
  auto* held = new std::shared_ptr(memory);
  return Napi::ArrayBuffer::New(
      env, memory->data(), memory->capacity(),
      [](Napi::Env, void*, std::shared_ptr<comm::SharedMemory>* owner) { delete owner; }, held);
}

std::function<void(const std::string&)> on_closed(const std::shared_ptr<Settler>& settler) {
  return [settler](const std::string& reason) {
    settler->post([reason](Napi::Env env, Napi::Function callback) { callback.Call({Napi::String::New(env, reason)}); });
  };
}

template <class Link>
void require_open(const std::unique_ptr<Link>& link) {
  if (!link) throw Error(kLinkFailed, "the shared memory link was closed");
}

void let_go(Settler& settler) {
  if (settler.alive) settler.function.Release();
}

}  // namespace

Napi::Function SharedSenderObject::define(Napi::Env env) {
  using S = SharedSenderObject;
  return DefineClass(env, "SharedSender",
                     {InstanceMethod<&S::reserve>("reserve"), InstanceMethod<&S::publish>("publish"),
                      InstanceMethod<&S::granted>("granted"), InstanceMethod<&S::wait_for_progress>("waitForProgress"),
                      InstanceMethod<&S::close>("close")});
}

SharedSenderObject::SharedSenderObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SharedSenderObject>(info) {
  const Napi::Env env = info.Env();
  guarded(env, [&] {
    const std::int64_t capacity = to_int(info[0], "capacity");
    if (capacity <= 0) throw Error(kTensorMismatch, "capacity: expected a positive number, got " + std::to_string(capacity));
    progress_ = Settler::make(env, to_function(info[1], "onProgress"), "pipelora link");
    closed_ = Settler::make(env, to_function(info[2], "onClosed"), "pipelora link");
    link_ = std::make_unique<comm::SharedSender>(
        static_cast<std::size_t>(capacity),
        [settler = progress_] { settler->post([](Napi::Env, Napi::Function callback) { callback.Call({}); }); },
        on_closed(closed_));
    const comm::SharedAddress at = link_->address();
    Napi::Object self = info.This().As<Napi::Object>(), address = Napi::Object::New(env);
    address.Set("pid", Napi::Number::New(env, at.pid));
    address.Set("fd", Napi::Number::New(env, at.fd));
    address.Set("token", Napi::String::New(env, std::to_string(at.token)));
    self.Set("address", address);
    self.Set("memory", view_of(env, link_->memory()));
  });
}

SharedSenderObject::~SharedSenderObject() {
  link_.reset();
  for (const auto& settler : {progress_, closed_})
    if (settler) let_go(*settler);
}

Napi::Value SharedSenderObject::reserve(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    require_open(link_);
    const std::int64_t bytes = to_int(info[0], "bytes");
    if (bytes < 0) throw Error(kTensorMismatch, "bytes: expected no negative number, got " + std::to_string(bytes));
    const auto offset = link_->reserve(static_cast<std::size_t>(bytes));
    return offset ? Napi::Number::New(info.Env(), static_cast<double>(*offset)) : info.Env().Null();
  });
}

Napi::Value SharedSenderObject::publish(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    require_open(link_);
    link_->publish(static_cast<std::size_t>(to_int(info[0], "offset")));
    return info.Env().Undefined();
  });
}

Napi::Value SharedSenderObject::granted(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    require_open(link_);
    return Napi::Number::New(info.Env(), static_cast<double>(link_->granted()));
  });
}

Napi::Value SharedSenderObject::wait_for_progress(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    require_open(link_);
    link_->wait_for_progress();
    return info.Env().Undefined();
  });
}

Napi::Value SharedSenderObject::close(const Napi::CallbackInfo& info) {
  link_.reset();
  return info.Env().Undefined();
}

Napi::Function SharedReceiverObject::define(Napi::Env env) {
  using R = SharedReceiverObject;
  return DefineClass(env, "SharedReceiver",
                     {InstanceMethod<&R::release>("release"), InstanceMethod<&R::grant>("grant"), InstanceMethod<&R::close>("close")});
}

SharedReceiverObject::SharedReceiverObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SharedReceiverObject>(info) {
  const Napi::Env env = info.Env();
  guarded(env, [&] {
    if (!info[0].IsObject()) throw Error(kTensorMismatch, "expected the shared memory's address");
    const Napi::Object at = info[0].As<Napi::Object>();
    comm::SharedAddress address;
    address.pid = static_cast<int>(to_int(at.Get("pid"), "pid"));
    address.fd = static_cast<int>(to_int(at.Get("fd"), "fd"));
    const std::string token = to_text(at.Get("token"), "token");
    if (std::from_chars(token.data(), token.data() + token.size(), address.token).ptr != token.data() + token.size())
      throw Error(kTensorMismatch, "token: expected a number, got " + token);
    message_ = Settler::make(env, to_function(info[1], "onMessage"), "pipelora link");
    closed_ = Settler::make(env, to_function(info[2], "onClosed"), "pipelora link");
    link_ = std::make_unique<comm::SharedReceiver>(
        address,
        [settler = message_](std::size_t offset, std::size_t bytes) {
          settler->post([offset, bytes](Napi::Env now, Napi::Function callback) {
            callback.Call({Napi::Number::New(now, static_cast<double>(offset)), Napi::Number::New(now, static_cast<double>(bytes))});
          });
        },
        on_closed(closed_));
    info.This().As<Napi::Object>().Set("memory", view_of(env, link_->memory()));
  });
}

SharedReceiverObject::~SharedReceiverObject() {
  link_.reset();
  for (const auto& settler : {message_, closed_})
    if (settler) let_go(*settler);
}

Napi::Value SharedReceiverObject::release(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    // A tensor may be used longer than its link lived.
    if (link_) link_->release(static_cast<std::size_t>(to_int(info[0], "offset")));
    return info.Env().Undefined();
  });
}

Napi::Value SharedReceiverObject::grant(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    if (link_) link_->grant(static_cast<std::uint64_t>(to_int(info[0], "bytes")));
    return info.Env().Undefined();
  });
}

Napi::Value SharedReceiverObject::close(const Napi::CallbackInfo& info) {
  link_.reset();
  return info.Env().Undefined();
}

}  // namespace pipelora::addon
