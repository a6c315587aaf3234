#include "addon/engine_object.h"

#include <charconv>

#include "addon/background.h"
#include "addon/convert.h"
#include "addon/engine_queue.h"
#include "addon/frozen_object.h"
#include "addon/tensor_object.h"
#include "pipelora/ops/cpu.h"
#include "pipelora/ops/cuda.h"
#include "pipelora/core/error.h"

namespace pipelora::addon {

namespace {

std::unique_ptr<Ops> make_ops(const std::string& device, DType compute, int threads) {
  if (device == "cpu") return make_cpu_ops(compute, threads);
#ifdef PIPELORA_CUDA
  int index = 0;
  const char* end = device.data() + device.size();
  if (device.starts_with("cuda:") && std::from_chars(device.data() + 5, end, index).ptr == end && device.size() > 5)
    return make_cuda_ops(index, compute);
  throw Error(kDeviceUnavailable, "device " + device + ": expected cpu or cuda:N");
#else
  throw Error(kDeviceUnavailable, "device " + device + ": this build has the CPU only");
#endif
}

Napi::Value to_float_array(Napi::Env env, const std::vector<float>& values) {
  Napi::Float32Array array = Napi::Float32Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

Napi::Value to_text_array(Napi::Env env, const std::vector<std::string>& texts) {
  Napi::Array array = Napi::Array::New(env, texts.size());
  for (std::uint32_t i = 0; i < texts.size(); ++i) array.Set(i, Napi::String::New(env, texts[i]));
  return array;
}

/// What an engine is made of, read from JavaScript's options.
struct EngineOptions {
  std::string device;
  DType compute;
  int threads;
  Arch arch;
  std::size_t arena, host;
  /// Where another engine left some: the layers to take over. The others are freed first.
  std::shared_ptr<FrozenLayers> frozen = nullptr;
  std::map<std::string, FrozenLayers::Wanted> keep = {};

  std::unique_ptr<Engine> make() const {
    if (!frozen) return std::make_unique<Engine>(make_ops(device, compute, threads), arch, arena, host);
    frozen->keep(keep);
    return std::make_unique<Engine>(std::move(*frozen), arch, arena, host);
  }
};

EngineOptions to_options(const Napi::Value& value) {
  if (!value.IsObject()) throw Error(kTensorMismatch, "expected the engine's options");
  const Napi::Object options = value.As<Napi::Object>();
  const std::int64_t threads = to_int(options.Get("threads"), "threads");
  const std::int64_t arena = to_int(options.Get("arenaBytes"), "arenaBytes");
  const std::int64_t host = options.Has("hostBytes") ? to_int(options.Get("hostBytes"), "hostBytes") : 0;
  if (threads < 1 || threads > 1024) throw Error(kTensorMismatch, "threads: expected 1 to 1024, got " + std::to_string(threads));
  if (host < 0) throw Error(kTensorMismatch, "hostBytes: expected no negative number, got " + std::to_string(host));
  if (arena < 0) throw Error(kTensorMismatch, "arenaBytes: expected no negative number, got " + std::to_string(arena));
  const bool takes = options.Has("frozen") && !options.Get("frozen").IsNull();
  return {to_text(options.Get("device"), "device"), dtype_from_name(to_text(options.Get("computeDtype"), "computeDtype")),
          static_cast<int>(threads), to_arch(options.Get("arch")), static_cast<std::size_t>(arena), static_cast<std::size_t>(host),
          takes ? FrozenObject::take(options.Get("frozen")) : nullptr,
          takes ? to_wanted_layers(options.Get("keep")) : std::map<std::string, FrozenLayers::Wanted>()};
}

struct Passed {
  std::shared_ptr<TensorHandle> output;
  double loss_sum;
  std::int64_t label_tokens, correct_tokens;
  std::string not_finite;
};

}  // namespace

Napi::Function EngineObject::define(Napi::Env env) {
  using E = EngineObject;
  return DefineClass(env, "Engine",
                     {InstanceMethod<&E::add_segment>("addSegment"), InstanceMethod<&E::add_adapter>("addAdapter"), InstanceMethod<&E::load_weight>("loadWeight"),
                      InstanceMethod<&E::load_packed>("loadPacked"), InstanceMethod<&E::load_values>("loadValues"),
                      InstanceMethod<&E::missing_weights>("missingWeights"), InstanceMethod<&E::set_matrix>("setMatrix"),
                      InstanceMethod<&E::get_matrix>("getMatrix"), InstanceMethod<&E::matrix_names>("matrixNames"),
                      InstanceMethod<&E::forward>("forward"), InstanceMethod<&E::backward>("backward"),
                      InstanceMethod<&E::watch_inputs>("watchInputs"), InstanceMethod<&E::take_inputs>("takeInputs"),
                      InstanceMethod<&E::discard>("discard"), InstanceMethod<&E::first_values>("firstValues"), InstanceMethod<&E::grad_squares>("gradSquares"),
                      InstanceMethod<&E::gradients>("gradients"), InstanceMethod<&E::set_gradients>("setGradients"),
                      InstanceMethod<&E::optimizer_step>("optimizerStep"), InstanceMethod<&E::zero_grad>("zeroGrad"),
                      InstanceMethod<&E::create_cache>("createCache"), InstanceMethod<&E::free_cache>("freeCache"),
                      InstanceMethod<&E::infer>("infer"), InstanceMethod<&E::sample>("sample"), InstanceMethod<&E::read>("read"),
                      InstanceMethod<&E::read_into>("readInto"), InstanceMethod<&E::write>("write"),
                      InstanceMethod<&E::encode>("encode"), InstanceMethod<&E::decode>("decode"), InstanceMethod<&E::copy>("copy"),
                      InstanceMethod<&E::read_to>("readTo"), InstanceMethod<&E::write_from>("writeFrom"),
                      InstanceMethod<&E::gradients_to>("gradientsTo"),
                      InstanceMethod<&E::set_gradients_from>("setGradientsFrom"),
                      InstanceMethod<&E::sum_parts>("sumParts"), InstanceMethod<&E::gradient_count>("gradientCount"),
                      InstanceMethod<&E::memory>("memory"), InstanceMethod<&E::device_use>("deviceUse"),
                      InstanceMethod<&E::busy_seconds>("busySeconds"), InstanceMethod<&E::close>("close"),
                      InstanceMethod<&E::release>("release")});
}

EngineObject::EngineObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<EngineObject>(info) {
  const Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsExternal()) throw Napi::TypeError::New(env, "engines are made by openEngine()");
  const EngineOptions options = *info[0].As<Napi::External<EngineOptions>>().Data();
  // A device's context, the arena and pinned memory take a while: the thread that will own them makes them.
  thread_ = std::make_shared<EngineThread>([options] { return options.make(); });
  settler_ = Settler::make(env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), "pipelora engine");
}

