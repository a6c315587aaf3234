#include "pipelora/model/weight_slots.h"

#include <algorithm>

#include "pipelora/core/error.h"

namespace pipelora {

namespace {

std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  text += "]";
  return text;
}

}  // namespace

HoldSpec WeightSlots::Slot::hold(HoldSpec asked) const {
  asked.fp8 = asked.fp8 || form.fp8;
  asked.keep_expanded = asked.keep_expanded || (form.keep_expanded && (asked.fp8 || asked.quantisation != Quantisation::none));
  return asked;
}

void WeightSlots::add(const std::string& name, std::int64_t rows, std::int64_t cols, Fill fill) {
  add(name, Slot{.rows = rows, .cols = cols, .fill = std::move(fill)});
}

void WeightSlots::add(const std::string& name, std::vector<std::int64_t> shape, Fill fill) {
  std::int64_t rows = shape.size() == 1 ? 0 : 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  add(name, Slot{.rows = rows, .cols = shape.back(), .fill = std::move(fill), .shape = std::move(shape)});
}

void WeightSlots::add(const std::string& name, std::int64_t rows, std::int64_t cols, LinearWeight& weight, std::size_t part, ProductForm form) {
  Fill fill = [to = &weight, part](const HostTensor& data, const HoldSpec& hold) { to->load(part, data, hold); };
  add(name, Slot{.rows = rows, .cols = cols, .fill = std::move(fill), .weight = &weight, .part = part, .form = form});
}

void WeightSlots::add(const std::string& name, Slot slot) {
  slot.layer = layer_;
  slots_.emplace(name, std::move(slot));
}

bool WeightSlots::whole(std::size_t layer) const {
  return std::all_of(slots_.begin(), slots_.end(), [layer](const auto& entry) { return entry.second.layer != layer || entry.second.filled; });
}

void WeightSlots::take_over(std::size_t layer) {
  for (auto& [name, slot] : slots_)
    if (slot.layer == layer) slot.filled = true;
}

template <class Body>
void WeightSlots::for_each(const std::string& name, const std::vector<std::int64_t>& shape, Body&& body) {
  const auto [first, last] = slots_.equal_range(name);
  if (first == last) throw Error(kTensorMismatch, "this segment has no tensor " + name);
  for (auto at = first; at != last; ++at) {
    Slot& slot = at->second;
    const std::vector<std::int64_t> expected =
        !slot.shape.empty() ? slot.shape : slot.rows == 0 ? std::vector<std::int64_t>{slot.cols} : std::vector<std::int64_t>{slot.rows, slot.cols};
    if (shape != expected) throw Error(kTensorMismatch, name + ": expected " + text_of(expected) + ", got " + text_of(shape));
    try {
      body(slot);
    } catch (const Error& error) {
      throw Error(error.code(), name + ": " + error.what());
    }
    slot.filled = true;
  }
}

void WeightSlots::load(const std::string& name, const std::vector<std::int64_t>& shape, const HostTensor& data, const HoldSpec& hold) {
  for_each(name, shape, [&](Slot& slot) {
    slot.fill(HostTensor{data.data, data.dtype, std::max<std::int64_t>(1, slot.rows), slot.cols}, slot.hold(hold));
  });
}

void WeightSlots::load(const std::string& name, PackedState&& state, const HoldSpec& hold) {
  const auto [rows, cols] = shape_of(state);
  for_each(name, {rows, cols}, [&](Slot& slot) {
    if (slot.weight == nullptr) throw Error(kQuantizationInvalid, "only linear weights can be held quantised");
    std::visit([&](auto& held) { slot.weight->load(slot.part, std::move(held), slot.hold(hold)); }, state);
  });
}

std::vector<std::string> WeightSlots::missing() const {
  std::vector<std::string> names;
  for (const auto& [name, slot] : slots_)
    if (!slot.filled && (names.empty() || names.back() != name)) names.push_back(name);
  return names;
}

void WeightSlots::require_loaded() const {
  const std::vector<std::string> names = missing();
  if (!names.empty())
    throw Error(kTensorMismatch, std::to_string(names.size()) + " tensors of the segment are not loaded, the first is " + names.front());
}

}  // namespace pipelora
