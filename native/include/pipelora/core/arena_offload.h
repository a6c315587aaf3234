// Tensors that leave an arena and come back to it: their places there. What moves the bytes is the device's.
#pragma once

#include <utility>
#include <vector>

#include "pipelora/ops/ops.h"

namespace pipelora {

class ArenaOffload : public Offloaded {
 public:
  void leave() final {
    if (state_ != State::leaving) return;
    left();
    tensors_.clear();
    state_ = State::away;
  }

  void fetch() final {
    leave();
    if (state_ != State::away) return;
    for (const Tensor& shape : shapes_)
      tensors_.push_back(shape ? arena_.tensor("activations back from the host", shape.dtype, shape.rows, shape.cols) : Buffer());
    bring_back();
    state_ = State::coming;
  }

  std::vector<Buffer> take() final {
    fetch();
    arrived();
    return std::move(tensors_);
  }

 protected:
  ArenaOffload(std::vector<Buffer> tensors, Arena& arena) : arena_(arena), tensors_(std::move(tensors)) {
    for (const Buffer& buffer : tensors_) shapes_.push_back(buffer);
  }
  /// Empty ones among them stay empty: a block tells by that what it has not.
  const std::vector<Buffer>& tensors() const { return tensors_; }

  /// The copies to the host have been queued: work queued from now on runs after them.
  virtual void left() = 0;
  /// Starts to fill tensors().
  virtual void bring_back() = 0;
  /// The copies back are.
  virtual void arrived() = 0;

 private:
  enum class State { leaving, away, coming };
  Arena& arena_;
  std::vector<Buffer> tensors_;
  std::vector<Tensor> shapes_;
  State state_ = State::leaving;
};

}  // namespace pipelora