Napi::Value EngineObject::open(const Napi::CallbackInfo& info) {
  return addon::promised(info, [&] {
    EngineOptions options = to_options(info[0]);
    const Napi::Env env = info.Env();
    const Napi::Object object = env.GetInstanceData<Constructors>()->engine.New({Napi::External<EngineOptions>::New(env, &options)});
    EngineObject* engine = EngineObject::Unwrap(object);
    return engine->queue(
        env, [](Engine&) { return true; }, [engine](Napi::Env, bool) -> Napi::Value { return engine->Value(); });
  });
}

EngineObject::~EngineObject() {
  if (!thread_) return;
  // A pending promise keeps the engine alive, so a collected engine has none. At the process's end there may be one: its job uses this object, so the
  // thread is waited for.
  thread_->join();
  if (settler_->alive) settler_->function.Release();
}

void EngineObject::started(Napi::Env env) {
  Ref();
  if (pending_++ == 0) settler_->function.Ref(env);
}

void EngineObject::finished(Napi::Env env) {
  if (--pending_ == 0) settler_->function.Unref(env);
  Unref();
}

void EngineObject::settle(Job* job) {
  const std::lock_guard lock(settler_->mutex);
  if (!settler_->alive) return;  // the process is ending: nobody waits for the promise
  settler_->function.BlockingCall(job, [this](Napi::Env env, Napi::Function, Job* ended) { end(env, ended); });
}

void EngineObject::end(Napi::Env env, Job* job) {
  const std::unique_ptr<Job> own(job);
  const Napi::HandleScope scope(env);
  if (!own->failure) {
    try {
      own->deferred.Resolve(own->answer(env));
    } catch (...) {
      own->failure = std::current_exception();
    }
  }
  if (own->failure) own->deferred.Reject(to_js_error(env, own->failure).Value());
  finished(env);
}

Napi::Value EngineObject::add_segment(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue(
        info.Env(), [spec = to_segment(info[0])](Engine& engine) mutable { return engine.add_segment(std::move(spec)); },
        [](Napi::Env env, std::size_t number) { return Napi::Number::New(env, static_cast<double>(number)); });
  });
}

