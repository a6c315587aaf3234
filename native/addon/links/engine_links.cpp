// Tensors and gradients on their way from and to a communicator's memory.
#include "addon/engine_queue.h"
#include "addon/links/nccl_object.h"
#include "addon/tensor_object.h"

namespace pipelora::addon {

namespace {

/// A link's memory as a tensor that takes its first bytes.
Tensor view_of(const comm::LinkBlock& block, DType dtype, std::int64_t rows, std::int64_t cols) {
  const Tensor view(block.data(), dtype, rows, cols);
  if (view.bytes() > block.bytes())
    throw Error(kTensorMismatch, "a place of " + std::to_string(block.bytes()) + " bytes: a tensor of " + std::to_string(view.bytes()) + " does not fit");
  return view;
}

Tensor floats_of(const comm::LinkBlock& block, std::int64_t count) { return view_of(block, DType::f32, 1, count); }

}  // namespace

Napi::Value EngineObject::read_to(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_void(info.Env(), [thread = thread_.get(), handle = TensorObject::unwrap(info[0], *thread_, false),
                                   block = PlaceObject::unwrap(info[1])](Engine& engine) {
      engine.ops().copy(thread->tensors().at(*handle), view_of(*block, handle->dtype, handle->rows, handle->cols));
      block->used_until(engine.ops().mark());
    });
  });
}

Napi::Value EngineObject::write_from(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    const auto [rows, cols] = to_extents(info[1]);
    return queue_tensor(info.Env(), [block = PlaceObject::unwrap(info[0]), rows = rows, cols = cols, dtype = dtype_from_name(to_text(info[2], "dtype"))](Engine& engine) {
      Buffer taken = engine.take_in(view_of(*block, dtype, rows, cols));
      block->used_until(engine.ops().mark());
      return taken;
    });
  });
}

Napi::Value EngineObject::encode(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_tensor(info.Env(), [thread = thread_.get(), handle = TensorObject::unwrap(info[0], *thread_, true),
                                     dtype = dtype_from_name(to_text(info[1], "dtype"))](Engine& engine) {
      return engine.encode(thread->tensors().take(*handle), dtype);
    });
  });
}

Napi::Value EngineObject::decode(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_tensor(info.Env(), [thread = thread_.get(), handle = TensorObject::unwrap(info[0], *thread_, true)](Engine& engine) {
      return engine.decode(thread->tensors().take(*handle));
    });
  });
}

Napi::Value EngineObject::gradients_to(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_void(info.Env(), [block = PlaceObject::unwrap(info[0]), adapter = to_adapter(info[1])](Engine& engine) {
      engine.gradients_into(floats_of(*block, engine.gradient_count(adapter)), adapter);
      block->used_until(engine.ops().mark());
    });
  });
}

Napi::Value EngineObject::set_gradients_from(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_void(info.Env(), [block = PlaceObject::unwrap(info[0]), adapter = to_adapter(info[1])](Engine& engine) {
      engine.set_gradients_from(floats_of(*block, engine.gradient_count(adapter)), adapter);
      block->used_until(engine.ops().mark());
    });
  });
}

Napi::Value EngineObject::sum_parts(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    const std::int64_t count = to_int(info[1], "count"), size = to_int(info[2], "size");
    if (count < 1 || size < 0) throw Error(kTensorMismatch, "expected at least one part, of no negative size");
    return queue_void(info.Env(), [parts = PlaceObject::unwrap(info[0]), sum = PlaceObject::unwrap(info[3]), count, size](Engine& engine) {
      const Tensor all = view_of(*parts, DType::f32, count, size), total = floats_of(*sum, size);
      engine.ops().zero(total);
      for (std::int64_t part = 0; part < count; ++part) engine.ops().add_scaled(all.row_range(part, 1), 1.0f, total);
      parts->used_until(engine.ops().mark());
      sum->used_until(engine.ops().mark());
    });
  });
}

Napi::Value EngineObject::gradient_count(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue(
        info.Env(), [adapter = to_adapter(info[0])](Engine& engine) { return engine.gradient_count(adapter); },
        [](Napi::Env env, std::int64_t count) { return Napi::Number::New(env, static_cast<double>(count)); });
  });
}

}  // namespace pipelora::addon
