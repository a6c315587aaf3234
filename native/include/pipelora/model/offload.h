// Activations that wait for the backward pass in the host's memory: copied there beside the blocks that follow, and back
// beside those that come before them in the backward pass.
#pragma once

#include <memory>
#include <vector>

#include "pipelora/model/block.h"

namespace pipelora {

/// What the blocks of one micro-batch leave on the host. While a block runs, at most one other's whole activations and two
/// inputs are on their way out, and as much is on its way back.
class Offloads {
 public:
  Offloads(Ops& ops, std::size_t layers) : ops_(ops), sent_(layers) {}

  /// Before a block's forward pass; `whole`: of one that is sent whole.
  void make_room(bool whole);
  /// After it: all it saved, or its input alone.
  void send(std::size_t layer, BlockSaved& saved, bool whole);
  /// All that was sent has left the device.
  void settle();

  /// Before a block's backward pass: what it needs is there again, and what those below need next is on its way.
  void restore(std::size_t layer, BlockSaved& saved);

 private:
  /// The oldest `count` that are on their way out.
  void leave(std::size_t count);

  struct Sent {
    std::unique_ptr<Offloaded> tensors;
    bool whole = false;
  };
  Ops& ops_;
  std::vector<Sent> sent_;           // by layer
  std::vector<std::size_t> leaving_;  // layers whose memory on the device is not given back yet, in order
};

}  // namespace pipelora