Napi::Value EngineObject::add_adapter(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue(
        info.Env(),
        [segment = static_cast<std::size_t>(to_int(info[0], "segment")), layers = to_layers(info[1])](Engine& engine) { return engine.add_adapter(segment, layers); },
        [](Napi::Env env, std::size_t number) { return Napi::Number::New(env, static_cast<double>(number)); });
  });
}

Napi::Value EngineObject::missing_weights(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    const auto segment = static_cast<std::size_t>(to_int(info[0], "segment"));
    return queue(info.Env(), [segment](Engine& engine) { return engine.missing_weights(segment); }, to_text_array);
  });
}

Napi::Value EngineObject::matrix_names(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue(info.Env(), [adapter = to_adapter(info[0])](Engine& engine) { return engine.matrix_names(adapter); }, to_text_array);
  });
}

Napi::Value EngineObject::load_weight(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_void(info.Env(), [segment = static_cast<std::size_t>(to_int(info[0], "segment")), name = to_text(info[1], "name"),
                                   source = to_source(info[2]), hold = to_hold(info[3])](
                                      Engine& engine) { engine.load_weight(segment, name, source, hold); });
  });
}

Napi::Value EngineObject::load_packed(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_void(info.Env(), [segment = static_cast<std::size_t>(to_int(info[0], "segment")), name = to_text(info[1], "name"),
                                   source = to_packed_source(info[2])](Engine& engine) { engine.load_packed(segment, name, source); });
  });
}

Napi::Value EngineObject::load_values(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    const Extents shape = to_extents(info[2]);
    auto values = std::make_shared<std::vector<float>>(to_float32s(info[3], "values"));
    if (static_cast<std::int64_t>(values->size()) != shape.rows * shape.cols)
      throw Error(kTensorMismatch, "values: expected " + shape_text(shape.rows, shape.cols) + ", got " + std::to_string(values->size()));
    return queue_void(info.Env(), [segment = static_cast<std::size_t>(to_int(info[0], "segment")), name = to_text(info[1], "name"), shape, values,
                                   hold = to_hold(info[4])](Engine& engine) {
      engine.load_values(segment, name, {shape.rows, shape.cols}, values->data(), hold);
    });
  });
}

Napi::Value EngineObject::set_matrix(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_void(info.Env(), [name = to_text(info[0], "name"), part = to_part(info[1]), values = to_float32s(info[2], "values"),
                                   adapter = to_adapter(info[3])](Engine& engine) { engine.set_matrix(name, part, values.data(), values.size(), adapter);
    });
  });
}

Napi::Value EngineObject::get_matrix(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue(
        info.Env(),
        [name = to_text(info[0], "name"), part = to_part(info[1]), adapter = to_adapter(info[2])](Engine& engine) { return engine.get_matrix(name, part, adapter); },
        to_float_array);
  });
}

Napi::Value EngineObject::forward(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    auto batch = std::make_shared<MicroBatch>(to_micro_batch(info[1]));
    const auto segment = static_cast<std::size_t>(to_int(info[0], "segment"));
    auto input = info[2].IsNull() || info[2].IsUndefined() ? nullptr : TensorObject::unwrap(info[2], *thread_, true);
    return queue(
        info.Env(),
        [thread = thread_.get(), segment, batch, input](Engine& engine) {
          ForwardResult result = engine.forward(segment, *batch, input ? thread->tensors().take(*input) : Buffer());
          return Passed{thread->tensors().hold(std::move(result.output)), result.loss_sum, result.label_tokens, result.correct_tokens, result.not_finite};
        },
        [thread = thread_](Napi::Env env, Passed passed) {
          Napi::Object result = Napi::Object::New(env);
          result.Set("output", TensorObject::wrap(env, thread, std::move(passed.output)));
          result.Set("lossSum", Napi::Number::New(env, passed.loss_sum));
          result.Set("labelTokens", Napi::Number::New(env, static_cast<double>(passed.label_tokens)));
          result.Set("correctTokens", Napi::Number::New(env, static_cast<double>(passed.correct_tokens)));
          result.Set("notFinite", passed.not_finite.empty() ? env.Null() : Napi::String::New(env, passed.not_finite).As<Napi::Value>());
          return result;
        });
  });
}

Napi::Value EngineObject::backward(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    const auto segment = static_cast<std::size_t>(to_int(info[0], "segment"));
    const std::int64_t batch = to_int(info[1], "batchIndex");
    auto gradient = info[2].IsNull() || info[2].IsUndefined() ? nullptr : TensorObject::unwrap(info[2], *thread_, true);
    return queue_tensor(info.Env(), [thread = thread_.get(), segment, batch, gradient](Engine& engine) {
      return engine.backward(segment, batch, gradient ? thread->tensors().take(*gradient) : Buffer());
    });
  });
}

