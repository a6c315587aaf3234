#include <napi.h>

#include "addon/engine_object.h"
#include "addon/quantise.h"
#include "addon/random.h"
#include "addon/tensor_object.h"
#include "pipelora/cpu.h"

namespace pipelora::addon {

namespace {

Napi::Value capabilities(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const CpuInfo machine = cpu_info();
  Napi::Object cpu = Napi::Object::New(env);
  cpu.Set("isa", Napi::String::New(env, machine.isa));
  cpu.Set("threads", Napi::Number::New(env, machine.threads));
  cpu.Set("bf16", Napi::Boolean::New(env, machine.bf16));
  cpu.Set("memoryBytes", Napi::Number::New(env, static_cast<double>(machine.memory_bytes)));
  Napi::Object result = Napi::Object::New(env);
  result.Set("version", Napi::String::New(env, PIPELORA_VERSION));
  result.Set("build", Napi::String::New(env, PIPELORA_BUILD));
  result.Set("cpu", cpu);
  result.Set("cuda", env.Null());
  return result;
}

}  // namespace

static Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto* constructors = new Constructors;
  const Napi::Function engine = EngineObject::define(env), tensor = TensorObject::define(env);
  constructors->engine = Napi::Persistent(engine);
  constructors->tensor = Napi::Persistent(tensor);
  env.SetInstanceData(constructors);
  exports.Set("capabilities", Napi::Function::New<capabilities>(env, "capabilities"));
  exports.Set("Engine", engine);
  exports.Set("fillNormal", Napi::Function::New<fill_normal>(env, "fillNormal"));
  exports.Set("fillUniform", Napi::Function::New<fill_uniform>(env, "fillUniform"));
  exports.Set("quantize", Napi::Function::New<quantize>(env, "quantize"));
  exports.Set("dequantize", Napi::Function::New<dequantize>(env, "dequantize"));
  exports.Set("addLowRank", Napi::Function::New<add_low_rank>(env, "addLowRank"));
  return exports;
}

}  // namespace pipelora::addon

static Napi::Object init_module(Napi::Env env, Napi::Object exports) { return pipelora::addon::init(env, exports); }
NODE_API_MODULE(pipelora, init_module)
