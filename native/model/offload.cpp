#include "pipelora/model/offload.h"

#include <algorithm>
#include <array>

namespace pipelora {

namespace {

/// How many blocks may be copied to the host while the next one runs.
constexpr std::size_t kLeaving = 3;
/// How many layers ahead of the backward pass activations are fetched.
constexpr std::size_t kFetchedAhead = 3;

std::vector<Buffer*> parts(BlockSaved& saved, bool whole) {
  if (!whole) return {&saved.x};
  return {&saved.x,   &saved.qkv, &saved.expanded, &saved.attn,    &saved.lse,   &saved.mid, &saved.gate_up,
          &saved.before_qkv, &saved.before_o, &saved.before_gate_up, &saved.before_down, &saved.before_shared_gate, &saved.before_q_b, &saved.before_kv_b,
          &saved.experts.before_router, &saved.attn_out, &saved.mlp_out, &saved.share, &saved.experts.logits, &saved.experts.weights, &saved.experts.gate_up};
}

class Held final : public Offloaded {
 public:
  explicit Held(std::vector<Buffer> tensors) : tensors_(std::move(tensors)) {}
  void leave() override {}
  void fetch() override {}
  std::vector<Buffer> take() override { return std::move(tensors_); }

 private:
  std::vector<Buffer> tensors_;
};

}  // namespace

std::unique_ptr<Offloaded> Ops::offload(std::vector<Buffer> tensors) { return std::make_unique<Held>(std::move(tensors)); }

void Offloads::make_room(bool whole) {
  std::size_t first = leaving_.size() - std::min(leaving_.size(), kLeaving);
  for (std::size_t i = first; whole && i < leaving_.size(); ++i)
    if (sent_[leaving_[i]].whole) first = i + 1;
  leave(first);
}

void Offloads::leave(std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) sent_[leaving_[i]].tensors->leave();
  leaving_.erase(leaving_.begin(), leaving_.begin() + static_cast<std::ptrdiff_t>(count));
}

void Offloads::send(std::size_t layer, BlockSaved& saved, bool whole) {
  std::vector<Buffer> tensors;
  for (Buffer* part : parts(saved, whole))
    if (part != nullptr) tensors.push_back(std::move(*part));
  sent_[layer] = {ops_.offload(std::move(tensors)), whole};
  leaving_.push_back(layer);
}

void Offloads::settle() { leave(leaving_.size()); }

void Offloads::restore(std::size_t layer, BlockSaved& saved) {
  if (sent_[layer].tensors) {
    std::vector<Buffer> tensors = sent_[layer].tensors->take();
    auto next = tensors.begin();
    for (Buffer* part : parts(saved, sent_[layer].whole))
      if (part != nullptr) *part = std::move(*next++);
    sent_[layer].tensors.reset();
  }
  bool whole = false;
  for (std::size_t below = layer; below-- > 0 && layer - below <= kFetchedAhead;) {
    Sent& sent = sent_[below];
    if (!sent.tensors) continue;
    if (sent.whole && whole) break;
    whole = whole || sent.whole;
    sent.tensors->fetch();
  }
}

}  // namespace pipelora
