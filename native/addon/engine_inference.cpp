// An engine that answers: caches of sequences, forward passes over them, and drawn tokens.
#include "addon/engine_object.h"

#include "addon/convert.h"
#include "addon/engine_queue.h"
#include "addon/tensor_object.h"
#include "pipelora/core/error.h"

namespace pipelora::addon {

Napi::Value EngineObject::create_cache(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue(
        info.Env(),
        [sequences = to_int(info[0], "sequences"), rows = to_int(info[1], "rows")](Engine& engine) {
          return engine.create_cache(sequences, rows);
        },
        [](Napi::Env env, std::size_t number) { return Napi::Number::New(env, static_cast<double>(number)); });
  });
}

Napi::Value EngineObject::free_cache(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_void(info.Env(), [cache = static_cast<std::size_t>(to_int(info[0], "cache"))](Engine& engine) { engine.free_cache(cache); });
  });
}

Napi::Value EngineObject::infer(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    const auto segment = static_cast<std::size_t>(to_int(info[0], "segment")), cache = static_cast<std::size_t>(to_int(info[1], "cache"));
    auto of = to_cached_sequences(info[2]);
    std::vector<std::int32_t> tokens;
    if (!info[3].IsNull() && !info[3].IsUndefined()) tokens = to_int32s(info[3], "tokens");
    auto input = info[4].IsNull() || info[4].IsUndefined() ? nullptr : TensorObject::unwrap(info[4], *thread_, true);
    const std::size_t adapter = to_adapter(info[5]);
    return queue_tensor(info.Env(), [thread = thread_.get(), segment, cache, of = std::move(of), tokens = std::move(tokens), input, adapter](Engine& engine) {
      return engine.infer(segment, cache, of, tokens, input ? thread->tensors().take(*input) : Buffer(), adapter);
    });
  });
}

namespace {

/// The part of a draw that differs from token to token.
struct Draw {
  std::int64_t row = 0, likeliest = -1;
  std::uint32_t draw = 0;
  std::vector<std::int32_t> seen, biased;
  std::vector<float> biases;
};

Draw to_draw(const Napi::Value& value) {
  if (!value.IsObject()) throw Error(kTensorMismatch, "a draw: expected an object");
  const auto from = value.As<Napi::Object>();
  Draw draw;
  draw.row = to_int(from.Get("row"), "row");
  draw.draw = static_cast<std::uint32_t>(to_int(from.Get("draw"), "draw"));
  draw.likeliest = to_int(from.Get("likeliest"), "likeliest");
  draw.seen = to_int32s(from.Get("seen"), "seen");
  draw.biased = to_int32s(from.Get("biased"), "biased");
  draw.biases = to_float32s(from.Get("biases"), "biases");
  return draw;
}

Napi::Object likely_token(Napi::Env env, const Drawn::Likely& from) {
  auto out = Napi::Object::New(env);
  out.Set("token", from.token);
  out.Set("logProbability", static_cast<double>(from.log_probability));
  return out;
}

}  // namespace

Napi::Value EngineObject::sample(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    auto handle = TensorObject::unwrap(info[0], *thread_, false);
    return queue(
        info.Env(),
        [thread = thread_.get(), handle, call = to_sampling(info[1]), draw = to_draw(info[2])](Engine& engine) mutable {
          const Tensor logits = thread->tensors().at(*handle);
          if (draw.row < 0 || draw.row >= logits.rows)
            throw Error(kTensorMismatch, "row " + std::to_string(draw.row) + " of logits: there are " + std::to_string(logits.rows));
          call.logits = logits.row_range(draw.row, 1);
          call.seen = draw.seen;
          call.biased = draw.biased;
          call.biases = draw.biases;
          call.draw = draw.draw;
          return engine.sample(call, draw.likeliest);
        },
        [](Napi::Env env, const Drawn& drawn) {
          const auto likely = Napi::Array::New(env, drawn.likeliest.size());
          for (std::size_t i = 0; i < drawn.likeliest.size(); ++i) likely.Set(static_cast<std::uint32_t>(i), likely_token(env, drawn.likeliest[i]));
          auto out = likely_token(env, {drawn.token, drawn.log_probability});
          out.Set("likeliest", likely);
          return out;
        });
  });
}

}  // namespace pipelora::addon