Napi::Value EngineObject::first_values(const Napi::CallbackInfo& info) {
  return promised(info, [&] { return queue_void(info.Env(), [adapter = to_adapter(info[0])](Engine& engine) { engine.first_values(adapter); }); });
}

Napi::Value EngineObject::discard(const Napi::CallbackInfo& info) {
  return queue_void(info.Env(), [](Engine& engine) { engine.discard(); });
}

Napi::Value EngineObject::watch_inputs(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    if (!info[0].IsArray()) throw Error(kTensorMismatch, "expected an array of names for modules");
    const Napi::Array given = info[0].As<Napi::Array>();
    std::vector<std::string> modules;
    for (std::uint32_t i = 0; i < given.Length(); ++i) modules.push_back(to_text(given.Get(i), "modules"));
    return queue(info.Env(), [modules = std::move(modules)](Engine& engine) { return engine.watch_inputs(modules); }, to_text_array);
  });
}

Napi::Value EngineObject::take_inputs(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue(info.Env(), [module = to_text(info[0], "module")](Engine& engine) { return engine.take_inputs(module); }, to_float_array);
  });
}

Napi::Value EngineObject::gradients(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue(info.Env(), [adapter = to_adapter(info[0])](Engine& engine) { return engine.gradients(adapter); }, to_float_array);
  });
}

Napi::Value EngineObject::set_gradients(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_void(info.Env(), [values = to_float32s(info[0], "values"), adapter = to_adapter(info[1])](Engine& engine) { engine.set_gradients(values, adapter); });
  });
}

Napi::Value EngineObject::grad_squares(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue(
        info.Env(), [adapter = to_adapter(info[0])](Engine& engine) { return engine.grad_squares(adapter); },
        [](Napi::Env env, std::vector<double> values) {
          Napi::Float64Array array = Napi::Float64Array::New(env, values.size());
          std::copy(values.begin(), values.end(), array.Data());
          return array;
        });
  });
}

Napi::Value EngineObject::optimizer_step(const Napi::CallbackInfo& info) {
  return promised(info, [&] {
    return queue_void(info.Env(), [settings = to_adam(info[0]), rates = to_rates(info[0]), adapter = to_adapter(info[1])](Engine& engine) {
      engine.optimizer_step(settings, rates, adapter);
    });
  });
}

Napi::Value EngineObject::zero_grad(const Napi::CallbackInfo& info) {
  return promised(info, [&] { return queue_void(info.Env(), [adapter = to_adapter(info[0])](Engine& engine) { engine.zero_grad(adapter); }); });
}

Napi::Value EngineObject::memory(const Napi::CallbackInfo& info) {
  const EngineMemory memory = thread_->memory();
  Napi::Object result = Napi::Object::New(info.Env());
  const auto set = [&](const char* name, std::size_t bytes) { result.Set(name, Napi::Number::New(info.Env(), static_cast<double>(bytes))); };
  set("weightBytes", memory.weight_bytes);
  set("loraBytes", memory.lora_bytes);
  set("cacheBytes", memory.cache_bytes);
  set("arenaBytes", memory.arena_bytes);
  set("arenaPeakBytes", memory.arena_peak_bytes);
  set("hostBytes", memory.host_bytes);
  return result;
}

Napi::Value EngineObject::device_use(const Napi::CallbackInfo& info) {
  return queue(
      info.Env(), [](Engine& engine) { return engine.ops().device_use(); },
      [](Napi::Env env, DeviceUse use) {
        Napi::Object result = Napi::Object::New(env);
        result.Set("allocatedBytes", Napi::Number::New(env, static_cast<double>(use.allocated)));
        result.Set("takenBytes", Napi::Number::New(env, static_cast<double>(use.taken)));
        return result;
      });
}

Napi::Value EngineObject::busy_seconds(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), thread_->busy_seconds());
}

Napi::Value EngineObject::release(const Napi::CallbackInfo& info) {
  const Napi::Value left = queue(
      info.Env(), [thread = thread_.get()](Engine&) { return thread->release(); },
      [](Napi::Env env, FrozenLayers frozen) { return FrozenObject::wrap(env, std::move(frozen)); });
  thread_->close([] {});
  return left;
}

Napi::Value EngineObject::close(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto* job = new Job(env);
  job->answer = [](Napi::Env now) { return now.Undefined(); };
  const Napi::Promise promise = job->deferred.Promise();
  started(env);
  thread_->close([this, job] {
    settle(job);
  });
  return promise;
}

}  // namespace pipelora::addon
