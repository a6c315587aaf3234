// Tensors between JavaScript and the device.
#include "addon/engine_object.h"

#include "addon/convert.h"
#include "addon/engine_queue.h"
#include "addon/pinned_arrays.h"
#include "addon/tensor_object.h"

namespace pipelora::addon {

Napi::Value EngineObject::read(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    auto handle = TensorObject::unwrap(info[0], *thread_, false);
    return queue(
        info.Env(),
        [thread = thread_.get(), handle](Engine& engine) {
          return std::make_unique<std::vector<std::uint8_t>>(engine.read(thread->tensors().at(*handle)));
        },
        [](Napi::Env env, std::unique_ptr<std::vector<std::uint8_t>> bytes) {
          std::vector<std::uint8_t>* held = bytes.release();
          return Napi::Buffer<std::uint8_t>::New(
              env, held->data(), held->size(), [](Napi::Env, std::uint8_t*, std::vector<std::uint8_t>* owner) { delete owner; }, held);
        });
  });
}

Napi::Value EngineObject::read_into(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    auto handle = TensorObject::unwrap(info[0], *thread_, false);
    // The bytes are written on the engine's thread.
    auto pieces = PinnedArrays::of(info[1], "pieces");
    return queue(
        info.Env(),
        [thread = thread_.get(), handle, spans = pieces->spans()](Engine& engine) {
          engine.read(thread->tensors().at(*handle), spans);
          return true;
        },
        [pieces](Napi::Env env, bool) {
          pieces->expect_in_place();
          return env.Undefined();
        });
  });
}

Napi::Value EngineObject::write(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    // The bytes are read on the engine's thread.
    auto pieces = PinnedArrays::of(info[0], "pieces");
    const auto [rows, cols] = to_extents(info[1]);
    const DType dtype = dtype_from_name(to_text(info[2], "dtype"));
    return queue(
        info.Env(),
        [thread = thread_.get(), spans = pieces->spans(), dtype, rows = rows, cols = cols](Engine& engine) {
          return thread->tensors().hold(engine.write(spans, dtype, rows, cols));
        },
        [thread = thread_, pieces](Napi::Env env, std::shared_ptr<TensorHandle> handle) {
          pieces->expect_in_place();
          return TensorObject::wrap(env, thread, std::move(handle));
        });
  });
}

Napi::Value EngineObject::copy(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_tensor(info.Env(), [thread = thread_.get(), handle = TensorObject::unwrap(info[0], *thread_, false)](Engine& engine) {
      return engine.take_in(thread->tensors().at(*handle));
    });
  });
}

}  // namespace pipelora::addon
