#include "pipelora/model/mixer.h"

#include "pipelora/core/error.h"

namespace pipelora {

std::unique_ptr<Mixer> make_mixer(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base) {
  if (spec.delta && spec.latent)
    throw Error(kTensorMismatch, "block " + std::to_string(spec.index) + ": expected one kind of attention, got a gated delta net and latent attention");
  if ((spec.delta || spec.latent) && (spec.chunked || spec.plain_head_norms))
    throw Error(kTensorMismatch, "block " + std::to_string(spec.index) + ": expected chunks and norms without weights with softmax attention over heads alone");
  if (spec.delta) return make_delta_mixer(ops, arena, arch, spec, base);
  if (spec.latent) return make_latent_mixer(ops, arena, arch, spec, base);
  return make_softmax_mixer(ops, arena, arch, spec, base);
}

std::vector<LinearSpec> pick_linears(const BlockSpec& spec, std::initializer_list<Role> roles) {
  std::vector<LinearSpec> found;
  for (const Role role : roles)
    for (const LinearSpec& linear : spec.linears)
      if (linear.role == role) found.push_back(linear);
  return found;
}

std::unique_ptr<LinearGroup> make_group(Ops& ops, Arena& arena, const BlockSpec& spec, const char* what, const std::vector<LinearSpec>& linears,
                                        std::int64_t in, std::int64_t out, BaseWeights& base) {
  std::int64_t total = 0;
  bool good = !linears.empty();
  for (const LinearSpec& linear : linears) {
    good = good && linear.in == in;
    total += linear.out;
  }
  if (!good || total != out)
    throw Error(kTensorMismatch, "block " + std::to_string(spec.index) + ": expected " + what + " of " + shape_text(out, in) +
                                     ", the description adds up to " + std::to_string(total) + " outputs");
  return std::make_unique<LinearGroup>(ops, arena, linears, base);
}

}  // namespace pipelora
