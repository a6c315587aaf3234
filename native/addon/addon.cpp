#include <napi.h>

#include "addon/links/comm.h"
#include "addon/engine_object.h"
#include "addon/frozen_object.h"
#include "addon/links/nccl_object.h"
#include "addon/low_rank.h"
#include "addon/product.h"
#include "addon/quantise.h"
#include "addon/random.h"
#include "addon/tensor_object.h"
#include "pipelora/ops/cpu.h"
#include "pipelora/ops/cuda.h"

namespace pipelora::addon {

namespace {

#ifdef PIPELORA_CUDA
Napi::Value cuda_capabilities(Napi::Env env) {
  const CudaInfo info = cuda_info();
  Napi::Array devices = Napi::Array::New(env, info.devices.size());
  for (std::size_t i = 0; i < info.devices.size(); ++i) {
    const CudaDevice& found = info.devices[i];
    Napi::Object device = Napi::Object::New(env);
    Napi::Array capability = Napi::Array::New(env, 2);
    capability.Set(0u, Napi::Number::New(env, found.major));
    capability.Set(1u, Napi::Number::New(env, found.minor));
    device.Set("index", Napi::Number::New(env, found.index));
    device.Set("name", Napi::String::New(env, found.name));
    device.Set("capability", capability);
    device.Set("totalBytes", Napi::Number::New(env, static_cast<double>(found.total_bytes)));
    device.Set("pciBusId", Napi::String::New(env, found.pci_bus_id));
    device.Set("freeBytes", Napi::Number::New(env, static_cast<double>(found.free_bytes)));
    devices.Set(static_cast<std::uint32_t>(i), device);
  }
  Napi::Object cuda = Napi::Object::New(env);
  cuda.Set("runtime", Napi::Number::New(env, info.runtime));
  cuda.Set("driver", Napi::Number::New(env, info.driver));
  cuda.Set("devices", devices);
  cuda.Set("reason", info.reason.empty() ? env.Null() : Napi::String::New(env, info.reason).As<Napi::Value>());
  return cuda;
}
#else
Napi::Value cuda_capabilities(Napi::Env env) { return env.Null(); }
#endif

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
  result.Set("cuda", cuda_capabilities(env));
  result.Set("nccl", nccl_capabilities(env));
  return result;
}

}  // namespace

static Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto* constructors = new Constructors;
  const Napi::Function engine = EngineObject::define(env), tensor = TensorObject::define(env);
  constructors->place = Napi::Persistent(PlaceObject::define(env));
  constructors->engine = Napi::Persistent(engine);
  constructors->tensor = Napi::Persistent(tensor);
  constructors->frozen = Napi::Persistent(FrozenObject::define(env));
  env.SetInstanceData(constructors);
  exports.Set("capabilities", Napi::Function::New<capabilities>(env, "capabilities"));
  exports.Set("openEngine", Napi::Function::New<EngineObject::open>(env, "openEngine"));
  exports.Set("fillNormal", Napi::Function::New<fill_normal>(env, "fillNormal"));
  exports.Set("fillUniform", Napi::Function::New<fill_uniform>(env, "fillUniform"));
  exports.Set("lowRank", Napi::Function::New<low_rank>(env, "lowRank"));
  exports.Set("quantize", Napi::Function::New<quantize>(env, "quantize"));
  exports.Set("dequantize", Napi::Function::New<dequantize>(env, "dequantize"));
  exports.Set("addLowRank", Napi::Function::New<add_low_rank>(env, "addLowRank"));
  exports.Set("product", Napi::Function::New<product>(env, "product"));
  define_comm(env, exports);
  return exports;
}

}  // namespace pipelora::addon

static Napi::Object init_module(Napi::Env env, Napi::Object exports) { return pipelora::addon::init(env, exports); }
NODE_API_MODULE(pipelora, init_module)
